"""The generation loop of an evaluation: many prompts, each answer handed on as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ptuning.core.errors import GenerationError, UserError, is_out_of_memory
from ptuning.data.collator import PromptCollator
from ptuning.engine.engine import Engine
from ptuning.engine.generate import generate, generate_settings
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import GREEDY, SamplingParams
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.setting_limits import Limits, check_number


@dataclass(frozen=True)
class GenerationPreset:
    """How answers are drawn.

    Attributes:
        sampling: of every answer, but for its seed and its limit.
        whole_length: the limit counts prompt and answer together, as the published evaluation does.
    """

    sampling: SamplingParams = GREEDY
    whole_length: bool = False


PRESETS = {
    "greedy": GenerationPreset(),
    "published": GenerationPreset(SamplingParams(top_p=0.7, temperature=0.95), whole_length=True),
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


def generate_answers(
    model: ChatGLMNetwork,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    batch_size: int,
    preset: GenerationPreset,
    num_beams: int = 1,
    seeds: Sequence[int] | None = None,
) -> Iterator[Answer]:
    """Answer prompts, longest first (so that memory that will not do fails at once, not after hours).

    The engine refills its batch as rows end, and each row draws its own random numbers: an answer does not depend on
    what is answered beside it. Beams go through transformers, batch by batch.

    Args:
        model: with or without a prefix.
        tokenizer: of the model.
        prompts: ids, each ending in ``[gMASK] <sop>``.
        limits: new tokens allowed for each prompt.
        batch_size: prompts at a time.
        preset: how answers are drawn.
        num_beams: beams; 1 for none.
        seeds: of the sampling, one for each prompt; None draws them.

    Returns:
        answers as they end; ``Answer.index`` tells the prompt.

    Raises:
        UserError: batches or beams of no size, or not one limit (and seed) for each prompt.
        GenerationError: the model's scores are NaN or infinite, or memory does not suffice.
    """
    check_number("batch_size", batch_size, Limits(min=1))
    check_number("num_beams", num_beams, Limits(min=1, max=model.config.vocab_size))
    if len(limits) != len(prompts) or len(prompts if seeds is None else seeds) != len(prompts):
        counts = f"{len(prompts)} prompts, {len(limits)} limits, {'no' if seeds is None else len(seeds)} seeds"
        raise UserError(f"{counts}: there must be a limit, and where there are seeds a seed, for each prompt")
    if not prompts:
        return iter(())
    return _in_memory(_answers(model, tokenizer, prompts, limits, batch_size, preset, num_beams, seeds), batch_size)


def _in_memory(answers: Iterator[Answer], batch_size: int) -> Iterator[Answer]:
    """The answers; memory that does not suffice is one line."""
    try:
        yield from answers
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise GenerationError(
            f"out of memory while answering {batch_size} prompts at a time: a smaller --per_device_eval_batch_size or "
            "fewer --num_beams need less"
        ) from error


def _answers(
    model: ChatGLMNetwork,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch_size: int,
    preset: GenerationPreset,
    num_beams: int,
    seeds: Sequence[int] | None,
) -> Iterator[Answer]:
    """As :func:`generate_answers`, after its checks of the sizes."""
    if num_beams > 1:
        yield from _beam_answers(model, tokenizer, prompts, limits, batch_size, preset, num_beams, seeds)
        return
    engine = Engine(model, tokenizer, max_rows=min(batch_size, len(prompts)), max_waiting=len(prompts))
    with torch.no_grad():
        states = model.prefix_key_values()
    prefix = None if states is None else engine.add_prefix("prefix", states)
    requests = []
    for index, ids in enumerate(prompts):
        seed = None if seeds is None else seeds[index]
        requests.append(Request(list(ids), prefix, replace(preset.sampling, seed=seed, max_new_tokens=limits[index])))
    for done in engine.run(requests):
        done.raise_for_error()
        yield Answer(done.index, done.ids, done.finish_reason == "stop")


def _beam_answers(
    model: ChatGLMNetwork,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch_size: int,
    preset: GenerationPreset,
    num_beams: int,
    seeds: Sequence[int] | None,
) -> Iterator[Answer]:
    collator = PromptCollator(tokenizer)
    settings = generate_settings(preset.sampling) | {"num_beams": num_beams}
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        batch_order = order[start : start + batch_size]
        if seeds is not None and settings["do_sample"]:
            torch.manual_seed(seeds[batch_order[0]])
        batch = collator([prompts[index] for index in batch_order])
        sequences = generate(
            model,
            batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=max(limits[index] for index in batch_order),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
        rows = sequences[:, batch["input_ids"].shape[1] :].tolist()
        for index, row in zip(batch_order, rows, strict=True):
            yield _answer(index, row, limits[index], tokenizer.eos_token_id)


def _answer(index: int, row: list[int], limit: int, end: int) -> Answer:
    """Cut a generated row at its own limit and its end token; what follows is padding."""
    row = row[:limit]
    finished = end in row
    return Answer(index, row[: row.index(end)] if finished else row, finished)
