"""The commands of the terminal chat: everything that is not a question."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ptuning.core.errors import UserError
from ptuning.edges.terminal_texts import Texts
from ptuning.settings.arguments import AnswerArguments
from ptuning.settings.parsing import settings_of

if TYPE_CHECKING:
    from ptuning.serving.conversation import Conversation
    from ptuning.serving.prefix_store import StoredPrefix

COMMANDS = ("/prefix", "/base", "/set", "/save", "/clear", "/help", "/stop", "/exit")
_WORDS = {"clear": "/clear", "stop": "/stop", "exit": "/exit"}  # as in the published chat, without a stroke
_LONGEST = 200  # characters of what was wrong: what was typed stands in it
_HISTORY = {"on": False, "off": True, "auto": None}  # what /set history says → no_history


class Leave(Exception):  # noqa: N818  # no error: the user has had enough
    """The conversation is over."""


class ChatCommands:
    """Carries out commands on a conversation.

    Args:
        conversation: that they change.
        texts: of the user's language.
    """

    def __init__(self, conversation: Conversation, texts: Texts) -> None:
        self.conversation, self.texts = conversation, texts
        self.settings = settings_of(AnswerArguments)
        self.written: set[Path] = set()  # files that /save made, and may write again

    def run(self, line: str) -> str | None:
        """Carry out a line if it is a command; what to tell about it, or None: it is a question.

        A line that begins with a stroke and a word is a command; ``/usr/bin 是什么`` is a question.

        Raises:
            UserError: no such command, or values that it does not take.
            Leave: the command to end.
        """
        word, _, rest = line.strip().partition(" ")
        word, rest = _WORDS.get(line.strip(), word), rest.strip()
        if not re.fullmatch(r"/[a-z_]+", word):
            return None
        if word not in COMMANDS:
            near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"{word}: no such command; {hint} (/help)")
        if word in ("/stop", "/exit"):
            raise Leave
        does = {"/prefix": self._prefix, "/set": self._set, "/save": self._save}
        if word in does:
            return does[word](rest)
        if rest:
            raise UserError(f"{word} {rest}: {word} takes nothing more")
        if word == "/base":
            self.conversation.choose(None)
            return self.describe(self.conversation.prefix)
        if word == "/clear":
            self.conversation.clear()
            return self.texts("cleared")
        return self.texts("help")

    def describe(self, prefix: StoredPrefix) -> str:
        """One line about a prefix or the base model: tokens, layers, source."""
        if prefix.words is None:
            return self.texts("base", prefix.name)
        layers = self.conversation.service.engine.model.config.num_layers
        label = prefix.words.label(self.texts.language, prefix.pre_seq_len, layers)
        line = self.texts("tuned", prefix.name, label, prefix.path)
        alone = prefix.single_round and self.conversation.no_history is None
        return line + (self.texts("alone") if alone else "")

    def completions(self, line: str) -> list[str]:
        """What the last word of an unfinished line may become."""
        words = line.split(" ")
        if len(words) == 1:
            return [command for command in COMMANDS if line and command.startswith(line)]
        names = {"/prefix": self.conversation.service.store.names(), "/set": [*self.settings, "history"]}
        return [name for name in names.get(words[0], []) if name.startswith(words[1])] if len(words) == 2 else []

    def _prefix(self, name: str) -> str:
        if name:
            return self.describe(self.conversation.choose(name))
        now = self.conversation.prefix.name
        lines = self.conversation.service.store.all()
        return "\n".join(f"{'*' if one.name == now else ' '} {self.describe(one)}" for one in lines)

    def _set(self, rest: str) -> str:
        words = rest.replace("=", " ").split()
        values = {name: getattr(self.conversation.settings, name) for name in self.settings}
        if not words:
            return "\n".join(f"  {name} {_shown(value)}" for name, value in (*values.items(), ("history", self._history())))
        name, given = words[0], words[1:]
        if name not in (*values, "history"):
            near = difflib.get_close_matches(name, (*values, "history"), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*values, 'history'))}"
            raise UserError(f"/set {name}: no such setting; {hint}")
        if len(given) != 1:
            raise UserError(f"/set {rest}: give one value, for example /set {name} {_shown(values.get(name, 'on'))}")
        if name == "history":
            if given[0] not in _HISTORY:
                raise UserError(f"/set history {given[0]}: allowed are {', '.join(_HISTORY)}")
            self.conversation.no_history = _HISTORY[given[0]]
        else:
            self._change(name, given[0])
        return f"  {name} {_shown(self._history() if name == 'history' else getattr(self.conversation.settings, name))}"

    def _change(self, name: str, text: str) -> None:
        try:
            self.conversation.change(**{name: self.settings[name].convert(text)})
        except (argparse.ArgumentTypeError, UserError) as error:
            wrong = str(error).removeprefix("--")
            wrong = wrong if len(wrong) <= _LONGEST else f"{wrong[:_LONGEST]}..."
            raise UserError(f"/set {wrong}" if wrong.startswith(f"{name} ") else f"/set {name}: {wrong}") from None

    def _history(self) -> str:
        chosen = next(word for word, value in _HISTORY.items() if value is self.conversation.no_history)
        return f"{chosen} ({'off' if self.conversation.alone else 'on'})" if chosen == "auto" else chosen

    def _save(self, name: str) -> str:
        if not name:
            raise UserError("/save: name a file, for example /save talk.jsonl")
        path = Path(os.path.expanduser(name))
        if path.suffix not in (".json", ".jsonl"):
            raise UserError(f"/save {name}: name a file that ends in .json or .jsonl, as training reads them")
        try:
            there = path.exists()
        except (OSError, ValueError) as error:  # a name that is too long
            raise UserError(f"/save {name}: cannot be written ({getattr(error, 'strerror', error)})") from None
        if there and path.resolve() not in self.written:
            raise UserError(f"/save {name}: there is such a file already; name another one")
        count = self.conversation.save(path)
        self.written.add(path.resolve())
        return self.texts("saved", count, path)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)
