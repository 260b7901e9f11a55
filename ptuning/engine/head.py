"""From the last states of the rows to their next tokens: scores of the whole vocabulary, or of the likeliest tokens only.

Legend: A rows, D hidden, V vocabulary, K likeliest tokens considered.
"""

from __future__ import annotations

import logging
import weakref

import torch
from torch import Tensor

from ptuning.engine.sampler import Sampler
from ptuning.kernels import dispatch, screening
from ptuning.model.linear import Linear

logger = logging.getLogger(__name__)

_MISSES = 4  # in a row; then this head's scores are too much alike for screening


class Head:
    """A model's head, which makes up most of a small model's work for a token.

    A float32 step on a CPU in which every row takes its likeliest token, or draws among ``top_k``, screens the head
    (:mod:`ptuning.kernels.screening`): the tokens are those of the whole product. The copy that this takes, a byte a
    weight, is made at the first such step; beside a head of half precision only where ``PTUNING_MEMORY`` allows for it.

    Args:
        linear: the head; where it is screened, it does not change while this lives.
        screened: False always makes the whole product, and no copy.
    """

    def __init__(self, linear: Linear, screened: bool = True) -> None:
        self.linear = linear
        self._copy: screening.ScreenedWeight | None = None
        self._copy_tried = not screened
        self._misses = 0

    def sample(self, sampler: Sampler, states: Tensor) -> Tensor:
        """The next token of every row, [A].

        Args:
            sampler: of the rows.
            states: [A, D].
        """
        likeliest = self._likeliest(states, sampler.max_likeliest) if sampler.max_likeliest else None
        return sampler.sample(self.linear(states)) if likeliest is None else sampler.sample_likeliest(*likeliest)

    def _likeliest(self, states: Tensor, count: int) -> screening.Likeliest | None:
        if states.dtype != torch.float32 or not states.is_cpu or self._misses == _MISSES:
            return None
        if not self._copy_tried:
            self._copy_tried = True
            try:
                self._copy = _copy_of(self.linear)
            except (RuntimeError, MemoryError):  # memory, most likely: nothing that an answer depends on
                logger.exception("the head cannot be screened")
        if self._copy is None:
            return None
        likeliest = self._copy.likeliest(states, min(count, len(self._copy.weight)))
        self._misses = self._misses + 1 if likeliest is None else 0
        if self._misses == _MISSES:
            self._copy = None
        return likeliest


def _copy_of(linear: Linear) -> screening.ScreenedWeight | None:
    """A copy in bytes for screening; None where this head cannot be screened, or memory is not allowed for it."""
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor) or getattr(linear, "bias", None) is not None or not screening.fits(weight):
        return None
    amount = weight.numel()
    if weight.dtype != torch.float32 and not dispatch.RESIDENT.take(amount):
        return None
    try:
        copy = screening.ScreenedWeight(weight)
    except BaseException:
        if weight.dtype != torch.float32:
            dispatch.RESIDENT.give_back(amount)
        raise
    if weight.dtype != torch.float32:
        weakref.finalize(copy, dispatch.RESIDENT.give_back, amount)
    return copy if copy.usable else None
