"""Evaluation: predict test rows, write the answers, score them."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.loops.generation import PRESETS, generate_batches, seed_sampling
from ptuning.plain.arguments import DataArguments
from ptuning.plain.metrics import score
from ptuning.plain.response import process_response
from ptuning.tuned.atomic import replace_when_whole
from ptuning.tuned.model import ChatGLMForConditionalGeneration
from ptuning.tuned.preprocess import reply_ids
from ptuning.tuned.rows import Row
from ptuning.uses.examples import row_prompt

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "generated_predictions.txt"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        predictions: answers in the order of the rows, as a chat would show them.
        references: the wanted replies in the same form.
        metrics: rouge-1, rouge-2, rouge-l, bleu-4 (percent), empty_predictions, unfinished_predictions, runtime.
    """

    predictions: list[str]
    references: list[str]
    metrics: dict[str, float]


def evaluate_rows(
    model: ChatGLMForConditionalGeneration,
    tokenizer: Any,
    rows: Sequence[Row],
    data: DataArguments,
    *,
    batch_size: int,
    seed: int = 42,
    folder: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict rows and score the answers.

    The answers are written before they are scored, so that nothing is lost should a metric fail. Replies are cut to
    ``val_max_target_length`` before they are compared, as the published evaluation does; answers may have as many tokens.

    Args:
        model: in eval mode.
        tokenizer: of the model.
        rows: with replies.
        data: lengths, prompt settings, generation preset, beams.
        batch_size: prompts at a time.
        seed: of the sampling.
        folder: where ``generated_predictions.txt`` goes; None writes nothing.
        on_progress: called with the number of rows that were just answered.
    """
    started = time.perf_counter()
    preset = PRESETS[data.generation]
    limit = data.val_max_target_length or data.max_target_length
    prompts = [row_prompt(tokenizer, row, data) for row in rows]
    whole = data.max_source_length + limit + 1
    limits = [whole - len(ids) if preset.whole_length else limit for ids in prompts]
    references = [_reference(tokenizer, row, limit) for row in rows]
    answers: dict[int, Any] = {}
    seed_sampling(seed)
    for batch in generate_batches(
        model, tokenizer, prompts, limits, batch_size=batch_size, preset=preset, num_beams=data.num_beams or 1
    ):
        answers |= {answer.index: answer for answer in batch}
        if on_progress is not None:
            on_progress(len(batch))
    predictions = [_text(tokenizer, answers[index].ids) for index in range(len(rows))]
    if folder is not None:
        write_predictions(folder, predictions, references)
    runtime = time.perf_counter() - started
    metrics = score(predictions, references)
    metrics["unfinished_predictions"] = sum(not answer.finished for answer in answers.values())
    metrics |= {
        "runtime": round(runtime, 4),
        "samples": len(rows),
        "samples_per_second": round(len(rows) / runtime, 3),
        "steps_per_second": round(math.ceil(len(rows) / batch_size) / runtime, 3),
    }
    return Evaluation(predictions, references, metrics)


def _reference(tokenizer: Any, row: Row, limit: int) -> str:
    """The wanted reply as the model could at best have written it: through the tokenizer, cut, no control pieces."""
    ids = reply_ids(tokenizer, row.response or "", max_target_length=limit)[:-1]
    return _text(tokenizer, ids)


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Ids as a chat would show them, without half a character where they were cut."""
    return process_response(tokenizer.decode(ids).rstrip("\ufffd"))


def write_predictions(folder: Path, predictions: Sequence[str], references: Sequence[str]) -> Path:
    """Write ``generated_predictions.txt`` in its published form, one object with ``labels`` and ``predict`` a line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PREDICTIONS_FILE
    with replace_when_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for prediction, reference in zip(predictions, references, strict=True):
            file.write(json.dumps({"labels": reference, "predict": prediction}, ensure_ascii=False) + "\n")
    return path


def save_metrics(folder: Path, split: str, metrics: dict[str, Any]) -> Path:
    """Write ``{split}_results.json`` and add the same to ``all_results.json``.

    Args:
        folder: made where missing.
        split: ``predict``, ``eval`` or ``train``; names get it in front where they lack it, as published.
        metrics: numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = (f"{split}_", "epoch")
    named = {(name if name.startswith(plain) else f"{split}_{name}"): value for name, value in metrics.items()}
    path, together = folder / f"{split}_results.json", folder / "all_results.json"
    earlier = json.loads(together.read_text(encoding="utf-8")) if together.is_file() else {}
    for target, values in ((path, named), (together, earlier | named)):
        with replace_when_whole(target) as temporary:
            text = json.dumps(values, ensure_ascii=False, indent=4, sort_keys=True)
            temporary.write_text(text + "\n", encoding="utf-8")
    return path
