"""The small files beside a vocabulary: ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``.

transformers hands their values on as they are, and trips over a wrong one far from its file, or not before a text is
tokenised.
"""

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from ptuning.core.errors import UserError
from ptuning.core.reading import check_kinds, is_regular, read_json, shortened

CONFIG_FILE, SPECIAL_FILE, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TOKENIZER_FILES = (CONFIG_FILE, SPECIAL_FILE, ADDED_FILE)
MAX_IMAGE_TOKENS = 10**6
"""Ids before the text's; published are 0 and 20000."""

_MAX_ID = 2**24
_MAX_ADDED = 10_000  # every one of them is looked for in every text
_KINDS: dict[str, tuple[type, ...]] = {
    "tokenizer_class": (str,), "name_or_path": (str,), "remove_space": (bool,), "do_lower_case": (bool,),
    "num_image_tokens": (int,), "padding_side": (str,), "truncation_side": (str,), "model_max_length": (int, float),
    "clean_up_tokenization_spaces": (bool,), "split_special_tokens": (bool,), "model_input_names": (list,),
    "additional_special_tokens": (list,), "extra_special_tokens": (list, dict), "added_tokens_decoder": (dict,),
    "model_specific_special_tokens": (dict,), "auto_map": (dict,), "chat_template": (str, list, dict),
}  # fmt: skip
_TOKEN_SWITCHES = ("lstrip", "rstrip", "normalized", "single_word", "special")
_TOKENS = ("bos", "eos", "end", "gmask", "mask", "pad", "unk", "sep", "cls")


def check_tokenizer_files(folder: Path) -> None:
    """Refuse small files of a tokenizer folder that are damaged, or hold values of another kind than they should.

    Raises:
        UserError: with file, name and value.
    """
    for name in TOKENIZER_FILES:
        if is_regular(folder / name):
            check_tokenizer_values(read_json(folder / name), folder / name)


def check_tokenizer_values(values: Mapping[str, Any], file: Path) -> None:
    """Refuse values of one of the small files that are of another kind than they should be.

    Args:
        values: that it holds.
        file: one of :data:`TOKENIZER_FILES` in its folder.

    Raises:
        UserError: with file, name and value.
    """
    {CONFIG_FILE: _check_config, SPECIAL_FILE: _check_special, ADDED_FILE: _check_added}[file.name](values, file)


def check_image_tokens(count: Any, where: Path | str) -> None:
    """Refuse a number of image tokens that no release has.

    Raises:
        UserError: with what is allowed.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_IMAGE_TOKENS:
        raise UserError(
            f"num_image_tokens is {shortened(repr(count), 60)}; allowed: 0 (model of 130528 rows) or 20000 (150528 rows); "
            f"correct it in {where}"
        )


def _check_config(values: Mapping[str, Any], where: Path) -> None:
    check_kinds(values, _KINDS, where)
    name = values.get("tokenizer_class")
    if name not in (None, "ChatGLMTokenizer"):
        raise UserError(
            f"{where} has tokenizer_class {shortened(name, 60)}; ptuning runs ChatGLM-6B, whose class is ChatGLMTokenizer: "
            "take ice_text.model and tokenizer_config.json from one chatglm-6b folder"
        )
    for key in ("padding_side", "truncation_side"):
        if values.get(key) not in (None, "left", "right"):
            raise UserError(f"{where} has {key} {shortened(repr(values[key]), 60)}; allowed are left and right")
    if values.get("num_image_tokens") is not None:
        check_image_tokens(values["num_image_tokens"], where)
    length = values.get("model_max_length")
    if length is not None and not length > 0:  # NaN too
        raise UserError(f"{where} has model_max_length {length}; allowed is a number from 1 on")
    names = values.get("model_input_names")
    if names is not None and not (names and set(map(str, names)) <= {"input_ids", "attention_mask", "position_ids"}):
        raise UserError(f"{where} has model_input_names {shortened(names, 60)}; allowed are input_ids and attention_mask")
    if "auto_map" in values and values["auto_map"] is None:
        raise UserError(f"{where} has auto_map null; leave it out")
    _check_count(values.get("added_tokens_decoder") or {}, "added_tokens_decoder", where)
    for index, token in (values.get("added_tokens_decoder") or {}).items():
        what = f"added_tokens_decoder {shortened(repr(index), 60)}"
        _check_id(int(index[:12]) if index.isascii() and index.isdigit() else index, what, where)
        _check_token(token, what, where)
    for key, value in (values.get("auto_map") or {}).items():
        _check_texts(value if isinstance(value, list) else [value], f"auto_map {key!r}", where)
    _check_special(values, where)


def _check_special(values: Mapping[str, Any], where: Path) -> None:
    """The special tokens by their names, which both files may hold."""
    for name in _TOKENS:
        key = f"{name}_token"
        if values.get(key) is not None:
            _check_token(values[key], key, where)
    for key in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
        tokens = values.get(key) or []
        if not isinstance(tokens, list | dict):
            raise UserError(f"{where} has {key} {shortened(repr(tokens), 60)}; allowed is a list of tokens")
        _check_count(tokens, key, where)
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            _check_token(token, key, where)


def _check_added(values: Mapping[str, Any], where: Path) -> None:
    _check_count(values, "tokens", where)
    for token, index in values.items():
        _check_id(index, shortened(repr(token), 60), where)


def _check_count(tokens: Sized, what: str, where: Path) -> None:
    if len(tokens) > _MAX_ADDED:
        raise UserError(f"{where} has {len(tokens)} {what}; at most {_MAX_ADDED} can be added to a vocabulary")


def _check_id(index: Any, what: str, where: Path) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < _MAX_ID:
        shown = shortened(repr(index), 60)
        raise UserError(f"{where} has the id {shown} for {shortened(what, 80)}; allowed is a whole number")


def _check_token(token: Any, what: str, where: Path) -> None:
    """A token is a text, or an object that says more about it."""
    if isinstance(token, dict):
        check_kinds(token, dict.fromkeys(_TOKEN_SWITCHES, (bool,)), f"{where}: {what}")
        text = token.get("content")
    else:
        text = token
    if not isinstance(text, str) or not text:
        shown = shortened(repr(token), 60)
        raise UserError(f'{where} has {shortened(what, 80)} {shown}; allowed is a text such as "<sop>"')


def _check_texts(values: list[Any], what: str, where: Path) -> None:
    wrong = [value for value in values if value is not None and not isinstance(value, str)]
    if wrong:
        raise UserError(f"{where} has {shortened(repr(wrong[0]), 60)} in {shortened(what, 80)}; allowed are texts")
