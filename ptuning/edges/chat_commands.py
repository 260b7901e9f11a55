"""The commands of the terminal chat: ``/prefix``, ``/set``, ``/save`` and the others."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ptuning.core.errors import UserError
from ptuning.edges.suggestions import did_you_mean
from ptuning.edges.terminal_texts import Texts
from ptuning.settings.arguments import AnswerArguments
from ptuning.settings.parsing import settings_of

if TYPE_CHECKING:
    from ptuning.serving.conversation import Conversation
    from ptuning.serving.prefix_store import StoredPrefix

COMMANDS = ("/prefix", "/base", "/set", "/save", "/clear", "/help", "/stop", "/exit")
_WORDS = {"clear": "/clear", "stop": "/stop", "exit": "/exit"}  # as in the published chat, without a slash
_MAX_ERROR = 200  # characters of an error message, which may quote what was typed
_HISTORY = {"on": False, "off": True, "auto": None}  # value of /set history → no_history


class Leave(Exception):  # noqa: N818  # not an error
    """The user ends the chat."""


class ChatCommands:
    """Carries out commands on a conversation.

    Args:
        conversation: changed by the commands.
        texts: in the user's language.
    """

    def __init__(self, conversation: Conversation, texts: Texts) -> None:
        self.conversation, self.texts = conversation, texts
        self.settings = settings_of(AnswerArguments)
        self.saved: set[Path] = set()  # files that /save created, which it may overwrite

    def run(self, line: str) -> str | None:
        """Carry out a line if it is a command. Returns what to print about it, or None for a question.

        A slash and one word begin a command; ``/usr/bin 是什么`` is a question.

        Raises:
            UserError: an unknown command, or arguments that it does not accept.
            Leave: ``/stop`` or ``/exit``.
        """
        command, _, argument = line.strip().partition(" ")
        command, argument = _WORDS.get(line.strip(), command), argument.strip()
        if not re.fullmatch(r"/[a-z_]+", command):
            return None
        if command not in COMMANDS:
            raise UserError(f"{command}: no such command; {did_you_mean(command, COMMANDS)} (/help)")
        if command in ("/stop", "/exit"):
            raise Leave
        with_argument = {"/prefix": self._prefix, "/set": self._set, "/save": self._save}
        if command in with_argument:
            return with_argument[command](argument)
        if argument:
            raise UserError(f"{command} {argument}: {command} takes no argument")
        if command == "/base":
            self.conversation.select_prefix(None)
            return self.describe(self.conversation.prefix)
        if command == "/clear":
            self.conversation.clear()
            return self.texts("cleared")
        return self.texts("help")

    def describe(self, prefix: StoredPrefix) -> str:
        """A line about a prefix or the base model: tokens, layers, source."""
        if prefix.words is None:
            return self.texts("base", prefix.name)
        layers = self.conversation.service.engine.model.config.num_layers
        label = prefix.words.label(self.texts.language, prefix.pre_seq_len, layers)
        line = self.texts("tuned", prefix.name, label, prefix.path)
        single_round = prefix.single_round and self.conversation.no_history is None
        return line + (self.texts("single_round") if single_round else "")

    def completions(self, line: str) -> list[str]:
        """The words that complete the last word of an unfinished line."""
        words = line.split(" ")
        if len(words) == 1:
            return [command for command in COMMANDS if line and command.startswith(line)]
        names = {"/prefix": self.conversation.service.store.names(), "/set": [*self.settings, "history"]}
        return [name for name in names.get(words[0], []) if name.startswith(words[1])] if len(words) == 2 else []

    def _prefix(self, name: str) -> str:
        if name:
            return self.describe(self.conversation.select_prefix(name))
        current = self.conversation.prefix.name
        prefixes = self.conversation.service.store.all()
        return "\n".join(f"{'*' if prefix.name == current else ' '} {self.describe(prefix)}" for prefix in prefixes)

    def _set(self, argument: str) -> str:
        words = argument.replace("=", " ").split()
        values = {name: getattr(self.conversation.settings, name) for name in self.settings}
        if not words:
            return "\n".join(f"  {name} {_format(value)}" for name, value in (*values.items(), ("history", self._history())))
        name, given = words[0], words[1:]
        if name not in (*values, "history"):
            raise UserError(f"/set {name}: no such setting; {did_you_mean(name, (*values, 'history'))}")
        if len(given) != 1:
            raise UserError(f"/set {argument}: give one value, for example /set {name} {_format(values.get(name, 'on'))}")
        if name == "history":
            if given[0] not in _HISTORY:
                raise UserError(f"/set history {given[0]}: allowed are {', '.join(_HISTORY)}")
            self.conversation.no_history = _HISTORY[given[0]]
        else:
            self._change(name, given[0])
        return f"  {name} {_format(self._history() if name == 'history' else getattr(self.conversation.settings, name))}"

    def _change(self, name: str, text: str) -> None:
        try:
            self.conversation.change(**{name: self.settings[name].convert(text)})
        except (argparse.ArgumentTypeError, UserError) as error:
            message = str(error).removeprefix("--")
            message = message if len(message) <= _MAX_ERROR else f"{message[:_MAX_ERROR]}..."
            raise UserError(f"/set {message}" if message.startswith(f"{name} ") else f"/set {name}: {message}") from None

    def _history(self) -> str:
        choice = next(word for word, value in _HISTORY.items() if value is self.conversation.no_history)
        return f"{choice} ({'off' if self.conversation.alone else 'on'})" if choice == "auto" else choice

    def _save(self, name: str) -> str:
        if not name:
            raise UserError("/save: name a file, for example /save talk.jsonl")
        path = Path(os.path.expanduser(name))
        if path.suffix not in (".json", ".jsonl"):
            raise UserError(f"/save {name}: name a file that ends in .json or .jsonl, as training reads them")
        try:
            exists = path.exists()
        except (OSError, ValueError) as error:  # a name that is too long
            raise UserError(f"/save {name}: cannot be written ({getattr(error, 'strerror', error)})") from None
        if exists and path.resolve() not in self.saved:
            raise UserError(f"/save {name}: the file exists already; name another one")
        count = self.conversation.save(path)
        self.saved.add(path.resolve())
        return self.texts("saved", count, path)


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)
