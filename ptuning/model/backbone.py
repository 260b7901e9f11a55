"""The frozen GLM backbone of ChatGLM-6B, to be read from top to bottom.

Legend: B batch, T new tokens, S tokens seen, P prefix slots, L layers, N heads, H head size, D hidden, V vocabulary.

Source: "GLM: General Language Model Pretraining with Autoregressive Blank Infilling" (Du et al. 2022) and the published
ChatGLM-6B checkpoints, whose parameter names are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from ptuning.core.errors import UserError
from ptuning.kernels.gelu import gelu
from ptuning.model.attention import LinearFactory, Packing, SelfAttention, Visibility
from ptuning.model.config import ChatGLMConfig
from ptuning.model.positions import (
    SequenceState,
    build_position_ids,
    continue_positions,
    finish_visibility,
    pack,
    prefix_lm_visibility,
    step_visibility,
)
from ptuning.model.prefix_encoder import PrefixKeyValues
from ptuning.model.rotary import rotary_table


class BackboneOutput(NamedTuple):
    """What the backbone gives back.

    Attributes:
        last_hidden_state: [B, T, D], after the final layer norm; [W, D] where only some positions were wanted.
        past_key_values: the cache, or None when none was asked for.
        hidden_states: L+1 tensors [B, T, D] when asked for, else None.
    """

    last_hidden_state: Tensor
    past_key_values: Cache | None
    hidden_states: tuple[Tensor, ...] | None


class MLP(nn.Module):
    """Linear, GELU in its tanh form, Linear."""

    def __init__(self, config: ChatGLMConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.dense_h_to_4h = linear(config.hidden_size, config.inner_hidden_size, bias=True)
        self.dense_4h_to_h = linear(config.inner_hidden_size, config.hidden_size, bias=True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.dense_4h_to_h(gelu(self.dense_h_to_4h(hidden_states)))


class Block(nn.Module):
    """One layer. Both residuals start from the *normalised* input, scaled by alpha = sqrt(2L)."""

    def __init__(self, config: ChatGLMConfig, layer_index: int, linear: LinearFactory) -> None:
        super().__init__()
        self.alpha = math.sqrt(2 * config.num_layers)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config.hidden_size, config.num_attention_heads, layer_index, linear)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(config, linear)

    def forward(
        self,
        hidden_states: Tensor,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        visibility: Visibility,
        cache: Cache | None,
        packing: Packing | None = None,
    ) -> Tensor:
        """[B, T, D] to the same, with a packing [n, D] to [n or w, D]; the arguments are those of :class:`SelfAttention`."""
        normed = self.input_layernorm(hidden_states)
        attended = self.attention(normed, rotary, visibility, prefix_key, prefix_value, cache, packing)
        if packing is not None:
            normed = packing.narrow(normed)
        hidden_states = torch.add(attended, normed, alpha=self.alpha)
        normed = self.post_attention_layernorm(hidden_states)
        return torch.add(self.mlp(normed), normed, alpha=self.alpha)


class ChatGLMModel(nn.Module):
    """Embedding, L blocks, final layer norm.

    Args:
        config: sizes and special ids.
        linear: class of the linears in the blocks, called as ``linear(in, out, bias=True)``.
        embedding: class of the embedding, called as ``embedding(V, D)``.
        block: class of the layers, called as ``block(config, index, linear)``.
    """

    def __init__(
        self,
        config: ChatGLMConfig,
        linear: LinearFactory = nn.Linear,
        embedding: Callable[..., nn.Module] = nn.Embedding,
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(block(config, index, linear) for index in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        prefix_key_values: PrefixKeyValues | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        wanted: Tensor | None = None,
    ) -> BackboneOutput:
        """Run the backbone.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T] (behind a cache [B, S]), 1 for real tokens; or the published bool [B, 1, T, S] with True
                for *masked*; or None where nothing is padding.
            position_ids: [B, 2, T]; None builds them from the ids, or goes on from the cache.
            past_key_values: cache of earlier tokens, without the prefix.
            inputs_embeds: [B, T, D] in place of the embedding of ``input_ids``, which still give masks and positions.
            prefix_key_values: per layer a key and a value, [1 or B, N, P, H].
            use_cache: whether to return a cache.
            output_hidden_states: whether to return every layer's output.
            wanted: bool [B, T], positions whose states are asked for (of a sequence from its start, without
                ``output_hidden_states``). Padding, and what no wanted position sees, is not computed then.

        Raises:
            UserError: ids without ``<sop>`` or mask token, or shapes that do not fit.
        """
        if input_ids is None:
            raise UserError("input_ids are needed: masks and positions are built from them (inputs_embeds may be added)")
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        prefix = 0 if prefix_key_values is None else prefix_key_values[0][0].shape[2]
        positions, visibility, state = self._place(input_ids, attention_mask, position_ids, cache, prefix)
        rotary = rotary_table(positions, self.config.head_dim)
        packing = None if wanted is None else pack(input_ids, state.real, wanted, self.config.bos_token_id)
        hidden_states = self._embed(input_ids, inputs_embeds, packing)
        collected = [hidden_states] if output_hidden_states else []
        for index, layer in enumerate(self.layers):
            key, value = (None, None) if prefix_key_values is None else prefix_key_values[index]
            last = index + 1 == len(self.layers)  # it alone may leave tokens out
            packed = packing if last or packing is None else packing._replace(kept=None)
            hidden_states = layer(hidden_states, key, value, rotary, visibility, cache, packed)
            if output_hidden_states:
                collected.append(hidden_states)
        if cache is not None:
            cache.glm_state = state  # type: ignore[attr-defined]  # the cache is where the sequence stands
        hidden_states = self.final_layernorm(hidden_states)
        return BackboneOutput(hidden_states, cache, tuple(collected) if output_hidden_states else None)

    def _embed(self, input_ids: Tensor, inputs_embeds: Tensor | None, packing: Packing | None) -> Tensor:
        """[B, T, D]; with a packing [n, D]."""
        if packing is None:
            return self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        places = slice(None) if packing.places is None else packing.places
        if inputs_embeds is not None:
            return inputs_embeds.flatten(0, 1)[places]
        embedded: Tensor = self.word_embeddings(input_ids.flatten()[places])
        return embedded

    def _place(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        prefix: int,
    ) -> tuple[Tensor, Visibility, SequenceState]:
        """Positions, mask, and what the cache is to remember for the next call."""
        config, tokens = self.config, input_ids.shape[1]
        cached = 0 if cache is None else int(cache.get_seq_length())
        seen = cached + tokens
        state: SequenceState | None = getattr(cache, "glm_state", None) if cached else None
        real = _real_tokens(attention_mask, state, seen, tokens)
        if position_ids is not None:
            if position_ids.shape[1:] != (2, tokens):
                raise UserError(f"position_ids have shape {tuple(position_ids.shape)}; allowed is [batch, 2, {tokens}]")
            positions = position_ids
        elif not cached:
            positions = build_position_ids(
                input_ids, real, config.bos_token_id, config.mask_token_id, config.gmask_token_id
            )
        elif state is not None:
            positions = continue_positions(state, tokens)
        else:
            raise UserError("this cache was not filled by ChatGLM: give position_ids [batch, 2, tokens] with it")
        if attention_mask is not None and attention_mask.dim() == 4:
            visibility = finish_visibility(~_published_mask(attention_mask, tokens, seen), prefix)
        elif cached:
            visibility = step_visibility(real, tokens, seen, prefix, input_ids.device)
        else:
            visibility = prefix_lm_visibility(input_ids, real, config.bos_token_id, prefix)
        return positions, visibility, SequenceState(positions[:, :, -1:], real)


def _real_tokens(mask: Tensor | None, state: SequenceState | None, seen: int, tokens: int) -> Tensor | None:
    """Bool [B, S], False at padding, or None where every token is real."""
    if mask is None:
        if state is None or state.real is None:
            return None
        return torch.cat((state.real, state.real.new_ones(state.real.shape[0], tokens)), dim=1)
    if mask.dim() == 4:
        # The newest token sees every real column, so what it does not see is padding.
        real = ~_published_mask(mask, tokens, seen)[:, 0, -1]
        return None if bool(real.all()) else real
    if mask.dim() != 2 or mask.shape[1] != seen:
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)}; allowed are [batch, {seen}] with 1 for real tokens and "
            f"the published [batch, 1, {tokens}, {seen}] with True for masked ones"
        )
    real = mask.bool()
    return None if bool(real.all()) else real


def _published_mask(mask: Tensor, tokens: int, seen: int) -> Tensor:
    """Check a published 4-D mask; its last rows belong to the new tokens."""
    if mask.dtype != torch.bool or mask.shape[3] != seen or mask.shape[2] < tokens:
        raise UserError(
            f"a 4-D attention_mask must be bool [batch, 1, {tokens}, {seen}] with True for masked; "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask[:, :, -tokens:]
