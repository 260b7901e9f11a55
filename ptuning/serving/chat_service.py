"""Questions to answers, for every front end: prefix by name, history that fits, settings checked, engine asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ptuning.checkpoint.adapter import read_adapter
from ptuning.checkpoint.preparation import base_model_name, prepare_answering_model, prepare_tokenizer
from ptuning.data.preprocess import fitting_prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import Generation, Listener, Request, Sampling
from ptuning.engine.worker import EngineWorker
from ptuning.serving.prefix_store import PrefixStore, StoredPrefix, named_checkpoints
from ptuning.settings.answer_limits import MAX_SEED, checked, checked_history, checked_stops
from ptuning.settings.arguments import BUILT_IN_MODEL, ModelArguments, ServingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question in a conversation.

    Attributes:
        query: what the user says.
        history: earlier (query, response) pairs, oldest first.
        model: name of a prefix or of the base model; None is the store's default.
        sampling: how tokens are drawn.
        max_length: limit of prompt and answer together; None: what the model can hold.
        max_new_tokens: limit of the answer alone; None: what is left.
        stop: the answer ends before the first of these texts.
        stream: whether the answer is wanted in pieces.
        choices: how many answers; with a seed, each has its own, counted up from it.
    """

    query: str
    history: Sequence[Sequence[str]] = ()
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_length: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
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
        for name in ("max_length", "max_new_tokens"):
            if getattr(question, name) is not None:
                checked(name, getattr(question, name))
        checked_stops(question.stop)
        checked_history(question.history)
        prefix = self.store.get(question.model)
        most = self.engine.max_length
        limit = most if question.max_length is None else min(question.max_length, most)
        ids, dropped = fitting_prompt_ids(
            self.engine.tokenizer, question.query, list(question.history), limit=limit, room=question.max_new_tokens,
            **prefix.prompt_settings,
        )
        room = limit - len(ids)
        request = Request(
            ids,
            prefix.shared,
            question.sampling,
            room if question.max_new_tokens is None else min(room, question.max_new_tokens),
            question.stop,
            question.stream,
        )
        requests = [request] * question.choices
        seed = question.sampling.seed
        if seed is not None:
            seeds = [(seed + number) % (MAX_SEED + 1) for number in range(question.choices)]
            requests = [replace(request, sampling=replace(question.sampling, seed=one)) for one in seeds]
        return Asked(self.engine.submit(requests, listener), prefix, len(ids), dropped)


def load_service(settings: ServingArguments, **engine: Any) -> ChatService:
    """A service from settings: the model, its tokenizer, and every prefix that is named. Not started yet.

    Without a model's name the first prefix tells which one it belongs to, and without any it is the built-in one.

    Args:
        settings: which model and prefixes.
        engine: settings of :class:`~ptuning.engine.engine.Engine`.

    Raises:
        UserError: whatever does not fit; checkpoints are looked at before the model is loaded.
    """
    given = settings.ptuning_checkpoint or []
    for _, path in (pair for one in given for pair in named_checkpoints(one)):
        read_adapter(path, pre_seq_len=settings.pre_seq_len, prefix_projection=settings.prefix_projection or None)
    first = str(named_checkpoints(given[0])[0][1]) if given else None
    values = {item.name: getattr(settings, item.name) for item in fields(ModelArguments)}
    chosen = ModelArguments(**values | {"ptuning_checkpoint": first, "pre_seq_len": None, "prefix_projection": False})
    if chosen.model_name_or_path is None:
        chosen.model_name_or_path = base_model_name(chosen) if given else BUILT_IN_MODEL
    chosen.ptuning_checkpoint = None
    tokenizer, model = prepare_tokenizer(chosen), prepare_answering_model(chosen)
    base = Path(chosen.model_name_or_path).name or Path(chosen.model_name_or_path).resolve().name
    made = Engine(model, tokenizer, **engine)
    store = PrefixStore(made, base)
    store.load_all(given)
    return ChatService(made, store)
