"""``ptuning chat``: talk to the base model or to prefixes in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptuning.edges.language import LanguageChoice, language_of_environment
from ptuning.edges.opening import open_service, served_model
from ptuning.settings.arguments import AnswerArguments, ServingArguments
from ptuning.settings.parsing import SettingsParser

if TYPE_CHECKING:
    from ptuning.serving.conversation import Conversation


@dataclass
class ChatArguments:
    """How the terminal behaves."""

    no_history: bool | None = field(
        default=None,
        metadata={
            "help": "Ask every question on its own, as a prefix tuned on single questions expects; --no_history false never "
            "does. Not given: as the prefix was tuned."
        },
    )
    plain: bool = field(
        default=False,
        metadata={"help": "Answers only, without names and notes; by itself where input or output is no terminal."},
    )
    lang: LanguageChoice = field(
        default="auto", metadata={"help": "Language of names and notes; auto: by LANG, Chinese where that says nothing."}
    )


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings or checkpoints that do not fit.
    """
    groups = {"model and prefixes": ServingArguments, "answers": AnswerArguments, "terminal": ChatArguments}
    parser = SettingsParser(
        groups,
        prog="ptuning chat",
        description="Talk to a model in the terminal. Without settings: the built-in tiny-chatglm.",
        positional="[CONFIG] [CHECKPOINT]",
    )
    given = parser.parse(argv)
    settings = given.build(ChatArguments)
    conversation = start(served_model(given), given.build(AnswerArguments), settings)
    from ptuning.edges.terminal import ChatTerminal
    from ptuning.edges.terminal_texts import Texts

    language = language_of_environment() if settings.lang == "auto" else settings.lang
    plain = settings.plain or not (sys.stdin.isatty() and sys.stdout.isatty())
    try:
        return ChatTerminal(conversation, Texts(language), plain=plain).run()
    finally:
        conversation.service.stop()


def start(model: ServingArguments, answers: AnswerArguments, settings: ChatArguments) -> Conversation:
    """Load model and prefixes and begin a conversation."""
    service = open_service(model, max_rows=1).start()
    from ptuning.serving.conversation import Conversation

    return Conversation(service, answers, settings.no_history)
