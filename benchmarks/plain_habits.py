"""The habits of the published trainer and evaluation, written down by us on our own model, so that each can be timed.

Mathematically every habit gives the same loss, gradients and answers; what differs is the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.tuned.model import ChatGLMForConditionalGeneration

HABITS = {
    "every row padded to the maximum": "padding",
    "logits and float32 loss of every position": "logits",
    "every layer computed twice": "recompute",
    "gradients of frozen weights": "weight_gradients",
    "the prefix copied per row, float32": "prefix_rows",
}
"""Name → what :class:`PlainStep` calls it."""


def batches(config: Any, rows: int, count: int, source: int, target: int, padded: bool) -> Iterator[dict[str, Tensor]]:
    """Batches of made-up ids with lengths as in ADGEN (prompts mostly short of the limit, replies mostly at it).

    Args:
        config: of the model.
        rows: B.
        count: how many batches.
        source: most tokens of a prompt, the mark included.
        target: most tokens of a reply, its two end tokens included.
        padded: to ``source + target`` instead of the batch's longest row.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    for _ in range(count):
        made: list[tuple[list[int], list[int]]] = []
        for _ in range(rows):
            prompt = torch.randint(100, config.vocab_size - 600, (draw(source // 4, source - 1),), generator=generator)
            reply = torch.randint(100, config.vocab_size - 600, (draw(3 * target // 4, target - 2),), generator=generator)
            ids = [*prompt.tolist(), config.gmask_token_id, config.bos_token_id, *reply.tolist(), config.eos_token_id]
            labels = [-100] * (len(prompt) + 1) + ids[len(prompt) + 1 :]
            made.append((ids, labels))
        width = source + target if padded else max(len(ids) for ids, _ in made)
        yield {
            "input_ids": torch.tensor([ids + [config.pad_token_id] * (width - len(ids)) for ids, _ in made]),
            "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in made]),
        }


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
        with self._habits():
            keywords: dict[str, Any] = {}
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
        frozen = [p for p in self.model.transformer.layers.parameters() if p.dim() == 2]
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
