"""The terminal chat: reads questions line by line and prints answers while they are generated, for a person or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ptuning.core.errors import GenerationError, UserError
from ptuning.edges.chat_commands import ChatCommands, Leave
from ptuning.edges.output import inline, print_answer, print_error, print_error_text, print_line, print_text

if TYPE_CHECKING:
    from ptuning.edges.terminal_texts import Texts
    from ptuning.serving.conversation import Conversation


class LineReader(Protocol):
    """Reads the user's lines."""

    def read(self) -> str:
        """The next line. Raises EOFError at the end, KeyboardInterrupt at Ctrl-C."""


class InteractiveReader:
    """Reads lines that a person types, with editing: arrow keys, wide characters, history, completion, pasted lines.

    Args:
        prompt: shown before every line.
        commands: offered by the completion.
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

        # Completions are listed below the line as in a shell, so that the cursor's position is not needed; some terminals
        # do not report it, and asking would wait for them.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        self._prompt = prompt
        self._session: PromptSession[str] = PromptSession(
            completer=Commands(), complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE
        )

    def read(self) -> str:
        """The next line; see :class:`LineReader`."""
        return self._session.prompt(self._prompt)


class PipeReader:
    """Reads the lines of a pipe or a file."""

    def read(self) -> str:
        """The next line; see :class:`LineReader`.

        Raises:
            UserError: the input is not text in the encoding of standard input.
        """
        try:
            line = sys.stdin.readline()
            line.encode("utf-8")  # some locales decode invalid bytes as lone surrogates
        except UnicodeError:
            encoding = sys.stdin.encoding
            hint = f"convert it first (iconv -f gbk -t {encoding.lower()})"
            raise UserError(f"the input is not {encoding.upper()} text; {hint}") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class ChatTerminal:
    """A conversation in a terminal.

    Args:
        conversation: with the model.
        texts: in the user's language.
        plain: print answers only on standard output, and notes on standard error; as for a pipe.
    """

    def __init__(self, conversation: Conversation, texts: Texts, *, plain: bool) -> None:
        self.conversation, self.texts, self.plain = conversation, texts, plain
        self.commands = ChatCommands(conversation, texts)
        self.failed = False
        self._dropped_rounds = 0  # of the last answer

    def run(self) -> int:
        """Answer until ``stop`` or the end of the input; returns the exit code: 1 where a question of a pipe failed."""
        reader: LineReader = PipeReader() if self.plain else InteractiveReader("\n" + self.texts("user"), self.commands)
        if not self.plain:
            print_line(self.texts("welcome"))
            print_line(self.texts("answering", self.commands.describe(self.conversation.prefix)), flush=True)
        try:
            while True:
                try:
                    self._handle(reader.read())
                except KeyboardInterrupt:
                    if self.plain:
                        raise
                    print_line(self.texts("leave"))
        except (EOFError, Leave):
            return int(self.failed and self.plain)

    def _handle(self, line: str) -> None:
        """Carry out one line: a command, a question, or nothing."""
        if not line.strip():
            return
        try:
            result = self.commands.run(line)
            if result is not None:
                self._print_note(result)
                return
            self._answer(line)
        except (UserError, RuntimeError) as error:  # GenerationError, an error of the device, or a full queue
            self.failed = True
            print_error(f"{self.texts('error')}{' '.join(str(error).split())}")

    def _answer(self, query: str) -> None:
        """Stream one answer; Ctrl-C ends the answer, not the program."""
        answer = self.conversation.ask(query)
        self._note_dropped_rounds(answer.asked.dropped_rounds)
        if not self.plain:
            print_line(self._speaker(), end="", flush=True)
        pieces: Any = iter(answer)
        try:
            for piece in pieces:
                print_answer(piece)
            print_line(flush=True)
            if answer.truncated:
                self._print_note(self.texts("truncated"))
        except KeyboardInterrupt:
            if self.plain:
                raise
            print_line()
            print_line(self.texts("stopped"), flush=True)
        except GenerationError:
            print_line(flush=True)
            raise
        finally:
            pieces.close()

    def _speaker(self) -> str:
        """What stands before an answer: the model's name, and the prefix's in parentheses."""
        prefix = self.conversation.prefix
        suffix = "" if prefix.path is None else self.texts("named", prefix.name)
        return f"ChatGLM-6B{suffix}{self.texts('colon')}"

    def _note_dropped_rounds(self, dropped: int) -> None:
        """Say how many rounds no longer fit into the prompt, whenever the number grows."""
        if dropped > self._dropped_rounds:
            self._print_note(self.texts("dropped", dropped))
        self._dropped_rounds = dropped

    def _print_note(self, text: str) -> None:
        """A note on the conversation; on standard error in plain mode."""
        if self.plain:
            print_error_text(text)
        else:
            print_text(text, flush=True)
