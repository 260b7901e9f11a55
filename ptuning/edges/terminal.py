"""The terminal itself: lines come in, answers go out while they are made. Two ways: for a person, and for a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ptuning.core.errors import GenerationError, UserError
from ptuning.edges.chat_commands import ChatCommands, Leave
from ptuning.edges.output import inline, say, say_answer, say_text, tell, tell_text

if TYPE_CHECKING:
    from ptuning.edges.terminal_texts import Texts
    from ptuning.serving.conversation import Conversation


class Lines(Protocol):
    """Where questions come from."""

    def read(self) -> str:
        """The next line. Raises EOFError at the end, KeyboardInterrupt at Ctrl-C."""


class TypedLines:
    """A person's lines, with editing: arrow keys, wide characters, earlier questions, completion, pasted lines.

    Args:
        prompt: stands before every line.
        commands: whose names are completed.
    """

    def __init__(self, prompt: str, commands: ChatCommands) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import CompleteEvent, Completer, Completion
        from prompt_toolkit.document import Document
        from prompt_toolkit.shortcuts import CompleteStyle

        class Commands(Completer):
            def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
                line = document.text_before_cursor
                start = -len(line.split(" ")[-1])
                yield from (Completion(text, start, inline(text)) for text in commands.completions(line))

        # Completion lists its words below the line like a shell, so the terminal need not be asked where the cursor is:
        # some cannot say, and are waited for.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        self._prompt = prompt
        self._session: PromptSession[str] = PromptSession(
            completer=Commands(), complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE
        )

    def read(self) -> str:
        """The next line; see :class:`Lines`."""
        return self._session.prompt(self._prompt)


class PipedLines:
    """Lines of a pipe or a file."""

    def read(self) -> str:
        """The next line; see :class:`Lines`.

        Raises:
            UserError: bytes that are no text.
        """
        try:
            line = sys.stdin.readline()
            line.encode("utf-8")  # some locales let wrong bytes through as halves of characters
        except UnicodeError:
            named = sys.stdin.encoding.upper()
            raise UserError(f"the input is not {named} text; convert it first (iconv -f gbk -t {named.lower()})") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class ChatTerminal:
    """A conversation in a terminal.

    Args:
        conversation: with the model.
        texts: of the user's language.
        plain: answers only, one after the other, on standard output; what else there is to say goes to standard error.
    """

    def __init__(self, conversation: Conversation, texts: Texts, *, plain: bool) -> None:
        self.conversation, self.texts, self.plain = conversation, texts, plain
        self.commands = ChatCommands(conversation, texts)
        self.failed = False
        self._dropped = 0

    def talk(self) -> int:
        """Read until ``stop`` or the end of the input; the exit code: 1 where a pipe's question had no answer."""
        lines: Lines = PipedLines() if self.plain else TypedLines("\n" + self.texts("user"), self.commands)
        if not self.plain:
            say(self.texts("welcome"))
            say(self.texts("answering", self.commands.describe(self.conversation.prefix)), flush=True)
        try:
            while True:
                try:
                    self._line(lines.read())
                except KeyboardInterrupt:
                    if self.plain:
                        raise
                    say(self.texts("leave"))
        except (EOFError, Leave):
            return int(self.failed and self.plain)

    def _line(self, line: str) -> None:
        """One line: a command, a question, or nothing."""
        if not line.strip():
            return
        try:
            said = self.commands.run(line)
            if said is not None:
                self._tell(said)
                return
            self._answer(line)
        except (UserError, RuntimeError) as error:  # no answer (GenerationError), the device's, or a full queue
            self.failed = True
            tell(f"{self.texts('error')}{' '.join(str(error).split())}")

    def _answer(self, query: str) -> None:
        """Stream one answer; Ctrl-C ends the answer, not the program."""
        answer = self.conversation.ask(query)
        self._tell_dropped(answer.asked.dropped_rounds)
        if not self.plain:
            say(self._name(), end="", flush=True)
        pieces: Any = iter(answer)
        try:
            for piece in pieces:
                say_answer(piece)
            say(flush=True)
            if answer.truncated:
                self._tell(self.texts("cut"))
        except KeyboardInterrupt:
            if self.plain:
                raise
            say()
            say(self.texts("stopped"), flush=True)
        except GenerationError:
            say(flush=True)
            raise
        finally:
            pieces.close()

    def _name(self) -> str:
        prefix = self.conversation.prefix
        named = "" if prefix.path is None else self.texts("named", prefix.name)
        return f"ChatGLM-6B{named}{self.texts('colon')}"

    def _tell_dropped(self, dropped: int) -> None:
        """Say what no longer fits, whenever it gets more."""
        if dropped > self._dropped:
            self._tell(self.texts("dropped", dropped))
        self._dropped = dropped

    def _tell(self, text: str) -> None:
        if self.plain:
            tell_text(text)
        else:
            say_text(text, flush=True)
