"""The generation loop: many prompts, batched by length, answers in the order of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptuning.tuned.collator import PromptCollator
from ptuning.tuned.model import ChatGLMForConditionalGeneration
from ptuning.tuned.sampling import sampling_settings


@dataclass(frozen=True)
class GenerationPreset:
    """How answers are drawn.

    Attributes:
        do_sample: sampling, or the likeliest token.
        top_p: share of the probability that is sampled from; ``temperature`` likewise.
        whole_length: the limit counts prompt and answer together, as the published evaluation does.
    """

    do_sample: bool = False
    top_p: float = 1.0
    temperature: float = 1.0
    whole_length: bool = False


PRESETS = {
    "greedy": GenerationPreset(),
    "published": GenerationPreset(do_sample=True, top_p=0.7, temperature=0.95, whole_length=True),
}
"""The settings that ``--generation`` names."""


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        index: place of the prompt in the list that was given.
        ids: generated ids without ``<eop>`` and padding.
        finished: whether the model ended it; otherwise the limit did.
    """

    index: int
    ids: list[int]
    finished: bool


def generate_batches(
    model: ChatGLMForConditionalGeneration,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    batch_size: int,
    preset: GenerationPreset,
    num_beams: int = 1,
    seeds: Sequence[int] | None = None,
) -> Iterator[list[Answer]]:
    """Answer prompts batch by batch, longest first (so that memory that will not do fails at once, not after hours).

    Args:
        model: with or without a prefix.
        tokenizer: of the model.
        prompts: ids, each ending in ``[gMASK] <sop>``.
        limits: new tokens allowed for each prompt.
        batch_size: prompts at a time.
        preset: how answers are drawn.
        num_beams: beams; 1 for none.
        seeds: of the sampling, one for each prompt; a batch takes that of its first. None leaves the random state alone.

    Yields:
        the answers of one batch, in the batch's order; ``Answer.index`` tells the prompt.
    """
    collator = PromptCollator(tokenizer)
    settings = sampling_settings(
        do_sample=preset.do_sample, top_p=preset.top_p, temperature=preset.temperature, num_beams=num_beams
    )
    for chosen in planned_batches(prompts, batch_size):
        if seeds is not None and settings["do_sample"]:
            seed_sampling(seeds[chosen[0]])
        batch = collator([prompts[index] for index in chosen])
        sequences = model.generate(
            batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=max(limits[index] for index in chosen),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
        rows = sequences[:, batch["input_ids"].shape[1] :].tolist()
        yield [_answer(index, row, limits[index], tokenizer.eos_token_id) for index, row in zip(chosen, rows, strict=True)]


def planned_batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """The places of the prompts that are answered together, batch by batch: longest first.

    Answers depend on their batch to the last bit (a sampled one altogether), so whoever continues half a batch starts it
    again.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _answer(index: int, row: list[int], limit: int, end: int) -> Answer:
    """Cut a generated row at its own limit and its end token; what follows is padding."""
    row = row[:limit]
    finished = end in row
    return Answer(index, row[: row.index(end)] if finished else row, finished)


def seed_sampling(seed: int) -> None:
    """Fix the random state of every device, for sampling that can be repeated."""
    torch.manual_seed(seed)
