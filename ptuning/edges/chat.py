"""``ptuning chat``: talk to the base model or to a prefix in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ptuning.plain.arguments import BUILT_IN_MODEL, ModelArguments
from ptuning.plain.errors import GenerationError, UserError
from ptuning.plain.parsing import SettingsParser

_COMMANDS = "clear 清空对话历史, stop 终止程序, Ctrl+C 停止当前回答"


@dataclass
class ChatArguments:
    """How a chat answers."""

    max_length: int = field(
        default=2048, metadata={"help": "Limit of prompt (with its history) and answer together, in tokens."}
    )
    max_new_tokens: int | None = field(default=None, metadata={"help": "Limit of the answer alone; beats max_length."})
    top_p: float = field(default=0.7, metadata={"help": "Share of the probability that is sampled from."})
    temperature: float = field(default=0.95, metadata={"help": "Of the sampling; 0 takes the likeliest token each time."})
    repetition_penalty: float = field(default=1.0, metadata={"help": "Above 1, tokens that were used already cost more."})
    greedy: bool = field(default=False, metadata={"help": "Always the likeliest token; the same as --temperature 0."})
    seed: int | None = field(default=None, metadata={"help": "Makes sampled answers repeatable."})
    no_history: bool = field(
        default=False, metadata={"help": "Ask every question on its own, as a prefix tuned on single questions expects."}
    )
    plain: bool = field(
        default=False, metadata={"help": "Answers only, one a line, without names and notes; for pipes."}
    )


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings or checkpoints that do not fit.
    """
    groups = {"model and prefix": ModelArguments, "answers": ChatArguments}
    parser = SettingsParser(
        groups,
        prog="ptuning chat",
        description="Talk to a model in the terminal. Without settings: the built-in tiny-chatglm.",
        positional="[CHECKPOINT]",
    )
    given = parser.parse(argv)
    model_settings = _model_settings(given)
    settings = given.build(ChatArguments)
    conversation = start(model_settings, settings)
    return talk(conversation, plain=settings.plain)


def _model_settings(given: Any) -> ModelArguments:
    """Which model to load: a folder named first is a prefix checkpoint, and nothing at all is the built-in model."""
    settings = given.build(ModelArguments)
    if given.folder is not None:
        if settings.ptuning_checkpoint is not None:
            raise UserError(f"{given.folder} and --ptuning_checkpoint {settings.ptuning_checkpoint}: name one checkpoint")
        settings.ptuning_checkpoint = given.folder
    if settings.model_name_or_path is None and settings.ptuning_checkpoint is None:
        settings.model_name_or_path = BUILT_IN_MODEL
    return settings


def start(model_settings: ModelArguments, settings: ChatArguments) -> Any:
    """Load model and tokenizer and make the conversation."""
    from ptuning.tuned.sampling import sampling_settings
    from ptuning.uses.conversation import Conversation
    from ptuning.uses.preparation import prepare_model, prepare_tokenizer

    temperature = 0.0 if settings.greedy else settings.temperature
    sampling_settings(top_p=settings.top_p, temperature=temperature)  # refuses bad values before anything is loaded
    tokenizer = prepare_tokenizer(model_settings)
    model = prepare_model(model_settings)
    if settings.seed is not None:
        import torch

        torch.manual_seed(settings.seed)
    keywords = {
        "max_length": settings.max_length,
        "max_new_tokens": settings.max_new_tokens,
        "top_p": settings.top_p,
        "temperature": temperature,
        "repetition_penalty": settings.repetition_penalty,
    }
    return Conversation(model, tokenizer, keywords, keep_history=not settings.no_history)


def talk(conversation: Any, *, plain: bool) -> int:
    """Read questions until ``stop`` or the end of the input, and stream the answers."""
    interactive = sys.stdin.isatty() and not plain
    if interactive:
        _enable_line_editing()
        print(f"欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话：{_COMMANDS}")
    while True:
        try:
            query = input("\n用户：" if interactive else "")
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print("\n输入 stop 终止程序")
            continue
        command = query.strip()
        if command in ("stop", "exit"):
            return 0
        if command == "clear":
            conversation.clear()
            if not plain:
                print("对话历史已清空")
            continue
        if command:
            _answer(conversation, query, name="" if plain else "ChatGLM-6B：")


def _answer(conversation: Any, query: str, name: str) -> None:
    """Stream one answer; Ctrl-C ends the answer, not the program."""
    print(name, end="", flush=True)
    pieces = conversation.ask(query)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print("\n(已停止)", flush=True)
    except (UserError, GenerationError) as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
    finally:
        pieces.close()


def _enable_line_editing() -> None:
    """Arrow keys and wide characters in ``input``, where this Python has readline (it has none on Windows)."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
