"""The contract between the layers and what does their attention: the hottest call of all.

A layer hands its fused projection to ``context.backend.attend(fused, context, layer)``. Three classes answer:
:class:`~ptuning.model.attention.DenseAttention` (training, evaluation, calibration, prompts of one prefix, transformers'
caches), the engine's ``StepCache`` (a token of every running row) and ``MixedPrefill`` (prompts of different prefixes).

Legend: B batch, T new tokens, S tokens seen (cached and new), P prefix slots, L layers, N heads, H head size, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ptuning.model.heads import HeadLayout
from ptuning.model.masks import SEES_ALL, AttentionMask
from ptuning.model.packing import Packing
from ptuning.model.prefix_encoder import PrefixKeyValues


class KeyValueCache(Protocol):
    """What keeps keys and values: transformers' caches, and the engine's ``PrefillWriter``. It holds no prefix."""

    def update(self, key: Tensor, value: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """Keep the keys and values [B, N, T, H] of new tokens, and give back all of the layer's, [B, N, S, H] each."""


class AttentionBackend(Protocol):
    """What does the attention of every layer of a pass, and keeps keys and values where it is to keep them."""

    def attend(self, fused: Tensor, context: AttentionContext, layer: int, /) -> Tensor:
        """Attend.

        Args:
            fused: queries, keys and values as the layer's first linear gives them, [B, T, 3NH]; not turned yet.
            context: of this pass.
            layer: its index.

        Returns:
            [B, T, NH], the heads side by side.
        """


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """What every layer of a pass needs beside its hidden states; made once a pass.

    Attributes:
        heads: how queries, keys and values lie in a layer's fused projection.
        rotary: cosines and sines of the new tokens' positions, each [B, 1, T, H].
        backend: does the attention.
        mask: over P+S columns, the prefix first.
        prefix: per layer a key and a value [1 or B, N, P, H], not turned; None without one, or where the backend knows
            every row's own.
        packing: where the tokens stand, if the hidden states [n, D] hold some of the batch only; None: they are [B, T, D].
    """

    heads: HeadLayout
    rotary: tuple[Tensor, Tensor]
    backend: AttentionBackend
    mask: AttentionMask = SEES_ALL
    prefix: PrefixKeyValues | None = None
    packing: Packing | None = None

    def keeping_all_tokens(self) -> AttentionContext:
        """The context of the layers before the last, which alone may leave tokens out."""
        if self.packing is None or self.packing.kept is None:
            return self
        return replace(self, packing=self.packing._replace(kept=None))

    def with_layer_prefix(self, layer: int, key: Tensor, value: Tensor) -> AttentionContext:
        """The same with another prefix in one layer."""
        prefix = list(self.prefix or ())
        prefix[layer] = (key, value)
        return replace(self, prefix=tuple(prefix))
