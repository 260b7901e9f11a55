"""The first generation, ChatGLM-6B: prefix-LM mask, 2-D positions, layer norms, residuals of the normalised input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ptuning.core.errors import UserError
from ptuning.data.prompts import RoundsPrompt
from ptuning.data.protocols import Tokenizer
from ptuning.data.tokenizer_files import VOCABULARY_FILE, make_tokenizer
from ptuning.kernels.gelu import gelu
from ptuning.model.config import ChatGLMConfig, check_config
from ptuning.model.families.family import Family, TensorNames
from ptuning.model.heads import InterleavedHeads
from ptuning.model.positions import build_position_ids, context_lengths
from ptuning.model.rotary import rotary_table


def _claims(values: Mapping[str, Any]) -> bool:
    return values.get("model_type") == ChatGLMConfig.model_type and not ChatGLMConfig.later_generation_keys(values)


def _norm(config: ChatGLMConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)


def _residual_scale(config: ChatGLMConfig) -> float:
    return math.sqrt(2 * config.num_layers)


def _heads(config: ChatGLMConfig) -> InterleavedHeads:
    return InterleavedHeads(config.num_attention_heads, config.head_dim)


def _position_ids(config: ChatGLMConfig, input_ids: Tensor, real: Tensor | None) -> Tensor:
    return build_position_ids(input_ids, real, config.bos_token_id, config.mask_token_id, config.gmask_token_id)


def _context_lengths(config: ChatGLMConfig, input_ids: Tensor) -> Tensor:
    return context_lengths(input_ids, config.bos_token_id)


def _check_prompt(config: ChatGLMConfig, ids: list[int]) -> None:
    """Refuse ids without ``<sop>``: neither mask nor positions could be made.

    Raises:
        UserError: there is none.
    """
    if config.bos_token_id not in ids:
        raise UserError(f"the {len(ids)} ids hold no <sop> (id {config.bos_token_id}): this is no ChatGLM-6B prompt")


def _stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset({tokenizer.eos_token_id})


CHATGLM = Family(
    name="chatglm",
    config=ChatGLMConfig,
    claims=_claims,
    check_config=check_config,
    names=TensorNames(
        embedding="transformer.word_embeddings.weight",
        head="lm_head.weight",
        final_norm="transformer.final_layernorm.",
        layers="transformer.layers.",
        linears=("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        norms="layernorm",
        ignored=("rotary_emb.inv_freq",),
    ),
    norm=_norm,
    activation=gelu,
    residual_post_layernorm=True,
    residual_scale=_residual_scale,
    heads=_heads,
    position_ids=_position_ids,
    position_step=(0, 1),  # the position stays at the mask token, the block position counts
    rotary_table=rotary_table,
    context_lengths=_context_lengths,
    make_tokenizer=make_tokenizer,
    tokenizer_file=VOCABULARY_FILE,
    special_ids={"<sop>": "bos_token_id", "<eop>": "eos_token_id", "[gMASK]": "gmask_token_id"},
    prompt_form=RoundsPrompt(),
    check_prompt=_check_prompt,
    stop_ids=_stop_ids,
)
