"""Answering with the habits of the published code, written down by us over our own weights.

transformers' ``generate`` drives it, as it drove the published model. The habits: logits of every position of the prompt;
the prefix made for every row in float32 and put at the front of the cache; a cache that is copied whole at every token; a
square mask that grows by a row and a column at every token; every row's ids turned into a Python list at every token, to
look for ``<sop>`` and the mask token; attention as two products with the scores in float32 between them; a packed weight
made float whole for every product.

Answers are those of our own ``generate``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmarks.plain_habits import PackedLinears, packed_linears, published_products
from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
from ptuning.model.float_linear import FloatLinear
from ptuning.model.positions import build_position_ids
from ptuning.model.rotary import apply_rotary, rotary_table

_HIDDEN = -10000.0  # the published score of a masked column


class PlainGeneration(ChatGLMForConditionalGeneration):
    """A model that shares every weight with another and answers the published way; made by :func:`plain_copy`.

    Attributes:
        packed: its quantised linears, whose whole weight is made float for every product.
    """

    packed: PackedLinears

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole sequence is gone through at every token, whatever of it is new."""
        lists = input_ids.tolist()
        starts = [ids.index(self.config.bos_token_id) for ids in lists]
        marks = [ids.index(self.config.gmask_token_id) for ids in lists]
        if not hasattr(past_key_values, "published_mask"):
            real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
            config = self.config
            past_key_values.published_mask = _square_mask(input_ids, starts, real)
            past_key_values.published_positions = build_position_ids(
                input_ids, real, config.bos_token_id, config.mask_token_id, config.gmask_token_id
            )
            return {"input_ids": input_ids, "past_key_values": past_key_values}
        if min(starts) < min(marks):  # the published code looks for both and uses one
            raise ValueError("a prompt holds <sop> before [gMASK]")
        return {"input_ids": input_ids[:, -1:], "past_key_values": past_key_values}

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Logits of every position that goes in."""
        cache, config = past_key_values, self.config
        batch, tokens = input_ids.shape
        if cache.get_seq_length() == 0:
            mask, positions = cache.published_mask, cache.published_positions
            self._put_prefix(cache, batch)
        else:
            cache.published_mask = mask = _grown(cache.published_mask)
            last = cache.published_positions[:, :, -1:].clone()
            last[:, 1] += 1
            cache.published_positions = torch.cat((cache.published_positions, last), dim=2)
            positions = last
        mask = mask[:, :, -tokens:]
        prefix = cache.get_seq_length() + tokens - mask.shape[-1]
        mask = torch.cat((mask.new_zeros(batch, 1, tokens, prefix), mask), dim=-1)
        hidden = self.transformer.word_embeddings(input_ids)
        rotary = rotary_table(positions, config.head_dim)
        layers: Any = self.transformer.layers
        for number, layer in enumerate(layers):
            normed = layer.input_layernorm(hidden)
            hidden = layer.alpha * normed + self._attention(layer.attention, normed, rotary, mask, cache, number)
            normed = layer.post_attention_layernorm(hidden)
            inner = F.gelu(_linear(layer.mlp.dense_h_to_4h, normed), approximate="tanh")
            hidden = layer.alpha * normed + _linear(layer.mlp.dense_4h_to_h, inner)
        logits = _linear(self.lm_head, self.transformer.final_layernorm(hidden))
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _put_prefix(self, cache: Any, rows: int) -> None:
        """The prefix of every row, made in float32, at the front of the cache."""
        encoder = self.prefix_encoder
        if encoder is None or not self._prefix_on:
            return
        for number, (key, value) in enumerate(encoder(torch.float32)):
            copied = [tensor.expand(rows, -1, -1, -1).contiguous().to(self.dtype) for tensor in (key, value)]
            cache.update(*copied, number)

    def _attention(
        self, module: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, cache: Any, number: int
    ) -> Tensor:
        batch, tokens, width = hidden.shape
        fused = _linear(module.query_key_value, hidden)
        fused = fused.view(batch, tokens, self.config.num_attention_heads, 3, -1).permute(3, 0, 2, 1, 4)
        query, key = apply_rotary(fused[:2], *rotary)
        key, value = cache.update(key, fused[2], number)
        scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(2, 3))
        scores = scores.masked_fill(mask, _HIDDEN).float()
        mixed = torch.matmul(torch.softmax(scores, dim=-1).to(value.dtype), value)
        return _linear(module.dense, mixed.transpose(1, 2).reshape(batch, tokens, width))

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own."""
        with published_products(self.packed):
            return GenerationMixin.generate(self, *args, past_key_values=DynamicCache(), **kwargs)  # type: ignore[arg-type]


def _linear(module: Any, inputs: Tensor) -> Tensor:
    """Float weights as ``nn.Linear`` multiplies them: only ours chooses the library by the number of rows."""
    if isinstance(module, FloatLinear):
        return F.linear(inputs, module.weight, module.bias)
    return module(inputs)  # type: ignore[no-any-return]


def plain_copy(model: ChatGLMForConditionalGeneration) -> PlainGeneration:
    """The same weights, prefix included, under the published way of answering."""
    copied: Any = copy.copy(model)
    copied.__class__ = PlainGeneration
    copied.packed = packed_linears(model)
    return copied  # type: ignore[no-any-return]


def _square_mask(ids: Tensor, starts: Sequence[int], real: Tensor | None) -> Tensor:
    """True where a column is masked, [B, 1, T, T]."""
    batch, tokens = ids.shape
    allowed = torch.ones(batch, tokens, tokens, device=ids.device).tril_()
    for row, start in enumerate(starts):
        allowed[row, :, :start] = 1
    if real is not None:
        allowed = allowed * real[:, None, :]
    return (allowed < 0.5)[:, None]


def _grown(mask: Tensor) -> Tensor:
    """One more row and column; the new token sees what the last one saw, and itself."""
    mask = torch.cat((mask, mask.new_ones(*mask.shape[:3], 1)), dim=3)
    last = mask[:, :, -1:].clone()
    last[..., -1] = False
    return torch.cat((mask, last), dim=2)
