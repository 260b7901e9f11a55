"""``model.chat`` and ``model.stream_chat`` in their published form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ptuning.core.errors import UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine.sampling import sampling_settings
from ptuning.engine.text_stream import TextStream, reply_text
from ptuning.settings.answer_limits import checked, shown

Turn = tuple[str, str]
_CHECKED = ("top_k", "repetition_penalty", "no_repeat_ngram_size", "max_new_tokens")  # where they are given


class ChatMixin:
    """Conversation on top of ``generate``; the one prompt function of training and evaluation builds the prompts.

    Attributes:
        prompt_settings: keywords for that function that the attached prefix was trained with (source_prefix, legacy).
    """

    prompt_settings: dict[str, Any]

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
            temperature: of the sampling.
            kwargs: more settings of transformers' ``generate`` (repetition_penalty, no_repeat_ngram_size, …).

        Returns:
            the response and the history with this round added; the caller's history is left alone.

        Raises:
            UserError: a setting out of range, or a prompt that leaves no room for an answer.
            GenerationError: the model's scores are not finite.
        """
        inputs, settings = self._prepare(tokenizer, query, history, max_length, kwargs)
        settings |= sampling_settings(
            do_sample=do_sample, top_p=top_p, temperature=temperature, num_beams=num_beams
        )
        with _named_settings():
            ids = self.generate(inputs, **settings)[0, inputs.shape[1] :]  # type: ignore[attr-defined]
        response = reply_text(tokenizer, _without_end(ids.tolist(), tokenizer))
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
        character, a mark that becomes full-width) is held back until then. Closing the iterator stops the model within
        one token. Arguments and errors are those of :meth:`chat`; there are no beams.
        """
        if kwargs.get("num_beams") not in (None, 1):
            raise UserError(f"num_beams {kwargs['num_beams']} was given; stream_chat answers without beams, chat has them")
        inputs, settings = self._prepare(tokenizer, query, history, max_length, kwargs)
        settings |= sampling_settings(do_sample=do_sample, top_p=top_p, temperature=temperature)
        turns, stream, text, shown = _turns(history), TextStream(tokenizer), "", None
        for token in self._stream_tokens(inputs, settings):
            if token == tokenizer.eos_token_id:
                break
            text += stream.add(token)
            if text and text != shown:
                shown = text
                yield text, [*turns, (query, text)]
        text += stream.end()
        if text != shown:
            yield text, [*turns, (query, text)]

    def _prepare(
        self, tokenizer: Any, query: str, history: Any, max_length: int, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The prompt [1, T] and the limits of the answer."""
        if not isinstance(query, str):
            raise UserError(f"query {shown(query)} was given; allowed is a text")
        ids = prompt_ids(tokenizer, query, _turns(history), **self.prompt_settings)
        settings: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        settings |= kwargs
        for name in _CHECKED:
            if settings.get(name) is not None:
                settings[name] = checked(name, settings[name])
        max_length = checked("max_length", max_length)
        if settings.get("max_new_tokens") is None:
            settings.pop("max_new_tokens", None)
            if len(ids) >= max_length:
                raise UserError(
                    f"the prompt has {len(ids)} tokens and max_length is {max_length}, which counts prompt and answer: "
                    "raise max_length, shorten the history, or give max_new_tokens"
                )
            settings["max_length"] = max_length
        return torch.tensor([ids], device=self.device), settings  # type: ignore[attr-defined]

    def _stream_tokens(self, inputs: Tensor, settings: dict[str, Any]) -> Iterator[int]:
        """Run ``generate`` in a thread of its own and hand its tokens over one by one."""
        tokens: SimpleQueue[int | BaseException | None] = SimpleQueue()
        stop = Event()

        def work() -> None:
            try:
                with _named_settings():
                    self.generate(  # type: ignore[attr-defined]
                        inputs, **settings, streamer=_TokenQueue(tokens), stopping_criteria=[_StopWhenSet(stop)]
                    )
                tokens.put(None)
            except BaseException as error:  # noqa: BLE001  # handed to the reader, who raises it
                tokens.put(error)

        thread = Thread(target=work, name="stream_chat", daemon=True)
        thread.start()
        try:
            while (item := tokens.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


@contextmanager
def _named_settings() -> Iterator[None]:
    """transformers' complaints about keywords as an error of the user's."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"transformers' generate does not take these settings: {said}") from error


class _TokenQueue(BaseStreamer):
    """Puts every generated id in a queue; the first call brings the prompt, which is passed over."""

    def __init__(self, tokens: SimpleQueue[Any]) -> None:
        self.tokens, self.prompt_seen = tokens, False

    def put(self, value: Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            self.tokens.put(token)

    def end(self) -> None:
        """Nothing to do: the end of ``generate`` is told by its thread."""


class _StopWhenSet(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


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
