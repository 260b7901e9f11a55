"""The real peft's prefix tuning on transformers' own GLM of our model's shape: another model family, as much work.

GLM's MLP has three matrices where ChatGLM-6B's has two, so its inner size is two thirds of ours: the weights are as many.
Its loss is another number: other weights, another model.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain_habits import default_products


def importable() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("peft") is not None


class PeftStep:
    """Loss and gradient of one micro-step, as :class:`~benchmarks.plain_habits.PlainStep`.

    Args:
        config: our model's.
        dtype: of the frozen weights; peft keeps the prefix in float32.
        prefix: P.
        device: where the model goes.
    """

    def __init__(self, config: Any, dtype: torch.dtype, prefix: int, device: torch.device) -> None:
        from peft import PrefixTuningConfig, TaskType, get_peft_model
        from transformers import GlmConfig, GlmForCausalLM

        shape = GlmConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
            intermediate_size=2 * config.inner_hidden_size // 3, num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads, head_dim=config.head_dim,
            max_position_embeddings=config.max_sequence_length, pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
        )
        torch.manual_seed(0)
        base: Any = GlmForCausalLM(shape)
        base = base.to(dtype).to(device)
        prefix_config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=prefix)
        self.model: Any = get_peft_model(base, prefix_config).train()

    def __call__(self, batch: dict[str, Tensor]) -> float:
        """Run forward and backward; the gradient stays in the prefix."""
        with default_products():
            loss = self.model(**batch).loss
            loss.backward()
        return float(loss.detach())

    def gradients(self) -> list[Any]:
        """Parameters that have a gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
