"""``model.chat`` and ``model.stream_chat`` in their published form.

Answers come from an engine of one row that is made for each of them: its parts are a few small tensors, and it reads the
weights and the prefix as they are at that moment, so nothing can be out of date, nothing is kept beside the model, and two
threads do not meet. Beams, and settings that only transformers knows, go to transformers' ``generate``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from ptuning.core.errors import UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.generate import generate_settings, generated_ids, stream_ids
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams
from ptuning.engine.text_stream import TextStream, reply_text
from ptuning.settings.answer_limits import MAX_SEED, checked, shown

Turn = tuple[str, str]

# Keywords of transformers that the engine follows as well, and what None stands for there.
_NEUTRAL = {"top_k": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
# What model.generation_config may say besides: chat says it itself, or it means nothing for one answer.
_WITHOUT_EFFECT = frozenset((
    "temperature", "top_p", "do_sample", "num_beams", "max_length", "bos_token_id", "eos_token_id", "pad_token_id",
    "transformers_version", "_from_model_config",
))  # fmt: skip


@dataclass(frozen=True)
class _Question:
    """One call of chat, with its settings.

    Attributes:
        ids: of the prompt.
        sampling: how the answer is drawn and where it ends.
        num_beams: beams; 1 for none.
        settings: keywords of ``generate`` as they were given.
        by_engine: whether the engine knows how to do all that.
    """

    ids: list[int]
    sampling: SamplingParams
    num_beams: int
    settings: dict[str, Any]
    by_engine: bool


class ChatMixin:
    """Conversation; the one prompt function of training and evaluation builds the prompts.

    Attributes:
        prompt_settings: keywords for that function that the attached prefix was trained with (source_prefix, legacy).
    """

    prompt_settings: dict[str, Any]
    generation_config: Any
    config: Any

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Sequence[str]] | None = None,
        max_length: int = 2048,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float = 0.7,
        temperature: float = 0.95,
        **kwargs: Any,
    ) -> tuple[str, list[Turn]]:
        """Answer a query.

        Args:
            tokenizer: of this model.
            query: what the user says.
            history: earlier (query, response) pairs, oldest first.
            max_length: limit of prompt and answer together, in tokens; ``max_new_tokens`` counts the answer alone.
            num_beams: beams; 1 for none.
            do_sample: False answers greedily, as temperature 0 does.
            top_p: share of the probability that is sampled from.
            temperature: of the sampling; its random numbers follow ``torch.manual_seed``.
            kwargs: more settings of transformers' ``generate`` (repetition_penalty, no_repeat_ngram_size, …).

        Returns:
            the response and the history with this round added; the caller's history is left alone.

        Raises:
            UserError: a setting out of range, or a prompt that leaves no room for an answer.
            GenerationError: the model's scores are not finite.
        """
        drawn = {"do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        question = self._question(tokenizer, query, history, max_length, num_beams, drawn, kwargs)
        response = (_engine_text if question.by_engine else _generated_text)(self, tokenizer, question)
        return response, [*_turns(history), (query, response)]

    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Sequence[str]] | None = None,
        max_length: int = 2048,
        do_sample: bool = True,
        top_p: float = 0.7,
        temperature: float = 0.95,
        **kwargs: Any,
    ) -> Iterator[tuple[str, list[Turn]]]:
        """Answer a query piece by piece: every item is the whole response so far with its history.

        What was given out stays: an item begins with the item before it, and whatever a later token may change (half a
        character, a mark that becomes full-width) is held back until then. Tokens are made while an item is waited for, so
        closing the iterator stops the model. Arguments and errors are those of :meth:`chat`; there are no beams.
        """
        if kwargs.get("num_beams") not in (None, 1):
            raise UserError(f"num_beams {kwargs['num_beams']} was given; stream_chat answers without beams, chat has them")
        kwargs.pop("num_beams", None)
        drawn = {"do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        question = self._question(tokenizer, query, history, max_length, 1, drawn, kwargs)
        turns, text = _turns(history), ""
        for piece in (_engine_pieces if question.by_engine else _generated_pieces)(self, tokenizer, question):
            text += piece
            yield text, [*turns, (query, text)]
        if not text:
            yield text, [*turns, (query, text)]

    def _question(
        self,
        tokenizer: Any,
        query: str,
        history: Any,
        max_length: int,
        num_beams: int,
        drawn: dict[str, Any],
        settings: dict[str, Any],
    ) -> _Question:
        """The prompt, with all settings checked."""
        if not isinstance(query, str):
            raise UserError(f"query {shown(query)} was given; allowed is a text")
        ids = prompt_ids(tokenizer, query, _turns(history), **self.prompt_settings)
        for name in (*_NEUTRAL, "max_new_tokens"):
            if settings.get(name) is not None:
                settings[name] = checked(name, settings[name])
        max_new_tokens, length = settings.get("max_new_tokens"), checked("max_length", max_length)
        if max_new_tokens is None and len(ids) >= length:
            raise UserError(
                f"the prompt has {len(ids)} tokens and max_length is {length}, which counts prompt and answer: "
                "raise max_length, shorten the history, or give max_new_tokens"
            )
        limit = {"max_length": length} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        configured = self._configured()
        followed = {name: value for name, value in (configured | settings).items() if name in _NEUTRAL}
        followed = {name: _NEUTRAL[name] if value is None else value for name, value in followed.items()}
        sampling = SamplingParams.from_settings(**drawn, **followed, **limit)
        num_beams = checked("num_beams", num_beams)
        foreign = (set(settings) | set(configured) - _WITHOUT_EFFECT) - {*_NEUTRAL, "max_new_tokens"}
        longest = length if max_new_tokens is None else len(ids) + max_new_tokens
        held = longest <= self.config.max_sequence_length
        return _Question(ids, sampling, num_beams, settings, held and num_beams == 1 and not foreign)

    def _configured(self) -> dict[str, Any]:
        """The values that were set in ``model.generation_config``."""
        usual = GenerationConfig.from_model_config(self.config).to_dict()  # type: ignore[arg-type]
        return {
            name: value
            for name, value in self.generation_config.to_dict().items()
            if value is not None and value != usual.get(name)
        }


# ---- by the engine


def _engine_text(model: Any, tokenizer: Any, question: _Question) -> str:
    """The answer; nothing is decoded before its end."""
    with _evaluating(model):
        engine, request = _engine(model, tokenizer, question)
        (done,) = engine.run([request])
    done.raise_for_error()
    return done.text


def _engine_pieces(model: Any, tokenizer: Any, question: _Question) -> Iterator[str]:
    """The answer piece by piece; a step is taken only when the next piece is requested."""
    pieces: deque[str] = deque()
    with _evaluating(model):
        engine, request = _engine(model, tokenizer, question)
        (generation,) = engine.submit([replace(request, stream=True)], lambda _, piece: pieces.append(piece))
    while generation.finish_reason is None:
        with _evaluating(model):
            engine.step()
        while pieces:
            if piece := pieces.popleft():  # an empty one is the news that it is over
                yield piece
    generation.raise_for_error()


def _engine(model: Any, tokenizer: Any, question: _Question) -> tuple[Engine, Request]:
    """An engine with the model's prefix as it is now, and the question as a request."""
    model.refuse_untrained_prefix()
    engine = Engine(model, tokenizer, max_rows=1, screened=False)
    with torch.no_grad():
        key_values = model.prefix_key_values()
    prefix = None if key_values is None else engine.add_prefix("attached", key_values)
    sampling = question.sampling
    if not sampling.greedy:
        sampling = replace(sampling, seed=int(torch.randint(MAX_SEED, ())))
    return engine, Request(question.ids, prefix, sampling)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model in eval mode, without dropout and checkpointing; whatever was in training mode is again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# ---- by transformers


def _generated_text(model: Any, tokenizer: Any, question: _Question) -> str:
    ids = generated_ids(model, question.ids, _keywords(tokenizer, question))
    return reply_text(tokenizer, _without_end(ids, tokenizer))


def _generated_pieces(model: Any, tokenizer: Any, question: _Question) -> Iterator[str]:
    stream, ids = TextStream(tokenizer), stream_ids(model, question.ids, _keywords(tokenizer, question))
    try:
        for token in ids:
            if token == tokenizer.eos_token_id:
                break
            if piece := stream.add(token):
                yield piece
    finally:
        ids.close()  # type: ignore[attr-defined]  # it is a generator: closing it ends its thread
    if piece := stream.end():
        yield piece


def _keywords(tokenizer: Any, question: _Question) -> dict[str, Any]:
    """The question's settings for ``generate``."""
    keywords: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    keywords |= question.settings | generate_settings(question.sampling) | {"num_beams": question.num_beams}
    if keywords.get("max_new_tokens") is None:
        keywords.pop("max_new_tokens", None)
        keywords["max_length"] = question.sampling.max_length
    return keywords


def _turns(history: Any) -> list[Turn]:
    """History as pairs of strings; lists, as they come out of JSON, are welcome.

    Raises:
        UserError: anything else.
    """
    turns: list[Turn] = []
    for number, turn in enumerate(history or []):
        if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise UserError(f"history round {number} is {turn!r}; every round is a pair [query, response] of strings")
        turns.append((turn[0], turn[1]))
    return turns


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """The ids of an answer up to its end token."""
    end = tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
