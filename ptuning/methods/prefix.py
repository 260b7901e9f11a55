"""P-Tuning v2: trained keys and values in front of every row, over a frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ptuning.core.errors import UserError
from ptuning.methods.method import (
    Adapter,
    AdapterFiles,
    CheckpointFiles,
    LearningRates,
    TuningCost,
    TuningMethod,
    Words,
)
from ptuning.methods.prefix_forms import holds_prefix, is_prefix_alone, prefix_files, read_prefix
from ptuning.methods.prefix_tensors import PrefixShape
from ptuning.model.prefix_encoder import PrefixEncoder, PrefixKeyValues, prefix_config_of
from ptuning.model.sizes import ModelSizes, PrefixSizes, prefix_numbers

if TYPE_CHECKING:
    from ptuning.model.answering import PrefixedModel
    from ptuning.model.config import ChatGLMConfig
    from ptuning.settings.arguments import ModelArguments
    from ptuning.settings.training_arguments import TuningArguments


@dataclass(frozen=True)
class PrefixAdapter(Adapter):
    """A prefix as it stands on disk; its tensors have the encoder's own names (``embedding.weight``, ``trans.0.weight``, …).

    Attributes:
        shape: read off the tensors.
    """

    shape: PrefixShape

    @property
    def method(self) -> TuningMethod:
        """P-Tuning v2."""
        return PREFIX

    @property
    def pre_seq_len(self) -> int:
        """P, the number of prefix slots."""
        return self.shape.pre_seq_len

    @property
    def slots(self) -> int:
        """P."""
        return self.shape.pre_seq_len

    @property
    def projection(self) -> bool:
        """Whether the two-layer projection is there."""
        return self.shape.projection

    def hold_against(self, flags: Mapping[str, Any]) -> None:
        """Refuse ``pre_seq_len`` and ``prefix_projection`` that contradict the file."""
        self.shape.check_flags(self.path, **flags)

    def check_model(self, config: ChatGLMConfig) -> None:
        """Refuse a model of another size or family; both are named."""
        self.shape.check_model(config, self.path)
        for key in ("num_attention_heads", "num_layers", "hidden_size"):
            stated, its = self.settings.get(key), getattr(config, key)
            if stated not in (None, its):
                raise UserError(
                    f"{self.path} was trained for a model with {key} {stated}, this one has {its}: give the base model that "
                    "the prefix was trained on"
                )

    def encoder(self, config: ChatGLMConfig) -> PrefixEncoder:
        """The prefix encoder for a backbone.

        Raises:
            UserError: see :meth:`check_model`.
        """
        self.check_model(config)
        encoder = PrefixEncoder(prefix_config_of(config, self.pre_seq_len, self.projection))
        encoder.load_state_dict(self.tensors)
        return encoder

    def attach(self, model: PrefixedModel) -> None:
        """Hang the encoder below the model, in place of an earlier one."""
        model.attach_prefix(self.encoder(model.config))

    def load_into(self, model: PrefixedModel) -> None:
        """Copy the tensors into the encoder that is being trained."""
        encoder: Any = model.prefix_encoder
        if (self.pre_seq_len, self.projection) != (encoder.config.pre_seq_len, encoder.config.projection):
            raise UserError(
                f"{self.path} holds a prefix of {self.pre_seq_len} tokens (projection: {self.projection}); this run "
                f"trains {encoder.config.pre_seq_len} (projection: {encoder.config.projection}): resume with the settings "
                "of that run"
            )
        encoder.load_state_dict(self.tensors)

    def key_values(self, model: PrefixedModel) -> PrefixKeyValues | None:
        """Keys and values for a row of the engine; the model is left as it is."""
        place: Any = model.transformer.final_layernorm.weight.device
        with torch.no_grad():
            return self.encoder(model.config).to(place).eval()(model.dtype)  # type: ignore[no-any-return]

    def description(self, config: ChatGLMConfig) -> str:
        """Its tokens and layers."""
        return f"{self.pre_seq_len} tokens, {config.num_layers} layers{', projection' if self.projection else ''}"

    def cost(self, sizes: ModelSizes) -> TuningCost:
        """What its slots add."""
        return prefix_cost(sizes, PrefixSizes(self.pre_seq_len, self.projection))


class PrefixTuning(TuningMethod):
    """P-Tuning v2; the encoder and its parameters: :mod:`ptuning.model.prefix_encoder`."""

    name = "prefix"
    words = Words(
        noun="prefix",
        saved="PrefixEncoder",
        loaded="prefix_encoder weight",
        files="prefix_encoder.safetensors, pytorch_model.bin or a PEFT adapter",
        nothing_to_train="the model has no prefix to train: give --pre_seq_len (published: 128)",
        labels={"en": "a prefix of {slots} tokens, {layers} layers", "zh": "前缀 {slots} 个虚拟词元，{layers} 层"},
        short_labels={"en": "prefix of {slots}", "zh": "前缀 {slots} 词元"},
    )
    # The published runs take 1e-2 and 2e-2, and 1e-4 is what users report to forget least.
    learning_rates = LearningRates(
        2e-2, 1e-4, 5e-2, "1e-4 to 5e-2",
        " (published: 2e-2, for dialogue 1e-2); rates for full fine-tuning or LoRA do not carry over",
    )
    marker_files = ("prefix_config.json", "pytorch_model.bin", "model.safetensors", "adapter_config.json")
    model_settings = ("pre_seq_len", "prefix_projection")
    training_settings = ("prefix_dropout",)
    unsuitable_optimisers = {  # noqa: RUF012  # as the base class says, a constant
        "galore": "GaLore shrinks the state of large linear layers, and a prefix has none",
        "apollo": "APOLLO shrinks the state of large linear layers, and a prefix has none",
    }

    def recognises(self, files: CheckpointFiles) -> bool:
        """Our form, the published one, PEFT's, or a whole model's file with a prefix in it."""
        return holds_prefix(files)

    def is_checkpoint(self, files: CheckpointFiles) -> bool:
        """A prefix alone: a whole model may have one lying beside it, or in it."""
        return is_prefix_alone(files)

    def read(self, files: CheckpointFiles) -> PrefixAdapter:
        """Read any of the three forms."""
        stored = read_prefix(files)
        return PrefixAdapter(stored.tensors, stored.settings, stored.path, stored.shape)

    def files(
        self, model: PrefixedModel, settings: Mapping[str, Any], training: TuningArguments | None = None
    ) -> AdapterFiles:
        """The form that ``--prefix_format`` names."""
        encoder: Any = model.prefix_encoder
        return prefix_files(encoder, settings, "ptuning" if training is None else training.prefix_format)

    def check_settings(self, model: ModelArguments) -> None:
        """A prefix needs a length, or a checkpoint that states it."""
        if model.pre_seq_len is None and model.ptuning_checkpoint is None:
            raise UserError(
                "--pre_seq_len is missing (published: 128): ptuning trains a prefix; full fine-tuning of the backbone is "
                "not part of it"
            )

    def attach_new(self, model: PrefixedModel, settings: ModelArguments) -> None:
        """A prefix of ``--pre_seq_len``, unless loading has attached one: a model's own files may hold it."""
        if model.prefix_encoder is None and settings.pre_seq_len is not None:
            config = prefix_config_of(model.config, settings.pre_seq_len, settings.prefix_projection)
            model.attach_prefix(PrefixEncoder(config))

    def begin_training(self, model: PrefixedModel, training: TuningArguments) -> None:
        """Take over ``--prefix_dropout``."""
        encoder: Any = model.prefix_encoder
        encoder.config = replace(encoder.config, dropout=training.prefix_dropout)

    def is_active(self, model: PrefixedModel) -> bool:
        """Whether an encoder is attached and switched on."""
        return model.prefix_encoder is not None and model.prefix_is_on

    def disabled(self, model: PrefixedModel) -> AbstractContextManager[None]:
        """The model's own switch."""
        return model.prefix_disabled()

    def detach(self, model: PrefixedModel) -> None:
        """Take the encoder off."""
        model.detach_prefix()

    def trained_parameters(self, model: PrefixedModel) -> list[nn.Parameter]:
        """Of the encoder; the backbone is frozen."""
        return [] if model.prefix_encoder is None else list(model.prefix_encoder.parameters())

    def state(self, model: PrefixedModel) -> Mapping[str, Tensor]:
        """The encoder's."""
        return {} if model.prefix_encoder is None else model.prefix_encoder.state_dict()

    def cost(self, model: PrefixedModel) -> TuningCost:
        """Of the attached encoder."""
        encoder: Any = model.prefix_encoder
        sizes = PrefixSizes(encoder.config.pre_seq_len, encoder.config.projection)
        return prefix_cost(ModelSizes.from_config(model.config.to_dict()), sizes)

    def planned_cost(self, settings: ModelArguments, config: ChatGLMConfig) -> TuningCost:
        """Of the flags, or of the model folder itself; of length 0 where neither asks for a prefix."""
        prefix = PrefixSizes(config.pre_seq_len or 0, bool(config.prefix_projection))
        if settings.pre_seq_len is not None:
            prefix = PrefixSizes(settings.pre_seq_len, settings.prefix_projection)
        return prefix_cost(ModelSizes.from_config(config.to_dict()), prefix)


def prefix_cost(sizes: ModelSizes, prefix: PrefixSizes) -> TuningCost:
    """What a prefix adds to a backbone of these sizes."""
    states, trained = prefix_numbers(sizes, prefix)
    projection = " with projection" if prefix.projection else ""
    text = f"prefix of {prefix.length} tokens{projection}"
    missing = "--pre_seq_len is missing (published: 128): without a prefix there is nothing to train"
    return TuningCost("prefix", trained, prefix.length, states, prefix.projection, text, missing)


PREFIX = PrefixTuning()
"""The one there is: a method has no state of its own."""
