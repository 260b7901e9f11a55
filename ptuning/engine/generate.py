"""transformers' ``generate`` over the network: for beams, and for settings that only transformers knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ptuning.core.errors import GenerationError, UserError
from ptuning.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ptuning.model.network import ChatGLMNetwork


class FiniteScores(LogitsProcessor):
    """Stops at scores that are NaN or infinite instead of answering nonsense."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] scores of the next token, passed on unchanged.

        Raises:
            GenerationError: a row with NaN or +infinity, or without any finite score.
        """
        broken = torch.isnan(scores) | (scores == torch.inf)
        # -inf alone is how other processors forbid a token
        if bool((broken.any(dim=-1) | (scores == -torch.inf).all(dim=-1)).any()):
            raise GenerationError(
                f"the scores of token {input_ids.shape[1]} are NaN or infinite: the weights or the prefix are damaged, or "
                f"{scores.dtype} is too narrow for them. Try --dtype bfloat16 or float32; if it stays, take an earlier "
                "checkpoint"
            )
        return scores


class PromptCountedPenalty(float):
    """A beam search's length penalty that counts the prompt as well, as at the time of the published code.

    A beam's score is its log probability over ``length ** penalty``. Today's transformers puts the number of generated
    tokens there; in the releases that ran ChatGLM-6B it was the length of the whole sequence without its end token, so
    the same weights gave other answers. transformers computes ``generated ** penalty`` and Python asks this class.
    """

    prompt_length: int

    def __new__(cls, penalty: float, prompt_length: int) -> PromptCountedPenalty:
        made = super().__new__(cls, penalty)
        made.prompt_length = prompt_length
        return made

    def __rpow__(self, generated: int, mod: None = None) -> float:  # type: ignore[override]
        return float(self.prompt_length + generated - 1) ** float(self)

    def __deepcopy__(self, memo: Any) -> PromptCountedPenalty:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptCountedPenalty, (float(self), self.prompt_length)


@torch.no_grad()
def generate(model: ChatGLMNetwork, *args: Any, **kwargs: Any) -> Any:
    """Generate as transformers does (greedy, sampled, beams, batches with left padding).

    The keys and values of the attached prefix are computed once for the whole call.

    Args:
        model: with or without a prefix.
        args: of transformers' ``generate``; ``kwargs`` likewise.

    Raises:
        UserError: the prefix was never trained.
        GenerationError: the model's scores are NaN or infinite.
    """
    model.refuse_untrained_prefix()
    processors = list(kwargs.pop("logits_processor", None) or [])
    kwargs["logits_processor"] = LogitsProcessorList([FiniteScores(), *processors])
    if kwargs.get("prefix_key_values") is None:
        kwargs["prefix_key_values"] = model.prefix_key_values()
    _count_prompt_in_beams(model, args, kwargs)
    return GenerationMixin.generate(model, *args, **kwargs)  # type: ignore[arg-type, misc]


def _count_prompt_in_beams(model: ChatGLMNetwork, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Beams are compared as in the published code; see :class:`PromptCountedPenalty`."""
    config = kwargs.get("generation_config") or model.generation_config
    prompt = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    if prompt is None or (kwargs.get("num_beams") or config.num_beams or 1) == 1:
        return
    penalty = kwargs.get("length_penalty")
    penalty = config.length_penalty if penalty is None else penalty
    kwargs["length_penalty"] = PromptCountedPenalty(1.0 if penalty is None else penalty, prompt.shape[1])


def generate_settings(sampling: SamplingParams) -> dict[str, Any]:
    """How tokens are drawn, as keywords of ``generate``."""
    if sampling.greedy:
        # Without sampling these settings mean nothing; None keeps a generation_config.json from bringing them back.
        return {"do_sample": False, "top_p": None, "top_k": None, "temperature": None}
    return {"do_sample": True, "top_p": sampling.top_p, "temperature": sampling.temperature}


def generated_ids(model: Any, prompt: list[int], settings: dict[str, Any]) -> list[int]:
    """The ids of the answer to one prompt, with whatever follows its end.

    Args:
        model: of the public class, with or without a prefix.
        prompt: ids.
        settings: keywords of ``generate``.

    Raises:
        UserError: a keyword that transformers does not take.
    """
    inputs = torch.tensor([prompt], device=model.device)
    with _named_settings():
        return model.generate(inputs, **settings)[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def stream_ids(model: Any, prompt: list[int], settings: dict[str, Any]) -> Iterator[int]:
    """The same id by id, from a thread of its own; closing the iterator stops it within one token."""
    inputs = torch.tensor([prompt], device=model.device)
    tokens: SimpleQueue[int | BaseException | None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        try:
            with _named_settings():
                model.generate(inputs, **settings, streamer=_TokenQueue(tokens), stopping_criteria=[_StopWhenSet(stop)])
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
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"transformers' generate does not take these settings: {reason}") from error


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
