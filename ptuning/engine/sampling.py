"""Settings of one generation, as the published interfaces name them, and the guard against broken scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ptuning.core.errors import GenerationError, UserError
from ptuning.settings.answer_limits import checked, shown


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


def sampling_settings(
    *, do_sample: bool = True, top_p: float = 0.7, temperature: float = 0.95, num_beams: int = 1
) -> dict[str, Any]:
    """Checked keywords for ``generate``. Temperature 0 means greedy, and 0 is a value, never a default.

    Raises:
        UserError: a value out of range, with the range.
    """
    temperature, top_p, num_beams = (
        checked(name, value) for name, value in (("temperature", temperature), ("top_p", top_p), ("num_beams", num_beams))
    )
    if not isinstance(do_sample, bool):
        raise UserError(f"do_sample {shown(do_sample)} was given; allowed are True and False")
    if not do_sample or temperature == 0:
        # Without sampling these settings mean nothing; None keeps a generation_config.json from bringing them back.
        return {"do_sample": False, "top_p": None, "top_k": None, "temperature": None, "num_beams": num_beams}
    return {"do_sample": True, "top_p": top_p, "temperature": temperature, "num_beams": num_beams}
