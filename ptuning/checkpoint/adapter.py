"""Checkpoints of tuning methods on disk: which method a folder belongs to, reading, writing, and attaching to a model.

What the files are and what they mean is the method's to say (:mod:`ptuning.methods.method`); here they are read and
written, every one whole or not at all. A file is opened once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptuning.checkpoint.file_list import ListedFile, check_read, read_file_list
from ptuning.checkpoint.mapped_tensors import MappedTensors
from ptuning.checkpoint.weight_files import find_weights, open_tensors, parse_json_file, read_small_file
from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import expanded, is_regular
from ptuning.methods.method import Adapter, AdapterFiles
from ptuning.methods.registry import METHODS, active_method

if TYPE_CHECKING:
    from ptuning.model.answering import PrefixedModel

logger = logging.getLogger(__name__)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of an open weight file by name, mapped; iterating over all of them keeps none in memory.

    Args:
        file: that was opened.
        starting_with: only names that start so.
    """

    def __init__(self, file: MappedTensors, starting_with: str = "") -> None:
        self._file = file
        self._names = dict.fromkeys(name for name in file.stored if name.startswith(starting_with))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.tensor(name)

    def __iter__(self) -> Iterator[str]:
        for name in self._names:
            yield name
            self._file.forget(name)

    def __len__(self) -> int:
        return len(self._names)


class FolderFiles:
    """The :class:`~ptuning.methods.method.CheckpointFiles` of a folder, or of one file in it."""

    def __init__(self, path: Path) -> None:
        is_folder = os.path.isdir(path)
        self.folder = path if is_folder else path.parent
        self.named: str | None = None if is_folder else path.name
        self._opened: dict[str, MappedTensors] = {}
        self._json: dict[str, bytes] = {}

    @cached_property
    def _listed(self) -> Mapping[str, ListedFile]:
        return read_file_list(self.folder) or {}

    @cached_property
    def _model_weights(self) -> tuple[str, ...]:
        weights = find_weights(self.folder)
        parts = () if weights is None else weights.parts
        self._opened |= {part.path.name: part for part in parts}
        return tuple(part.path.name for part in parts)

    def _open(self, name: str) -> MappedTensors:
        if name not in self._opened:
            self._opened[name] = open_tensors(self.folder / name)
        return self._opened[name]

    def has(self, name: str) -> bool:
        """Whether there is a regular file of that name."""
        return is_regular(self.folder / name)

    def is_file(self, name: str) -> bool:
        """As :meth:`has`, but a folder or a pipe of that name counts as absent instead of raising."""
        return os.path.isfile(self.folder / name)

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file."""
        self._json[name] = read_small_file(self.folder / name)
        return parse_json_file(self.folder / name, self._json[name])

    def tensor_names(self, name: str) -> Sequence[str]:
        """The tensors of a weight file, from its header alone."""
        return list(self._open(name).stored)

    def tensors(self, name: str, starting_with: str = "") -> Mapping[str, Tensor]:
        """The tensors of a weight file, mapped."""
        file = self._open(name)
        check_read(file.path, self._listed.get(name), file.length, file.sha256)
        return StoredTensors(file, starting_with)

    def model_weights(self) -> Sequence[str]:
        """The weight files of a whole model, one or several."""
        return self._model_weights

    def warn_of_changes(self, name: str) -> None:
        """Warn where a JSON file that was read differs from the list beside it."""
        data = self._json[name]
        try:
            check_read(self.folder / name, self._listed.get(name), len(data), lambda: hashlib.sha256(data).hexdigest())
        except UserError as error:
            logger.warning("%s", error)


def is_adapter_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a checkpoint of a tuning method rather than a whole model (cheap: names, at most one header)."""
    files = FolderFiles(Path(path))
    return files.named is None and any(method.is_checkpoint(files) for method in METHODS.values())


def read_adapter(path: str | os.PathLike[str], **flags: Any) -> Adapter:
    """Read a checkpoint of a tuning method, in any of the method's forms.

    Args:
        path: the checkpoint folder (or the weight file in it).
        flags: settings of a method, to be held against the checkpoint; None asks nothing.

    Raises:
        UserError: no such checkpoint, none of any method, a file that differs from the list beside it (see
            :mod:`ptuning.checkpoint.file_list`), or a flag that contradicts the checkpoint.
    """
    folder = expanded(path)
    if not os.path.exists(folder):
        raise UserError(f"prefix checkpoint not found: {path} (working directory {working_directory()})")
    files = FolderFiles(folder)
    for method in METHODS.values():
        if method.recognises(files):
            adapter = method.read(files)
            adapter.hold_against(flags)
            return adapter
    inside = [entry for entry in folder.glob("checkpoint-*") if entry.name.removeprefix("checkpoint-").isdigit()]
    last = max(inside, key=lambda entry: int(entry.name.removeprefix("checkpoint-")), default=None)
    hint = f"; did you mean {last}?" if last is not None else ""
    none = " and no ".join(f"{method.words.noun} ({method.words.files})" for method in METHODS.values())
    raise UserError(f"{folder} holds no {none}{hint}")


def write_files(folder: str | os.PathLike[str], files: AdapterFiles) -> None:
    """Write what a method puts into a checkpoint; all files are there before the first gets its name.

    Args:
        folder: made where missing.
        files: see :meth:`ptuning.methods.method.TuningMethod.files`.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        texts = {name: stack.enter_context(replace_when_whole(target / name)) for name in files.values}
        weights = {name: stack.enter_context(replace_when_whole(target / name)) for name in files.tensors}
        for name, temporary in weights.items():
            if name.endswith(".safetensors"):
                save_file(dict(files.tensors[name]), temporary, metadata={"format": "pt"})
            else:
                torch.save(dict(files.tensors[name]), temporary)
        for name, temporary in texts.items():
            text = json.dumps(files.values[name], ensure_ascii=False, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")


def attach_adapter(model: PrefixedModel, adapter: Adapter) -> None:
    """Put a checkpoint on a loaded model, in place of an earlier one, whatever its method.

    Raises:
        UserError: a checkpoint for a model of other sizes.
    """
    words = adapter.method.words
    if is_of_other_weights(model, adapter):
        logger.warning(
            "the %s in %s was trained on other weights of the same size (%s, fingerprint %s) than %s (fingerprint %s): "
            "its answers may be poor",
            words.noun, adapter.path, adapter.settings.get("base_model"), adapter.settings.get("base_fingerprint"),
            model.config.name_or_path, model.base_fingerprint,
        )
    earlier = active_method(model)
    if earlier is not None and earlier is not adapter.method:
        earlier.detach(model)
    adapter.attach(model)
    model.prompt_settings = adapter.prompt_settings
    logger.info("Loading %s from %s: %s", words.loaded, adapter.path, adapter.description(model.config))


def is_of_other_weights(model: PrefixedModel, adapter: Adapter) -> bool:
    """Whether a checkpoint was trained on other weights than the model's, of the same sizes or not."""
    stated = adapter.settings.get("base_fingerprint")
    return bool(stated and model.base_fingerprint and stated != model.base_fingerprint)
