"""The frozen GLM backbone, to be read from top to bottom; what differs between its generations is the family's.

Legend: B batch, T new tokens, S tokens seen (cached and new), P prefix slots, L layers, N heads, H head size, D hidden,
K position ids of a token, V vocabulary, n tokens of a packed batch, w those that are kept.

Source: "GLM: General Language Model Pretraining with Autoregressive Blank Infilling" (Du et al. 2022) and the published
ChatGLM-6B checkpoints, whose parameter names are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from transformers.cache_utils import Cache

from ptuning.core.errors import UserError
from ptuning.model.attention import DenseAttention
from ptuning.model.attention_context import AttentionBackend, AttentionContext
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families.family import Family
from ptuning.model.layers import Block, run_layers
from ptuning.model.linear import LinearFactory
from ptuning.model.masks import (
    SEES_ALL,
    AttentionMask,
    cached_mask,
    mask_with_prefix,
    published_mask,
    real_tokens,
    sequence_mask,
)
from ptuning.model.packing import Packing, pack
from ptuning.model.positions import continue_positions
from ptuning.model.prefix_encoder import PrefixKeyValues
from ptuning.model.sequence_cache import SequenceCache, SequenceState, set_state, state_of


class BackboneOutput(NamedTuple):
    """What the backbone gives back.

    Attributes:
        last_hidden_state: [B, T, D], after the final layer norm; [w, D] where only some positions are kept.
        cache: of keys and values, or None when none was asked for.
        hidden_states: L+1 tensors [B, T, D] when asked for, else None.
    """

    last_hidden_state: Tensor
    cache: Cache | None
    hidden_states: tuple[Tensor, ...] | None


class Backbone(nn.Module):
    """Embedding, L blocks, final layer norm.

    Args:
        config: sizes and special ids.
        family: of the model.
        linear: class of the linears in the blocks, called as ``linear(in, out, bias=True)``.
        embedding: class of the embedding, called as ``embedding(V, D)``.
        block: class of the layers, called as ``block(config, family, index, linear)``.
    """

    def __init__(
        self,
        config: ChatGLMConfig,
        family: Family,
        linear: LinearFactory = nn.Linear,
        embedding: Callable[..., nn.Module] = nn.Embedding,
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        self.config, self.family, self.heads = config, family, family.heads(config)
        self.word_embeddings = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(block(config, family, index, linear) for index in range(config.num_layers))
        self.final_layernorm = family.norm(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        prefix_key_values: PrefixKeyValues | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        keep: Tensor | None = None,
    ) -> BackboneOutput:
        """Run the backbone.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T] (with a cache [B, S]), 1 for real tokens; or the published bool [B, 1, T, S] with True
                for *masked*; or None where nothing is padding.
            position_ids: [B, K, T]; None builds them from the ids, or continues those of the cache.
            cache: of earlier tokens, without the prefix.
            inputs_embeds: [B, T, D] in place of the embedding of ``input_ids``, which still give masks and positions.
            prefix_key_values: per layer a key and a value, [1 or B, N, P, H].
            use_cache: whether to return a cache.
            output_hidden_states: whether to return every layer's output.
            keep: bool [B, T], positions whose states are asked for (of a sequence from its start, without
                ``output_hidden_states``). Padding, and what no kept position sees, is not computed then.

        Raises:
            UserError: ids without ``<sop>`` or mask token, or shapes that do not fit.
        """
        if input_ids is None:
            raise UserError("input_ids are needed: masks and positions are built from them (inputs_embeds may be added)")
        cache = SequenceCache() if use_cache and cache is None else cache
        prefix = 0 if prefix_key_values is None else prefix_key_values[0][0].shape[2]
        positions, mask, state = self._place(input_ids, attention_mask, position_ids, cache, prefix)
        packing = None if keep is None else self.pack(input_ids, state.real, keep)
        context = self.context(positions, DenseAttention(cache), mask, prefix_key_values, packing)
        hidden_states = self.embed(input_ids, packing, inputs_embeds)
        outputs = [hidden_states] if output_hidden_states else None
        last = self.run(hidden_states, context, outputs)
        if cache is not None:
            set_state(cache, state)
        return BackboneOutput(last, cache, None if outputs is None else tuple(outputs))

    # ---- the parts of a pass, which decoding, prompts and calibration put together themselves -------------------------

    def position_ids(self, input_ids: Tensor, real: Tensor | None) -> Tensor:
        """Positions [B, K, T] of sequences from their start, with False at padding (``real``, bool [B, T]) or None."""
        return self.family.position_ids(self.config, input_ids, real)

    def mask(self, input_ids: Tensor, real: Tensor | None, prefix: int = 0) -> AttentionMask:
        """The mask of sequences from their start; see :func:`~ptuning.model.masks.sequence_mask`."""
        return sequence_mask(self.family.context_lengths(self.config, input_ids), input_ids, real, prefix)

    def pack(self, input_ids: Tensor, real: Tensor | None, keep: Tensor) -> Packing:
        """Which tokens are computed; see :func:`~ptuning.model.packing.pack`."""
        return pack(self.family.context_lengths(self.config, input_ids), real, keep)

    def context(
        self,
        position_ids: Tensor,
        backend: AttentionBackend,
        mask: AttentionMask = SEES_ALL,
        prefix: PrefixKeyValues | None = None,
        packing: Packing | None = None,
    ) -> AttentionContext:
        """What the layers need for a pass over tokens at these positions [B, K, T]."""
        rotary = self.family.rotary_table(position_ids, self.heads.head_dim)
        return AttentionContext(self.heads, rotary, backend, mask, prefix, packing)

    def embed(self, input_ids: Tensor, packing: Packing | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        """The first hidden states, [B, T, D]; with a packing [n, D]."""
        if packing is None:
            return self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        places = slice(None) if packing.places is None else packing.places
        if inputs_embeds is not None:
            return inputs_embeds.flatten(0, 1)[places]
        embedded: Tensor = self.word_embeddings(input_ids.flatten()[places])
        return embedded

    def run(self, hidden_states: Tensor, context: AttentionContext, outputs: list[Tensor] | None = None) -> Tensor:
        """Hidden states through all layers and the final norm; see :func:`~ptuning.model.layers.run_layers`."""
        normed: Tensor = self.final_layernorm(run_layers(self.layers, hidden_states, context, outputs))
        return normed

    def _place(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        prefix: int,
    ) -> tuple[Tensor, AttentionMask, SequenceState]:
        """Positions, mask, and what the cache is to remember for the next call."""
        tokens, step = input_ids.shape[1], self.family.position_step
        cached = 0 if cache is None else int(cache.get_seq_length())
        seen = cached + tokens
        state = state_of(cache) if cached else None
        real = real_tokens(attention_mask, None if state is None else state.real, seen, tokens)
        if position_ids is not None:
            if position_ids.shape[1:] != (len(step), tokens):
                allowed = f"[batch, {len(step)}, {tokens}]"
                raise UserError(f"position_ids have shape {tuple(position_ids.shape)}; allowed is {allowed}")
            positions = position_ids
        elif not cached:
            positions = self.position_ids(input_ids, real)
        elif state is not None:
            positions = continue_positions(state.last_position, step, tokens)
        else:
            raise UserError(f"this cache was not filled by ChatGLM: give position_ids [batch, {len(step)}, tokens] with it")
        if attention_mask is not None and attention_mask.dim() == 4:
            mask = mask_with_prefix(published_mask(attention_mask, tokens, seen), prefix)
        elif cached:
            mask = cached_mask(real, tokens, seen, prefix, input_ids.device)
        else:
            mask = self.mask(input_ids, real, prefix)
        return positions, mask, SequenceState(positions[:, :, -1:], real)
