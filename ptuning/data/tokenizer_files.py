"""A tokenizer from the files of its folder, each read once.

transformers' own ``from_pretrained`` reads them by itself, some of them twice. Here they come as they were read, and go
through the steps that it takes; a test compares both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AddedToken

from ptuning.core.reading import guarded
from ptuning.data.sentencepiece_file import make_processor
from ptuning.data.tokenizer import ChatGLMTokenizer, image_tokens
from ptuning.data.tokenizer_settings import ADDED_FILE, CONFIG_FILE, SPECIAL_FILE, check_tokenizer_values

VOCABULARY_FILE = "ice_text.model"
_OF_TRANSFORMERS = ("tokenizer.json", "chat_template.jinja", "additional_chat_templates")


class TokenizerFiles(NamedTuple):
    """What a tokenizer's folder holds.

    Attributes:
        folder: that it was read from.
        vocabulary: the bytes of the SentencePiece file.
        values: of the small files that are there, by the file's name.
        bos_id: of ``<sop>`` in the configuration of the model beside them; None where there is none.
    """

    folder: Path
    vocabulary: bytes
    values: dict[str, dict[str, Any]]
    bos_id: int | None = None


def make_tokenizer(files: TokenizerFiles) -> ChatGLMTokenizer:
    """The tokenizer, as ``ChatGLMTokenizer.from_pretrained`` of the folder gives it.

    Raises:
        UserError: a vocabulary of another model, or values that are none; with the file.
    """
    folder = files.folder
    for name, values in files.values.items():
        check_tokenizer_values(values, folder / name)
    if any((folder / name).exists() for name in _OF_TRANSFORMERS):  # of no published ChatGLM-6B; transformers knows them
        return ChatGLMTokenizer.from_pretrained(folder)  # type: ignore[no-any-return]
    processor = make_processor(files.vocabulary, folder / VOCABULARY_FILE)
    with guarded(folder / CONFIG_FILE, "tokenizer settings", "take it from the model's page"):
        values = _merged(files.values)
        if values.get("num_image_tokens") is None:
            values["num_image_tokens"] = image_tokens(processor, str(values.get("bos_token", "<sop>")), files.bos_id)
        return ChatGLMTokenizer(
            *values.pop("init_inputs", ()),
            **values
            | {
                "vocab_file": str(folder / VOCABULARY_FILE), "tokenizer_file": None, "processor": processor,
                "name_or_path": str(folder), "is_local": True, "local_files_only": False,
            },
        )  # fmt: skip


def _merged(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of the small files as keywords of the class."""
    values = dict(files.get(CONFIG_FILE, {}))
    values.pop("tokenizer_class", None)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    known = set(ChatGLMTokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    unnamed = {
        name: values.pop(name)
        for name in [*values]
        if name.endswith("_token") and name not in known and isinstance(values[name], str)
    }
    if isinstance(values.get("extra_special_tokens"), dict):
        unnamed |= values.pop("extra_special_tokens")
    if unnamed:
        values["model_specific_special_tokens"] = unnamed
    if "added_tokens_decoder" in values:
        decoder = {int(index): AddedToken(**token) for index, token in values["added_tokens_decoder"].items()}
    else:
        _merge_special(values, files.get(SPECIAL_FILE, {}))
        decoder = _added(values, files.get(ADDED_FILE, {}))
    values["added_tokens_decoder"] = decoder
    merged: dict[str, Any] = ChatGLMTokenizer.convert_added_tokens(values, save=False)
    by_text = {str(token): token for token in decoder.values()}
    for name in known & merged.keys():
        merged[name] = by_text.get(str(merged[name]), merged[name]) if merged[name] is not None else None
    return merged


def _merge_special(values: dict[str, Any], special: dict[str, Any]) -> None:
    """Put what ``special_tokens_map.json`` says over ``tokenizer_config.json``, in place."""
    for name, value in special.items():
        token = value
        if isinstance(value, dict) and name != "extra_special_tokens":
            token = AddedToken(**{key: switch for key, switch in value.items() if key != "special"}, special=True)
        elif isinstance(value, list) and name == "extra_special_tokens":
            token = list(values.get(name) or [])
            for entry in value:
                extra = AddedToken(**entry, special=True) if isinstance(entry, dict) else entry
                if extra not in token:
                    token.append(extra)
        values[name] = token
    if isinstance(values.get("extra_special_tokens"), dict):
        values.setdefault("model_specific_special_tokens", {}).update(values.pop("extra_special_tokens"))


def _added(values: dict[str, Any], added: dict[str, int]) -> dict[int, AddedToken]:
    """The tokens of ``added_tokens.json`` by their ids."""
    special = {str(values[name]) for name in ChatGLMTokenizer.SPECIAL_TOKENS_ATTRIBUTES if values.get(name)}
    special |= {str(token) for token in values.get("extra_special_tokens") or []}
    return {
        index: AddedToken(text, lstrip=False, rstrip=False, normalized=text not in special, special=text in special)
        for text, index in added.items()
    }
