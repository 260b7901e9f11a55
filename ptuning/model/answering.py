"""Backbone + head + prefix, and nothing else: the model that the engine answers with.

It needs nothing of transformers' ``PreTrainedModel``, whose import takes as long as torch's own: a chat and a server that
never train or call ``generate`` start without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ptuning.core.errors import UserError
from ptuning.model.backbone import Backbone
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families import family_of
from ptuning.model.half_storage import HalfEmbedding, HalfLinear
from ptuning.model.layers import Block
from ptuning.model.linear import Linear
from ptuning.model.prefix_encoder import PrefixEncoder, PrefixKeyValues, prefix_config_of
from ptuning.model.quantization import quantized_embedding_class, quantized_linear_class


class PrefixedModel(nn.Module):
    """What the model for answers and the whole model share: their parts under the published names, and the prefix.

    Attributes:
        transformer: the backbone.
        lm_head: [D, V], not tied to the embedding.
        prompt_settings: keywords of the prompt function that the attached prefix was trained with.
        base_fingerprint: of the weights that were read; see :mod:`ptuning.checkpoint.weights`.
    """

    config: ChatGLMConfig
    transformer: Backbone
    lm_head: Linear
    prompt_settings: dict[str, Any]
    base_fingerprint: str | None

    def build(self, config: ChatGLMConfig, block: type[Block] = Block) -> None:
        """Make backbone and head, quantised where the configuration says so, without a prefix.

        Args:
            config: sizes and quantisation.
            block: class of the backbone's layers.
        """
        bits = config.quantization_bit
        embedding_bits = bits if config.quantization_embeddings else 0
        # Of a quantised model, float embedding and head stay as they are stored.
        half = bool(bits) and not embedding_bits
        embedding: Any = HalfEmbedding if half else quantized_embedding_class(embedding_bits)
        head: Any = HalfLinear if half else quantized_linear_class(embedding_bits)
        self.transformer = Backbone(config, family_of(config), quantized_linear_class(bits), embedding, block)
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self._prefix_on = True
        self.prompt_settings = {}
        self.base_fingerprint = None

    def attach_new_prefix(self) -> None:
        """A fresh prefix, where the configuration asks for one."""
        config = self.config
        if config.pre_seq_len is not None:
            self.attach_prefix(PrefixEncoder(prefix_config_of(config, config.pre_seq_len, config.prefix_projection)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations; the first float tensor may be a scale, which is float16 always."""
        return self.transformer.final_layernorm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are: all in one place."""
        return self.transformer.final_layernorm.weight.device

    # ---- prefix ----------------------------------------------------------------------------------------------------

    @property
    def prefix_encoder(self) -> PrefixEncoder | None:
        """The attached prefix encoder. It hangs below ``transformer`` for its published state-dict name only: the
        backbone's forward takes keys and values as an argument and never looks for it."""
        return getattr(self.transformer, "prefix_encoder", None)

    def attach_prefix(self, encoder: PrefixEncoder) -> None:
        """Put a prefix encoder on the frozen backbone, in place of an earlier one.

        Raises:
            UserError: a prefix made for a backbone of other sizes.
        """
        shape, config = encoder.config, self.config
        ours, theirs = (config.num_layers, config.hidden_size), (shape.num_layers, shape.hidden_size)
        if ours != theirs:
            raise UserError(
                f"this prefix is for {theirs[0]} layers of hidden size {theirs[1]}; "
                f"the model has {ours[0]} layers of hidden size {ours[1]}: it belongs to another model"
            )
        self.requires_grad_(False)
        device = self.transformer.final_layernorm.weight.device
        self.transformer.prefix_encoder = encoder.to(device) if device.type != "meta" else encoder
        encoder.train(self.training)
        encoder.requires_grad_(True)
        config.pre_seq_len, config.prefix_projection = shape.pre_seq_len, shape.projection

    def detach_prefix(self) -> PrefixEncoder | None:
        """Take the prefix encoder off and give it back; the model is the base model again."""
        encoder = self.prefix_encoder
        if encoder is not None:
            del self.transformer.prefix_encoder
        self.config.pre_seq_len, self.config.prefix_projection = None, False
        self.prompt_settings = {}
        return encoder

    @property
    def prefix_is_on(self) -> bool:
        """Whether an attached prefix counts; not within :meth:`prefix_disabled`."""
        return self._prefix_on

    @contextmanager
    def prefix_disabled(self) -> Iterator[None]:
        """Within this context the model answers as the base model, bit for bit."""
        before, self._prefix_on = self._prefix_on, False
        settings, self.prompt_settings = self.prompt_settings, {}
        try:
            yield
        finally:
            self._prefix_on, self.prompt_settings = before, settings

    def prefix_key_values(self) -> PrefixKeyValues | None:
        """Keys and values of the attached prefix, per layer [1, N, P, H]; None without one (or when disabled)."""
        if self.prefix_encoder is None or not self._prefix_on:
            return None
        return self.prefix_encoder(self.transformer.final_layernorm.weight.dtype)

    def refuse_untrained_prefix(self) -> None:
        """Refuse to answer with a prefix that is attached, not disabled, and was never trained or loaded.

        Raises:
            UserError: it is one.
        """
        if self.prefix_encoder is not None and self.prefix_encoder.fresh and self._prefix_on:
            raise UserError(
                "the prefix of this model is freshly initialised and was never trained or loaded: its answers would mean "
                "nothing. Load one (ptuning_checkpoint=...), train it, or generate under model.prefix_disabled()"
            )


class AnsweringModel(PrefixedModel):
    """The model for answers alone. Same weights, same names, same numbers as ``ChatGLMForConditionalGeneration``, which
    adds ``forward``, loss, ``generate``, ``chat`` and everything that transformers expects of a model.

    Args:
        config: sizes, quantisation, prefix.
    """

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.config = config
        self.name_or_path = ""
        self.build(config)
        self.attach_new_prefix()
