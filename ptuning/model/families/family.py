"""What a family of models is: everything in which one generation differs from another.

Legend: B batch, T tokens, K position ids of a token, N heads, G key-value heads, H head size, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptuning.data.protocols import PromptForm, Tokenizer
from ptuning.data.tokenizer_files import TokenizerFiles
from ptuning.model.config import ChatGLMConfig
from ptuning.model.heads import HeadLayout
from ptuning.model.norm import Norm


@dataclass(frozen=True)
class TensorNames:
    """Names of tensors in the published weight files and in our state dict.

    Attributes:
        embedding: [V, D].
        head: [V, D].
        final_norm: what the names of the last norm's tensors begin with.
        layers: what the names of a layer's tensors begin with; its index and a dot follow.
        linears: of a layer that are quantised, in the order in which it runs them.
        norms: what stands in the name of every norm's tensor, and of no other.
        ignored: endings of names that files hold and no model needs.
    """

    embedding: str
    head: str
    final_norm: str
    layers: str
    linears: tuple[str, ...]
    norms: str
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One generation of models. Everything that differs between generations is read from here, never from its name.

    Attributes:
        name: as in :data:`ptuning.core.choices.FAMILIES`.
        config: class of its configurations; its ``family`` is the name.
        claims: whether the values of a ``config.json`` describe a model of this family.
        check_config: refuses values (and the path of their file) that describe none which runs; gives those that count.
        names: of its tensors.
        norm: makes a norm of D channels from a configuration.
        activation: between the two linears of the MLP.
        residual_post_layernorm: whether residuals start from the normalised input of a branch, not from the input itself.
        residual_scale: what residuals are multiplied with.
        heads: how queries, keys and values lie in a layer's fused projection; keys and values of cache and prefix as well.
        position_ids: of the ids [B, T] of whole sequences, with False at padding (bool [B, T]) or None: [B, K, T].
        position_step: what the next token adds to each of the K position ids of the last one.
        rotary_table: cosines and sines [B, 1, T, H] of position ids [B, K, T] and H.
        context_lengths: of the ids [B, T], the columns [B] at the beginning that every token sees; the others are causal.
        make_tokenizer: makes a tokenizer of the files that were read for it.
        tokenizer_file: what a tokenizer is read from.
        special_ids: names of special tokens, and the attribute that holds the id both in a tokenizer and in a configuration.
        prompt_form: how its models are asked.
        check_prompt: refuses ids that are no prompt.
        stop_ids: ids that end an answer.
    """

    name: str
    config: type[ChatGLMConfig]
    claims: Callable[[Mapping[str, Any]], bool]
    check_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    names: TensorNames

    norm: Callable[[ChatGLMConfig], Norm]
    activation: Callable[[Tensor], Tensor]
    residual_post_layernorm: bool
    residual_scale: Callable[[ChatGLMConfig], float]
    heads: Callable[[ChatGLMConfig], HeadLayout]

    position_ids: Callable[[ChatGLMConfig, Tensor, Tensor | None], Tensor]
    position_step: tuple[int, ...]
    rotary_table: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    context_lengths: Callable[[ChatGLMConfig, Tensor], Tensor]

    make_tokenizer: Callable[[TokenizerFiles], Any]
    tokenizer_file: str
    special_ids: Mapping[str, str]
    prompt_form: PromptForm
    check_prompt: Callable[[ChatGLMConfig, list[int]], None]
    stop_ids: Callable[[Tokenizer], frozenset[int]]
