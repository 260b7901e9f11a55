"""Rows of ids to padded batches. Legend: B batch, T the longest row of the batch (or ``pad_to``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptuning.core.errors import UserError
from ptuning.data.preprocess import IGNORE_INDEX, Example
from ptuning.data.protocols import Tokenizer


@dataclass
class TrainingCollator:
    """Pads training examples on the right, to the longest row of the batch or to ``pad_to`` (``pad_to_max_length``).

    Called with examples (or mappings with ``input_ids`` and ``labels``) it gives int64 tensors ``input_ids``,
    ``labels`` and ``attention_mask`` (1 = real), each [B, T]. Padded labels are ``ignore_index``; the published
    ``ignore_pad_token_for_loss=False``, which also learns to emit padding, is ``ignore_index=tokenizer.pad_token_id``
    (its loss depends on the padding, so it wants ``pad_to=max_source_length + max_target_length`` as well). Padding that
    is learnt is real, as published: what was before it is seen from there.
    """

    tokenizer: Tokenizer
    pad_to: int | None = None
    ignore_index: int = IGNORE_INDEX

    def __call__(self, examples: Sequence[Example | Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [_ids_and_labels(example) for example in examples]
        length = _length([ids for ids, _ in rows], self.pad_to)
        pad, learnt = self.tokenizer.pad_token_id, int(self.ignore_index != IGNORE_INDEX)
        return {
            "input_ids": torch.tensor([[*ids, *[pad] * (length - len(ids))] for ids, _ in rows]),
            "labels": torch.tensor([[*labels, *[self.ignore_index] * (length - len(labels))] for _, labels in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [learnt] * (length - len(ids)) for ids, _ in rows]),
        }


@dataclass
class PromptCollator:
    """Pads prompts on the left, so that generation starts at the same column in every row.

    Called with rows of ids (from :func:`ptuning.data.truncation.prompt_ids`) it gives int64 tensors ``input_ids`` and
    ``attention_mask`` (1 = real), each [B, T].
    """

    tokenizer: Tokenizer
    pad_to: int | None = None

    def __call__(self, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        length = _length(prompts, self.pad_to)
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([[*[pad] * (length - len(ids)), *ids] for ids in prompts]),
            "attention_mask": torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]),
        }


def _ids_and_labels(example: Example | Mapping[str, Any]) -> tuple[list[int], list[int]]:
    if isinstance(example, Example):
        return example.input_ids, example.labels
    return list(example["input_ids"]), list(example["labels"])


def _length(rows: Sequence[Sequence[int]], pad_to: int | None) -> int:
    """The padded length; a row is never cut here."""
    longest = max(len(row) for row in rows)
    if pad_to is not None and longest > pad_to:
        raise UserError(f"a row has {longest} ids, more than pad_to {pad_to}; raise pad_to or lower the length limits")
    return longest if pad_to is None else pad_to
