"""The habits of the published trainer and evaluation, written down by us on our own model, so that each can be timed.

Mathematically every habit gives the same loss, gradients and answers; what differs is the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
from ptuning.kernels import cpu
from ptuning.kernels.packed import dequantize_weight
from ptuning.model.quantization import QuantizedLinear

HABITS = {
    "every row padded to the maximum": "padding",
    "logits and float32 loss of every position": "logits",
    "every layer computed twice": "recompute",
    "gradients of frozen weights": "weight_gradients",
    "the prefix copied per row, float32": "prefix_rows",
}
"""Name → what :class:`PlainStep` calls it."""


Row = tuple[list[int], list[int]]
"""Ids and labels of one training row."""


def made_rows(config: Any, count: int, source: int, target: int) -> list[Row]:
    """Made-up ids with lengths as in ADGEN (prompts mostly short of the limit, replies mostly at it).

    Args:
        config: of the model.
        count: how many rows.
        source: most tokens of a prompt, the mark included.
        target: most tokens of a reply, its two end tokens included.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    rows: list[Row] = []
    for _ in range(count):
        prompt = torch.randint(100, config.vocab_size - 600, (draw(source // 4, source - 1),), generator=generator)
        reply = torch.randint(100, config.vocab_size - 600, (draw(3 * target // 4, target - 2),), generator=generator)
        ids = [*prompt.tolist(), config.gmask_token_id, config.bos_token_id, *reply.tolist(), config.eos_token_id]
        rows.append((ids, [-100] * (len(prompt) + 1) + ids[len(prompt) + 1 :]))
    return rows


def batch_of(rows: Sequence[Row], pad: int, width: int | None, device: torch.device) -> dict[str, Tensor]:
    """Rows padded on the right: to ``width``, as published, or to the longest, with the mask that our trainer gives."""
    padded = max(len(ids) for ids, _ in rows) if width is None else width
    batch = {
        "input_ids": torch.tensor([ids + [pad] * (padded - len(ids)) for ids, _ in rows], device=device),
        "labels": torch.tensor([labels + [-100] * (padded - len(labels)) for _, labels in rows], device=device),
    }
    if width is None:
        real = [[1] * len(ids) + [0] * (padded - len(ids)) for ids, _ in rows]
        batch["attention_mask"] = torch.tensor(real, device=device)
    return batch


class PlainStep:
    """Loss and gradient of one micro-step with some of the habits.

    Args:
        model: with a prefix, in training mode.
        habits: values of :data:`HABITS`.
    """

    def __init__(self, model: ChatGLMForConditionalGeneration, habits: Sequence[str]) -> None:
        self.model, self.habits = model, frozenset(habits)

    def __call__(self, batch: dict[str, Tensor]) -> float:
        """Run forward and backward; the gradient stays in the prefix."""
        with self._habits(), ExitStack() as stack:
            if "weight_gradients" in self.habits:
                stack.enter_context(published_products(packed_linears(self.model)))
            keywords: dict[str, Any] = {"attention_mask": batch.get("attention_mask")}
            if "prefix_rows" in self.habits:
                keywords["prefix_key_values"] = self._prefix_of_every_row(batch["input_ids"].shape[0])
            if "logits" in self.habits:
                logits = self.model(batch["input_ids"], use_cache=False, **keywords).logits.float()
                loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch["labels"][:, 1:].reshape(-1))
            else:
                loss = self.model(batch["input_ids"], labels=batch["labels"], **keywords).loss
            loss.backward()
        return float(loss.detach())

    def _prefix_of_every_row(self, rows: int) -> Any:
        encoder: Any = self.model.prefix_encoder
        pairs = encoder(torch.float32)
        dtype = self.model.dtype
        return tuple(tuple(t.expand(rows, -1, -1, -1).contiguous().to(dtype) for t in pair) for pair in pairs)

    @contextmanager
    def _habits(self) -> Iterator[None]:
        frozen = [p for p in self.model.transformer.layers.parameters() if p.dim() == 2 and p.is_floating_point()]
        if "recompute" in self.habits:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if "weight_gradients" in self.habits:
            for parameter in frozen:
                parameter.requires_grad_(True)
        try:
            yield
        finally:
            self.model.gradient_checkpointing_disable()
            for parameter in frozen:
                parameter.requires_grad_(False)
                parameter.grad = None


class _PublishedProduct(torch.autograd.Function):
    """A product with a packed weight as published: the whole weight made float, forward and again backward, and a gradient
    of the weight that nobody takes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(inputs, packed, scale)
        ctx.bits = bits
        return inputs @ dequantize_weight(packed, scale, bits, inputs.dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, packed, scale = ctx.saved_tensors
        input_gradient = gradient @ dequantize_weight(packed, scale, ctx.bits, gradient.dtype)
        gradient.reshape(-1, gradient.shape[-1]).t() @ inputs.reshape(-1, inputs.shape[-1])
        return input_gradient, None, None, None


PackedLinears = list[tuple[QuantizedLinear, Tensor, Tensor]]
"""Quantised linears with their weights and scales in the published form."""


def packed_linears(model: ChatGLMForConditionalGeneration) -> PackedLinears:
    """Those of the blocks; none in a float model."""
    linears = [m for m in model.transformer.layers.modules() if isinstance(m, QuantizedLinear)]
    return [(module, module.weight, module.weight_scale) for module in linears]


@contextmanager
def default_products() -> Iterator[None]:
    """Within this context float32 products on a CPU go where torch itself sends them (ptuning.kernels.onednn undone)."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    if before is not None:
        matmul.fp32_precision = "none"
    try:
        yield
    finally:
        if before is not None:
            matmul.fp32_precision = before


@contextmanager
def published_products(linears: PackedLinears) -> Iterator[None]:
    """Within this context these linears multiply as published, and float ones as ``nn.Linear`` does."""
    faster, cpu.onednn_is_faster = cpu.onednn_is_faster, lambda inputs: False
    for module, packed, scale in linears:

        def product(
            inputs: Tensor, module: QuantizedLinear = module, packed: Tensor = packed, scale: Tensor = scale
        ) -> Tensor:
            result: Tensor = _PublishedProduct.apply(inputs, packed, scale, module.bits)
            return result if module.bias is None else result + module.bias

        module.forward = product  # type: ignore[method-assign]
    try:
        with default_products():
            yield
    finally:
        cpu.onednn_is_faster = faster
        for module, _, _ in linears:
            del module.forward
