"""Questions to answers, for every front end: prefix by name, history that fits, settings checked, engine asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptuning.checkpoint.adapter import read_adapter
from ptuning.checkpoint.checkpoint import base_model_of, open_base
from ptuning.checkpoint.load import prepare_answering_model
from ptuning.data.truncation import fitting_prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import Generation, Listener, Request
from ptuning.engine.sampling_params import SamplingParams
from ptuning.engine.worker import EngineWorker
from ptuning.serving.prefix_store import PrefixStore, StoredPrefix, named_checkpoints
from ptuning.settings.answer_limits import MAX_SEED, checked, checked_history
from ptuning.settings.arguments import BUILT_IN_MODEL, ServingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question in a conversation.

    Attributes:
        query: what the user says.
        history: earlier (query, response) pairs, oldest first.
        model: name of a prefix or of the base model; None is the store's default.
        sampling: how the answer is drawn and where it ends.
        stream: whether the answer is delivered in pieces.
        choices: how many answers; with a seed, each has its own, counted up from it.
    """

    query: str
    history: Sequence[Sequence[str]] = ()
    model: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stream: bool = False
    choices: int = 1


@dataclass(frozen=True)
class Asked:
    """A question on its way.

    Attributes:
        generations: one for each choice, in their order.
        prefix: that answers.
        prompt_tokens: of the prompt.
        dropped_rounds: how many of the oldest rounds did not fit and were left out.
    """

    generations: list[Generation]
    prefix: StoredPrefix
    prompt_tokens: int
    dropped_rounds: int

    @property
    def note(self) -> str | None:
        """What the user should know about the history, if anything."""
        if not self.dropped_rounds:
            return None
        rounds = "round" if self.dropped_rounds == 1 else f"{self.dropped_rounds} rounds"
        return f"the conversation is longer than the model can hold: its oldest {rounds} left out"

    def cancel(self) -> None:
        """Stop all of its answers within one step."""
        for generation in self.generations:
            generation.cancel()


class ChatService:
    """One model with its prefixes, ready to answer anybody. A thread of its own drives the engine.

    Args:
        engine: not driven by anybody yet.
        store: of the engine.
    """

    def __init__(self, engine: Engine, store: PrefixStore) -> None:
        self.engine, self.store = engine, store
        self.worker = EngineWorker(engine)

    def start(self) -> ChatService:
        """Begin to answer."""
        self.worker.start()
        return self

    def stop(self) -> None:
        """Cancel what runs and end the thread."""
        self.worker.stop()

    def ask(self, question: Question, listener: Listener | None = None) -> Asked:
        """Put a question; returns at once. May be called from any thread.

        Args:
            question: and its settings.
            listener: called from the engine's thread with pieces (when streaming) and at the end; without one, the
                generations' ``pieces()`` and ``wait()`` serve.

        Raises:
            UserError: settings out of range, a question that is too long, an unknown name.
            QueueFullError: too many wait already.
        """
        checked("n", question.choices)
        checked_history(question.history)
        prefix, sampling = self.store.get(question.model), question.sampling
        ids, dropped = fitting_prompt_ids(
            self.engine.tokenizer, question.query, list(question.history),
            limit=sampling.context_limit(self.engine.max_length), room=sampling.max_new_tokens, **prefix.prompt_settings,
        )  # fmt: skip
        seeds: list[int | None] = [sampling.seed] * question.choices
        if sampling.seed is not None:
            seeds = [(sampling.seed + number) % (MAX_SEED + 1) for number in range(question.choices)]
        requests = [Request(ids, prefix.shared, replace(sampling, seed=seed), question.stream) for seed in seeds]
        return Asked(self.engine.submit(requests, listener), prefix, len(ids), dropped)


def load_service(settings: ServingArguments, **engine: Any) -> ChatService:
    """A service from settings: the model, its tokenizer, and every prefix that is named. Not started yet.

    Without a model's name the first prefix tells which one it belongs to, and without any it is the built-in one.

    Args:
        settings: which model and prefixes.
        engine: settings of :class:`~ptuning.engine.engine.Engine`.

    Raises:
        UserError: whatever does not fit; checkpoints are checked before the model is loaded.
    """
    named = [pair for given in settings.ptuning_checkpoint or () for pair in named_checkpoints(given)]
    projection = settings.prefix_projection or None  # False is also what a flag says that nobody gave
    adapters = [
        (name, read_adapter(path, pre_seq_len=settings.pre_seq_len, prefix_projection=projection)) for name, path in named
    ]
    name = settings.model_name_or_path
    if name is None:
        name = base_model_of(adapters[0][1], named[0][1]) if named else BUILT_IN_MODEL
    opened = open_base(name, settings)
    for _, adapter in adapters:
        adapter.check_model(opened.config)
    tokenizer, model = opened.tokenizer, prepare_answering_model(opened, settings)
    served = Engine(model, tokenizer, **engine)
    store = PrefixStore(served, Path(name).name or Path(name).resolve().name)
    store.add_all(adapters)
    return ChatService(served, store)
