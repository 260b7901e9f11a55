"""Backbone + head + prefix as transformers expects a model: forward, loss, and what ``generate`` needs.

Legend: B batch, T tokens, S tokens seen, P prefix slots, L layers, N heads, H head size, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, cast

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptuning.core.errors import UserError
from ptuning.model.answering import PrefixedModel
from ptuning.model.attention_context import AttentionContext
from ptuning.model.config import ChatGLMConfig
from ptuning.model.layers import Block
from ptuning.model.loss import target_loss, target_positions
from ptuning.model.prefix_encoder import PrefixKeyValues
from ptuning.model.quantization import QuantizedEmbedding, QuantizedLinear
from ptuning.model.sequence_cache import state_of

# transformers renames past_key_values to cache, in its outputs and in generate. Ours has both names in every version.
_CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class CausalLMOutput(CausalLMOutputWithPast):
    """Loss and logits. Beside a loss the logits of all positions are made, by a second run, when someone reads them."""

    _make_logits: Callable[[], Tensor] | None = None
    _logits: Tensor | None = None

    @property
    def logits(self) -> Tensor | None:  # type: ignore[override]
        """[B, T, V] in the model's dtype."""
        if self._logits is None and self._make_logits is not None:
            object.__setattr__(self, "_logits", self._make_logits())
        return self._logits

    @logits.setter
    def logits(self, value: Tensor | None) -> None:
        """What the base class sets: a value made already, or nothing."""
        object.__setattr__(self, "_logits", value)

    def as_tuple(self) -> tuple[Any, ...]:
        """Loss, logits and cache, those that there are."""
        return tuple(value for value in (self.loss, self.logits, getattr(self, _CACHE_FIELD)) if value is not None)

    def __getattr__(self, name: str) -> Any:
        """The cache under the name that this version of transformers does not have."""
        if name in ("cache", "past_key_values") and name != _CACHE_FIELD:
            return getattr(self, _CACHE_FIELD)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def defer_logits(self, make: Callable[[], Tensor]) -> Self:
        """Give the logits a recipe in place of a value."""
        object.__setattr__(self, "_make_logits", make)
        return self


class CheckpointedBlock(Block, GradientCheckpointingLayer):
    """A block whose activations may be computed twice, where ``gradient_checkpointing_enable`` says so.

    Re-entrant checkpointing passes gradients on to tensors among the arguments alone: the layer's prefix becomes one.
    """

    def __call__(self, hidden_states: Tensor, context: AttentionContext) -> Any:
        """As :class:`Block`."""
        if context.prefix is None or not (self.gradient_checkpointing and self.training):
            return super().__call__(hidden_states, context)
        return super().__call__(hidden_states, context, *context.prefix[self.attention.layer_index])

    def forward(
        self,
        hidden_states: Tensor,
        context: AttentionContext,
        prefix_key: Tensor | None = None,
        prefix_value: Tensor | None = None,
    ) -> Tensor:
        """As :class:`Block`; the layer's prefix, where it is given, stands for that of the context."""
        if prefix_key is not None and prefix_value is not None:
            context = context.with_layer_prefix(self.attention.layer_index, prefix_key, prefix_value)
        return super().forward(hidden_states, context)


class ChatGLMNetwork(PrefixedModel, PreTrainedModel, GenerationMixin):
    """A ChatGLM-6B model that is tuned and scored, with a prefix encoder where ``config.pre_seq_len`` says so.

    The names of the published state dict are kept. What answers questions and reads itself from a folder is the public
    class on top of it, ``ptuning.ChatGLMForConditionalGeneration``.

    Args:
        config: sizes, special ids, quantisation, prefix.
    """

    config_class = ChatGLMConfig
    config: ChatGLMConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["CheckpointedBlock"]  # noqa: RUF012  # the base class's form
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012

    def __init__(self, config: ChatGLMConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.build(config, block=CheckpointedBlock)
        self.post_init()
        self.attach_new_prefix()  # after post_init: a prefix starts as published, from N(0, 1)

    # ---- forward ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        prefix_key_values: PrefixKeyValues | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        label_smoothing: float = 0.0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T] with 1 for real tokens, or the published bool [B, 1, T, S] with True for masked ones.
            position_ids: [B, 2, T] as published; None builds them.
            past_key_values: cache of earlier tokens (without the prefix); ``cache`` is its newer name.
            inputs_embeds: [B, T, D] in place of the embedded ids.
            labels: [B, T], -100 where nothing is learnt.
            prefix_key_values: per layer a key and a value [1 or B, N, P, H]; None uses the attached prefix, if any.
            use_cache: whether to return a cache; default: ``config.use_cache``, and not beside labels or in training.
            output_hidden_states: whether to return the L+1 hidden states.
            return_dict: False gives a tuple.
            logits_to_keep: how many of the last positions get logits; 0: all.
            num_items_in_batch: divisor of the summed loss; None: the number of labels (mean).
            label_smoothing: share of the loss that asks for the same probability of every token; see
                :func:`~ptuning.model.loss.target_loss`.
            kwargs: ``output_attentions`` is not available; anything else is an error.

        Returns:
            ``.loss`` (float32) where labels are given, ``.logits`` [B, T, V], ``.cache``, ``.hidden_states``.
        """
        _refuse_unknown(kwargs)
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and labels is None and not self.training
        if prefix_key_values is None:
            prefix_key_values = self.prefix_key_values()
        run = partial(
            self.transformer, input_ids, attention_mask, position_ids, cache, inputs_embeds, prefix_key_values,
            use_cache=use_cache and not (self.training and self.is_gradient_checkpointing),
            output_hidden_states=bool(output_hidden_states),
        )  # fmt: skip
        if labels is None:
            output = run()
            result = CausalLMOutput(hidden_states=output.hidden_states, **{_CACHE_FIELD: output.cache})
            result["logits"] = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        else:
            alone = cache is None and not use_cache and not output_hidden_states
            loss = partial(target_loss, head=self.lm_head, num_items=num_items_in_batch, smoothing=label_smoothing)
            result = self._with_loss(run, labels, loss, logits_to_keep, alone)
        return result.as_tuple() if return_dict is False else result

    def _with_loss(
        self, run: Callable[..., Any], labels: Tensor, loss: Callable[..., Tensor], logits_to_keep: int, alone: bool
    ) -> CausalLMOutput:
        """The loss of a run of the backbone; where nothing else is asked of it (``alone``), of the positions it needs."""
        chosen, targets = target_positions(labels)
        chosen = chosen.to(self.device)
        output = run(keep=chosen) if alone else run()
        states = output.last_hidden_state if alone else output.last_hidden_state[chosen]
        if len(states) != len(targets):
            raise UserError("a label stands where attention_mask says padding: mark it real there, or give that label -100")
        result = CausalLMOutput(hidden_states=output.hidden_states, **{_CACHE_FIELD: output.cache})
        result["loss"] = loss(states, targets)
        every = run if alone else lambda: output
        return result.defer_logits(lambda: self.lm_head(every().last_hidden_state[:, -logits_to_keep:]))

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What :meth:`forward` needs for one step of ``generate``.

        The first call sees the whole prompt. Behind a filled cache only the new ids go in: the cache itself remembers
        padding and positions, so nothing here grows with the length. It comes under either of its names.
        """
        passed_on = ("prefix_key_values", "use_cache", "logits_to_keep")
        inputs: dict[str, Any] = {key: kwargs[key] for key in passed_on if key in kwargs}
        if cache is None:
            inputs["past_key_values"] = cache = past_key_values
        else:
            inputs["cache"] = cache
        cached = 0 if cache is None else int(cache.get_seq_length())
        if cached and state_of(cache) is not None:
            return inputs | {"input_ids": input_ids[:, cached:]}
        if position_ids is not None and position_ids.dim() == 3 and position_ids.shape[0] == input_ids.shape[0]:
            inputs["position_ids"] = position_ids  # published form; the 1-D positions of transformers mean nothing here
        return inputs | {"input_ids": input_ids, "attention_mask": attention_mask}

    # ---- the rest of the transformers contract ------------------------------------------------------------------------

    def quantize(self, bits: int, quantize_embeddings: bool = False) -> Self:
        """Quantise the linears of every block of a live float model; 0 leaves it as it is. Returns the model.

        Raises:
            UserError: other bits, or a model that is quantised otherwise already.
        """
        if bits in (0, None):
            return self
        if self.config.quantization_bit not in (0, bits):
            raise UserError(f"the model is quantised to {self.config.quantization_bit} bits; it cannot become {bits}")
        for layer in self.transformer.layers:
            for name in self.transformer.family.names.linears:
                linear = layer.get_submodule(name)
                if isinstance(linear, nn.Linear):
                    layer.set_submodule(name, QuantizedLinear.from_linear(linear, bits))
        if quantize_embeddings and isinstance(self.lm_head, nn.Linear):
            embedding: Any = self.transformer.word_embeddings
            self.transformer.word_embeddings = QuantizedEmbedding.from_embedding(embedding.weight, bits)
            self.lm_head = QuantizedLinear.from_linear(self.lm_head, bits)
            self.config.quantization_embeddings = True
        self.config.quantization_bit = bits
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The embedding [V, D]."""
        return self.transformer.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The head [V, D]; not tied to the embedding."""
        return cast(nn.Module, self.lm_head)

    def _init_weights(self, module: nn.Module) -> None:
        """Random weights of a new model: normal with 0.02, as usual. A loaded model never comes here."""
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does. A head that is one storage with the embedding (the published INT4 file) is written
        under its own name, as it does not follow the embedding."""
        head, embedding = self.lm_head.weight, self.transformer.word_embeddings.weight
        if head.data_ptr() == embedding.data_ptr() and head.device.type != "meta":  # type: ignore[operator]
            state = dict(kwargs.get("state_dict") or self.state_dict())
            state["lm_head.weight"] = head.detach().clone()
            kwargs["state_dict"] = state
        return super().save_pretrained(save_directory, *args, **kwargs)


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Arguments that transformers passes as a matter of course are dropped; anything else is a mistake."""
    if kwargs.get("output_attentions"):
        raise UserError("output_attentions is not available: scaled_dot_product_attention gives no attention weights")
    unknown = set(kwargs) - {"output_attentions", "cache_position", "token_type_ids"}
    if unknown:
        raise UserError(f"forward got unknown arguments: {', '.join(sorted(unknown))}")
