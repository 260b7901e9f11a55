"""Prefixes by name, loaded and unloaded while the engine runs. The base model is always there under its own name."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ptuning.checkpoint.adapter import is_adapter_folder, is_of_other_weights, read_adapter
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.engine.engine import Engine
from ptuning.engine.prefix_pool import SharedPrefix
from ptuning.methods.method import Adapter, Words

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\w[\w.+-]{0,99}")


class UnknownPrefixError(UserError):
    """A name that no prefix has."""


@dataclass(frozen=True)
class StoredPrefix:
    """A tuned model that may be asked for by its prefix's name; the base model is one without keys and values.

    Attributes:
        name: unique in the store.
        path: the file it was read from; None for the base model.
        shared: what a request of the engine names; None for the base model, and for what changed the model itself.
        pre_seq_len: P; 0 for the base model.
        prompt_settings: keywords of the prompt function that it was trained with.
        single_round: it was tuned on questions without history, and a chat should ask it in the same way.
        words: of its method; None for the base model.
        loaded: seconds since the epoch.
    """

    name: str
    path: Path | None = None
    shared: SharedPrefix | None = None
    pre_seq_len: int = 0
    prompt_settings: dict[str, Any] = field(default_factory=dict)
    single_round: bool = False
    words: Words | None = None
    loaded: float = field(default_factory=time.time)


def check_name(name: str) -> str:
    """The name itself, if it may be one.

    Raises:
        UserError: empty, too long, or with anything but letters, digits and ``_ . + -``, so that no name is a path.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{name!r} cannot be a prefix's name: it begins with a letter or digit, and has only letters, digits and _.+- "
            "(at most 100, no ..). Give NAME=PATH"
        )
    return name


def named_checkpoints(text: str) -> list[tuple[str, Path]]:
    """What one ``--ptuning_checkpoint`` stands for.

    Args:
        text: ``NAME=PATH``; a path, named after its folder; or a folder of checkpoints, each named after its own.

    Raises:
        UserError: no such folder, no checkpoint in it, or a name that cannot be one.
    """
    name, equals, rest = text.partition("=")
    if not equals or Path(os.path.expanduser(text)).exists() or "/" in name or "\\" in name:
        name, rest = "", text
    path = Path(os.path.expanduser(rest))
    if not rest or not path.exists():
        raise UserError(f"prefix checkpoint not found: {rest or text} (working directory {working_directory()})")
    if path.is_dir() and not is_adapter_folder(path):
        inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and is_adapter_folder(entry))
        if inside and name:
            names = ", ".join(entry.name for entry in inside)
            raise UserError(f"{rest} holds several checkpoints ({names}); one name cannot stand for all: give {rest} alone")
        if inside:
            return [(check_name(entry.name), entry) for entry in inside]
    folder = path.resolve()
    return [(check_name(name or (folder if folder.is_dir() else folder.parent).name), path)]


class PrefixStore:
    """The prefixes of one engine.

    Args:
        engine: it holds their keys and values.
        base_name: what the base model is called.
    """

    def __init__(self, engine: Engine, base_name: str) -> None:
        self.engine, self.base_name = engine, base_name
        self._prefixes: dict[str, StoredPrefix] = {base_name: StoredPrefix(base_name)}
        self._lock = Lock()
        self.default = base_name
        self._alone: str | None = None  # what changed the model itself, in words

    def names(self) -> list[str]:
        """All names, the base model's first."""
        return list(self._prefixes)

    def all(self) -> list[StoredPrefix]:
        """Everything there is, the base model first."""
        return list(self._prefixes.values())

    def get(self, name: str | None = None) -> StoredPrefix:
        """A prefix by name; None is the default: the first one that was given at the start, else the base model.

        Raises:
            UnknownPrefixError: there is none; those that there are, are named.
            UserError: the base model, where something else became part of it.
        """
        if self._alone is not None and name == self.base_name:
            raise UserError(f"{name} does not answer beside {self.default}: {self._alone} is part of the model now")
        prefix = self._prefixes.get(self.default if name is None else name)
        if prefix is None:
            raise UnknownPrefixError(f"there is no model or prefix {name!r}; there are {', '.join(self.names())}")
        return prefix

    def add_all(self, adapters: Sequence[tuple[str, Adapter]]) -> None:
        """Take in prefixes by their names, as ``--ptuning_checkpoint`` gives them; the first becomes the default.

        Raises:
            UserError: see :meth:`load`.
        """
        for name, adapter in adapters:
            self.add(name, adapter)
        if adapters:
            self.default = adapters[0][0]

    def load(self, name: str, path: Path) -> StoredPrefix:
        """Read a checkpoint and give it a name.

        Raises:
            UserError: a name that is taken or cannot be one; no prefix there; a prefix of another model, family or size;
            one that answers alone, beside others.
        """
        check_name(name)
        self._refuse_taken(name, path)
        return self.add(name, read_adapter(path))

    def add(self, name: str, adapter: Adapter) -> StoredPrefix:
        """Give a name to a checkpoint that was read; errors as for :meth:`load`."""
        check_name(name)
        self._refuse_taken(name, adapter.path)
        model = self.engine.model
        adapter.check_model(model.config)
        words = adapter.method.words
        if is_of_other_weights(model, adapter):
            raise UserError(
                f"the {words.noun} in {adapter.path} was trained on {adapter.settings.get('base_model')} (fingerprint "
                f"{adapter.settings.get('base_fingerprint')}); this is {self.base_name} (fingerprint "
                f"{model.base_fingerprint}), other weights of the same size: give the base model that the {words.noun} was "
                "trained on"
            )
        key_values = adapter.key_values(model)
        self._refuse_company(adapter, alone=key_values is None)
        shared = None
        if key_values is None:
            self.engine.between_steps(lambda: adapter.attach(model))
        else:
            shared = self.engine.add_prefix(name, key_values)
        single = adapter.settings.get("history") is False
        stored = StoredPrefix(name, adapter.path, shared, adapter.slots, adapter.prompt_settings, single, words)
        with self._lock:
            if name not in self._prefixes:
                self._prefixes[name] = stored
        if self._prefixes[name] is not stored:  # somebody was faster
            if shared is not None:
                self.engine.remove_prefix(shared)
            self._refuse_taken(name, adapter.path)
        if shared is None:
            self.default, self._alone = name, words.one
        logger.info("loaded %s %s from %s: %s", words.noun, name, adapter.path, adapter.description(model.config))
        return stored

    def unload(self, name: str) -> None:
        """Let a prefix go. Answers that run with it are finished; no new ones begin.

        Raises:
            UserError: the base model, which stays.
            UnknownPrefixError: no such prefix.
        """
        if name == self.base_name:
            raise UserError(f"{name} is the base model; it cannot be unloaded")
        if self._alone is not None and name in self._prefixes:
            raise UserError(f"{name} is {self._alone} and part of the model now; it cannot be unloaded")
        with self._lock:
            stored = self.get(name)
            del self._prefixes[name]
            if self.default == name:
                self.default = self.base_name
        if stored.shared is not None:
            self.engine.remove_prefix(stored.shared)
        logger.info("unloaded prefix %s", name)

    def _refuse_company(self, adapter: Adapter, *, alone: bool) -> None:
        """What changes the model itself answers alone: see :mod:`ptuning.methods.method`."""
        one = self._alone or adapter.method.words.one
        if self._alone is not None or (alone and (len(self._prefixes) > 1 or not self.engine.idle)):
            raise UserError(
                f"{adapter.path}: {one} changes the model itself and answers alone: name no other checkpoint beside it"
            )

    def _refuse_taken(self, name: str, path: Path) -> None:
        taken = self._prefixes.get(name)
        if taken is not None:
            whose = "the base model" if taken.path is None else str(taken.path)
            raise UserError(f"the name {name} is taken by {whose}; give {path} another one: NAME={path}")
