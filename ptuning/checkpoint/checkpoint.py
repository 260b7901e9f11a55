"""A model as a user names it, opened once: where it lies, its configuration, its tokenizer, the adapter that goes with it.

Loading, inspection, memory estimates and servers are handed this value; none of them reads a file of it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ptuning.checkpoint.adapter import is_adapter_folder, read_adapter
from ptuning.checkpoint.hub import EMBEDDED_MODEL, resolve_folder
from ptuning.checkpoint.weight_files import WeightFiles, find_weights, read_json, read_small_file
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import expanded, is_regular, shortened
from ptuning.data.sentencepiece_file import MAX_VOCABULARY
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.data.tokenizer_files import TokenizerFiles
from ptuning.data.tokenizer_settings import TOKENIZER_FILES
from ptuning.methods.method import Adapter
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families import family_of
from ptuning.settings.arguments import ModelArguments

_CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A base model, opened; its weights stay unread until it is loaded.

    Attributes:
        name: of the base model: a folder, a hub name, or ``tiny-chatglm``.
        folder: where its small files lie.
        config: what its ``config.json`` says. Whoever builds a model takes a :meth:`new_config`.
        adapter: the checkpoint of a tuning method that goes with it; None: the base model alone.
        tokenizer_name: another folder or hub name for the tokenizer; None: the model's own.
        hub: keywords of :func:`~ptuning.checkpoint.hub.resolve_folder`.
    """

    name: str
    folder: Path
    config: ChatGLMConfig
    adapter: Adapter | None = None
    tokenizer_name: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    def new_config(self) -> ChatGLMConfig:
        """The configuration for a model to be built, which changes it."""
        return deepcopy(self.config)

    @cached_property
    def tokenizer(self) -> ChatGLMTokenizer:
        """Read when it is first asked for.

        Raises:
            UserError: see :func:`read_tokenizer`.
        """
        if self.tokenizer_name is not None:
            return read_tokenizer(resolve_folder(self.tokenizer_name, weights=False, **self.hub))
        return self._own_tokenizer

    def check_tokenizer(self) -> None:
        """Refuse a tokenizer beside the weights that does not belong to them; weights alone are a model."""
        if is_regular(self.folder / family_of(self.config).tokenizer_file):
            _ = self._own_tokenizer

    @cached_property
    def _own_tokenizer(self) -> ChatGLMTokenizer:
        return read_tokenizer(self.folder, self.config)

    def weights(self) -> WeightFiles:
        """The weight files, fetched where they lie on the hub, and opened.

        Raises:
            UserError: there are none, or they are damaged.
        """
        folder = resolve_folder(self.name, weights=True, **self.hub)
        files = find_weights(folder)
        if files is None:
            raise UserError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")
        return files


def open_checkpoint(
    name: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    *,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
    **hub: Any,
) -> Checkpoint:
    """Open what a user names in Python.

    Args:
        name: folder or hub name of the base model, ``tiny-chatglm``, or a tuned folder, which stands for its base model
            plus itself.
        adapter: a checkpoint of a tuning method.
        pre_seq_len: held against that checkpoint, where there is one; None asks nothing. Likewise ``prefix_projection``.
        hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``.

    Raises:
        UserError: no such model or checkpoint, or one of another kind; no weights are read or fetched for that.
    """
    flags = {"pre_seq_len": pre_seq_len, "prefix_projection": prefix_projection}
    if os.path.isdir(expanded(name)) and is_adapter_folder(expanded(name)):
        tuned = read_adapter(name, **flags)
        return _opened(_base_beside(tuned, name, alone=adapter is None), tuned, None, hub)
    return _opened(os.fspath(name), None if adapter is None else read_adapter(adapter, **flags), None, hub)


def open_named(settings: ModelArguments) -> Checkpoint:
    """Open the model that settings name, or that their checkpoint belongs to.

    Raises:
        UserError: as for :func:`open_checkpoint`.
    """
    name, path = settings.model_name_or_path, settings.ptuning_checkpoint
    # False is also what a flag says that nobody gave: only True can contradict a checkpoint.
    flags = {"pre_seq_len": settings.pre_seq_len, "prefix_projection": settings.prefix_projection or None}
    adapter = None if path is None else read_adapter(path, **flags)
    return open_base(base_model_of(adapter, path) if name is None else name, settings, adapter)


def open_base(name: str, settings: ModelArguments, adapter: Adapter | None = None) -> Checkpoint:
    """Open a base model as settings say, with a checkpoint that was read; errors as for :func:`open_checkpoint`."""
    return _opened(name, adapter, settings.tokenizer_name, hub_settings(settings))


def _opened(name: str, adapter: Adapter | None, tokenizer_name: str | None, hub: dict[str, Any]) -> Checkpoint:
    folder = resolve_folder(name, weights=False, **hub)
    return Checkpoint(name, folder, read_config(folder), adapter, tokenizer_name, hub)


def hub_settings(settings: ModelArguments) -> dict[str, Any]:
    """How the hub is asked, as keywords of :func:`~ptuning.checkpoint.hub.resolve_folder`."""
    return {
        "revision": settings.model_revision,
        "cache_dir": settings.cache_dir,
        "token": settings.token,
        "local_files_only": settings.local_files_only,
    }


def base_model_of(adapter: Adapter | None, named: str | os.PathLike[str] | None) -> str:
    """The base model that a checkpoint belongs to.

    Args:
        adapter: the checkpoint, read.
        named: as the user names it, for the message.

    Raises:
        UserError: it does not say.
    """
    base = None if adapter is None else adapter.settings.get("base_model")
    if not base:
        raise UserError(f"--model_name_or_path is missing, and {named} does not say which base model it belongs to")
    return str(base)


def _base_beside(adapter: Adapter, named: Any, *, alone: bool) -> str:
    """The base model of a tuned folder that was given as the model, ``alone`` or beside another checkpoint."""
    base, words = adapter.settings.get("base_model"), adapter.method.words
    if not (alone and base):
        tokens = f" ({adapter.slots} tokens)" if adapter.slots else ""
        raise UserError(
            f"{named} holds {words.one}{tokens}, not a whole model: give the base model as "
            f"--model_name_or_path and this folder as --ptuning_checkpoint"
        )
    if ("/" not in base or os.path.isabs(base)) and base != EMBEDDED_MODEL and not os.path.isdir(base):
        raise UserError(
            f"{named} holds {words.one} for the model {shortened(base)}, which is not there (working directory "
            f"{working_directory()}): give its base model as --model_name_or_path and this folder as "
            "--ptuning_checkpoint"
        )
    return str(base)


def read_config(folder: Path, **changes: Any) -> ChatGLMConfig:
    """The configuration of a model folder, refused where no family runs it; ``changes`` replace values of the file."""
    file = folder / _CONFIG_FILE
    values = read_json(file)
    family = family_of(values)
    family.check_config(values, str(file))
    config = family.config.from_dict(values | changes)
    config.name_or_path = str(folder)
    return config


def choose_quantization(stored: int, requested: int | None, where: Path) -> int:
    """Bits of the model to build, from what the checkpoint holds and what was asked for.

    Raises:
        UserError: a checkpoint quantised one way and asked for another.
    """
    if requested not in (None, 0, 4, 8) or isinstance(requested, bool | float):
        raise UserError(f"quantization_bit {requested} was given; allowed are 4 and 8 (0 or none: as the checkpoint is)")
    if stored and requested and stored != requested:
        raise UserError(
            f"{where} is quantised to {stored} bits, but quantization_bit {requested} was asked for: leave the flag out, or "
            "give the float16 checkpoint"
        )
    return stored or requested or 0


def read_tokenizer(folder: Path, config: ChatGLMConfig | None = None) -> ChatGLMTokenizer:
    """The tokenizer of a folder.

    Args:
        folder: with ``ice_text.model``.
        config: of the model in it, where that was read; None reads a ``config.json`` that is there.

    Raises:
        UserError: a missing or damaged ``ice_text.model``, or one of another vocabulary than ``config.json``.
    """
    if config is None and is_regular(folder / _CONFIG_FILE):
        config = read_config(folder)
    family = family_of({} if config is None else config)
    file = folder / family.tokenizer_file
    if not is_regular(file):
        raise UserError(f"{file} is missing; the tokenizer of ChatGLM-6B is one SentencePiece file of that name")
    vocabulary = read_small_file(file, MAX_VOCABULARY)
    values = {name: read_json(folder / name) for name in TOKENIZER_FILES if is_regular(folder / name)}
    bos_id = None if config is None else config.bos_token_id
    tokenizer: ChatGLMTokenizer = family.make_tokenizer(TokenizerFiles(folder, vocabulary, values, bos_id))
    tokenizer.prompt_form = family.prompt_form
    if config is not None:
        check_vocabulary(tokenizer, config, folder)
    return tokenizer


def check_vocabulary(tokenizer: ChatGLMTokenizer, config: ChatGLMConfig, where: Path | str) -> None:
    """Refuse a tokenizer and a model of different releases.

    Raises:
        UserError: with the ids and sizes of both.
    """
    special_ids = family_of(config).special_ids.items()
    pairs = [(name, getattr(tokenizer, key), getattr(config, key)) for name, key in special_ids]
    wrong = [f"{name} is {mine} in the tokenizer and {its} in config.json" for name, mine, its in pairs if mine != its]
    if wrong or len(tokenizer) > config.vocab_size:
        raise UserError(
            f"tokenizer and model in {where} are of different releases: {'; '.join(wrong) or 'sizes differ'}; the tokenizer "
            f"has {len(tokenizer)} pieces{_release(len(tokenizer))}, the model {config.vocab_size} "
            f"rows{_release(config.vocab_size)}. Take ice_text.model, tokenizer_config.json and the weights from one release"
        )


def _release(size: int) -> str:
    if size > 150000:
        return " (the first release, with 20000 image tokens)"
    return " (the release without image tokens)" if size > 130000 else ""
