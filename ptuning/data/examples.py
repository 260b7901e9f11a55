"""Rows to training examples: in several processes, kept on disk for the next run, with a line on what was truncated."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ptuning.core.errors import TrainingError, UserError
from ptuning.core.version import __version__
from ptuning.data.example_store import (
    Arrays,
    PackedExamples,
    cache_folder,
    fingerprint,
    joined,
    pack,
    read_arrays,
    write_arrays,
)
from ptuning.data.preprocess import Example, training_example
from ptuning.data.rows import Row, Rows, every_round
from ptuning.data.settings import ExampleSettings
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.data.truncation import prompt_ids

logger = logging.getLogger(__name__)

ROWS_WORTH_KEEPING = 1000  # fewer are tokenised sooner than they are looked up
ROWS_WORTH_PROCESSES = 20_000
_CHUNK = 2000
_MAX_PROCESSES = 8


def row_prompt(tokenizer: ChatGLMTokenizer, row: Row, data: ExampleSettings) -> list[int]:
    """The ids of a row's prompt: the same in training, evaluation and chat."""
    return prompt_ids(tokenizer, row.prompt, row.history, system=row.system, **prompt_options(data))


def prompt_options(data: ExampleSettings) -> dict[str, Any]:
    """The keywords of :func:`~ptuning.data.truncation.fit_prompt` that settings decide."""
    return {
        "max_source_length": data.max_source_length,
        "source_prefix": data.source_prefix,
        "legacy": data.legacy_first_round,
        "truncation": data.truncation,
    }


def prepare_examples(tokenizer: ChatGLMTokenizer, rows: Sequence[Row], data: ExampleSettings, name: str) -> PackedExamples:
    """Training examples of rows, in their order, with a line in the log on their lengths and the first one in full.

    Raises:
        UserError: a row without a reply, or none left with ``--truncated_replies drop``.
    """
    if data.loss_on == "all" and isinstance(rows, Rows) and not rows.per_round:
        rows = every_round(rows)
    examples = tokenised(tokenizer, rows, data, name)
    _report_lengths(examples, data, name)
    if data.cut_replies == "drop":
        examples = _without_truncated_replies(examples, data, name)
    _show_first(tokenizer, examples)
    return examples


def tokenised(tokenizer: ChatGLMTokenizer, rows: Sequence[Row], data: ExampleSettings, name: str) -> PackedExamples:
    """One example for each row.

    Large sets are made by several processes and kept on disk (see :func:`~ptuning.data.example_store.cache_folder`)
    under a name that follows from rows, settings, tokenizer and version; ``--overwrite_cache`` prepares them again.
    """
    settings = prompt_options(data) | {
        "max_target_length": data.max_target_length,
        "close_cut_replies": data.cut_replies == "closed",
    }
    return PackedExamples(_kept_or_made(tokenizer, rows, settings, data, name), [row.source for row in rows])


def _kept_or_made(
    tokenizer: ChatGLMTokenizer, rows: Sequence[Row], settings: dict[str, Any], data: ExampleSettings, name: str
) -> Arrays:
    make = partial(training_example, tokenizer, **settings)
    if len(rows) < ROWS_WORTH_KEEPING:
        return _made(make, rows, data.preprocessing_num_workers, name)
    texts = ((row.prompt, row.response, row.history, row.system) for row in rows)
    folder = cache_folder()
    if folder is None:
        return _made(make, rows, data.preprocessing_num_workers, name)
    path = folder / f"{fingerprint(texts, settings | _versions(tokenizer))}.safetensors"
    arrays = None if data.overwrite_cache else read_arrays(path, len(rows))
    if arrays is not None:
        logger.info("%s: tokenised before, read from %s", name, path)
        return arrays
    arrays = _made(make, rows, data.preprocessing_num_workers, name)
    write_arrays(path, arrays)
    return arrays


def _versions(tokenizer: ChatGLMTokenizer) -> dict[str, Any]:
    """What of the program and the tokenizer decides the ids."""
    return {
        "ptuning": __version__,
        "vocabulary": hashlib.sha256(tokenizer.sp_model.serialized_model_proto()).hexdigest(),
        "prompt_form": type(tokenizer.prompt_form).__name__,
        "num_image_tokens": tokenizer.num_image_tokens,
        "do_lower_case": tokenizer.do_lower_case,
        "remove_space": tokenizer.remove_space,
    }


def _made(make: Callable[[Row], Example], rows: Sequence[Row], workers: int | None, name: str) -> Arrays:
    """The examples of all rows, from this process or several."""
    if workers is None:
        workers = min(os.cpu_count() or 1, _MAX_PROCESSES) if len(rows) >= ROWS_WORTH_PROCESSES else 1
    chunks = [(start, rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
    if workers > 1 and 1 < len(rows) <= _CHUNK:
        half = -(-len(rows) // workers)
        chunks = [(start, rows[start : start + half]) for start in range(0, len(rows), half)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        return joined([_packed(make, *chunk) for chunk in chunks])
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    logger.info("Running tokenizer on %s (%d rows, %d processes)", name, len(rows), workers)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            return joined(list(pool.map(partial(_packed, make), *zip(*chunks, strict=True))))
    except BrokenProcessPool as error:
        raise TrainingError(
            f"{name}: one of {workers} processes that tokenise rows was killed, most often for want of memory: lower "
            "--preprocessing_num_workers"
        ) from error


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even by SIGKILL: nobody would take its rows."""
    import multiprocessing

    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _packed(make: Callable[[Row], Example], start: int, rows: Sequence[Row]) -> Arrays:
    return pack([make(row) for row in rows], range(start, start + len(rows)))


def _without_truncated_replies(examples: PackedExamples, data: ExampleSettings, name: str) -> PackedExamples:
    keep = np.flatnonzero(examples.arrays["full_target"] <= data.max_target_length)
    lost = len(examples) - len(keep)
    if not lost:
        return examples
    if not len(keep):
        raise UserError(
            f"{name}: no row left, all {lost} replies are longer than --max_target_length {data.max_target_length} and "
            "--truncated_replies is drop; raise the limit"
        )
    logger.warning(
        "%s: dropped %d of %d rows: the reply is longer than --max_target_length %d",
        name, lost, len(examples), data.max_target_length,
    )
    kept = [examples[int(index)] for index in keep]
    return PackedExamples(pack(kept, examples.arrays["row"][keep].tolist()), examples.sources)


def what_became_of_replies(data: ExampleSettings) -> str:
    """What ``--truncated_replies`` does to replies that are too long, for a message."""
    words = {"open": "truncated, without an end token", "closed": "truncated and ended", "drop": "left out"}
    return words[data.cut_replies or "open"]


def _report_lengths(examples: PackedExamples, data: ExampleSettings, name: str) -> None:
    """One line on lengths, and on how many texts were truncated."""
    a = examples.arrays
    lost, truncated = int((a["dropped_rounds"] > 0).sum()), int(a["cut_prompt"].sum())
    long = int((a["full_target"] > data.max_target_length).sum())
    logger.info(
        "%s: %d rows; prompt tokens %s, limit %d: %d lost earlier rounds, %d were truncated; reply tokens %s, limit %d: "
        "%d %s",
        name, len(examples), _spread(a["full_source"]), data.max_source_length, lost, truncated,
        _spread(a["full_target"]), data.max_target_length, long, what_became_of_replies(data),
    )


def _spread(lengths: np.ndarray) -> str:
    p50, p95 = (int(value) for value in np.percentile(lengths, (50, 95), method="lower"))
    return f"p50 {p50}, p95 {p95}, longest {int(lengths.max())}"


def _show_first(tokenizer: Any, examples: Sequence[Example]) -> None:
    """The first example as the model sees it, as the published trainer prints it (at log level info)."""
    first = examples[0]
    learnt = [label for label in first.labels if label >= 0]
    for name, value in (
        ("input_ids", first.input_ids),
        ("inputs", tokenizer.decode(first.input_ids)),
        ("label_ids", first.labels),
        ("labels", tokenizer.decode(learnt)),
    ):
        logger.info("%s %s", name, value)
