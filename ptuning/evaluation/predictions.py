"""Evaluation: predict test rows, write each answer as it is made, score them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptuning.core.progress import OpenProgress, silent
from ptuning.data.examples import row_prompt
from ptuning.data.preprocess import reply_ids
from ptuning.data.rows import Row
from ptuning.engine.generation import PRESETS, generate_answers
from ptuning.engine.text_stream import reply_text
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.journal import AnswerJournal
from ptuning.evaluation.metrics.registry import row_metrics
from ptuning.evaluation.metrics.scoring import score_pair
from ptuning.evaluation.run_fingerprint import run_fingerprint
from ptuning.evaluation.run_result import Evaluation, evaluation_of
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.arguments import DataArguments
from ptuning.settings.setting_limits import Limits, check_number

__all__ = ["Evaluation", "evaluate_rows"]


def evaluate_rows(
    model: ChatGLMNetwork,
    tokenizer: Any,
    rows: Sequence[Row],
    data: DataArguments,
    *,
    batch_size: int,
    seed: int = 42,
    folder: Path | None = None,
    start_over: bool = False,
    title: str = "answering",
    progress: OpenProgress = silent,
) -> Evaluation:
    """Predict rows and score the answers.

    Each answer is scored and written as it is made, so that nothing is lost if the run is killed: the next one with the
    same settings, rows and weights answers the rows that are left. Replies are truncated to ``val_max_target_length`` before
    they are compared, as the published evaluation does; answers may have as many tokens.

    Args:
        model: in eval mode.
        tokenizer: of the model.
        rows: with replies.
        data: lengths, prompt settings, generation preset, beams.
        batch_size: prompts at a time.
        seed: of the sampling: row i is drawn with ``seed + i``.
        folder: where ``generated_predictions.jsonl`` and ``.txt`` go (see :mod:`ptuning.evaluation.journal`); None writes
            nothing.
        start_over: answer every row even where answers of an earlier run could be kept.
        title: of the progress display.
        progress: opens it.

    Raises:
        UserError: a batch of no size.
    """
    check_number("batch_size", batch_size, Limits(min=1))
    started = time.perf_counter()
    prompts = [row_prompt(tokenizer, row, data) for row in rows]
    limit = data.val_max_target_length or data.max_target_length
    limits = _limits(prompts, data, limit)
    fingerprint = {} if folder is None else run_fingerprint(model, rows, prompts, data, batch_size=batch_size, seed=seed)
    with _kept(folder, fingerprint, len(rows), start_over) as (answers, keep):
        left = [index for index in range(len(rows)) if index not in answers]
        with closing(progress(title, len(rows), done=len(rows) - len(left))) as display:
            for answer in generate_answers(
                model,
                tokenizer,
                [prompts[index] for index in left],
                [limits[index] for index in left],
                batch_size=batch_size,
                preset=PRESETS[data.generation],
                num_beams=data.num_beams or 1,
                seeds=[seed + index for index in left],
            ):
                index = left[answer.index]
                keep([_scored(tokenizer, index, rows[index], answer, limit)])
                display.advance(1)
    done = evaluation_of([answers[index] for index in range(len(rows))])
    done.metrics.update(_rates(len(rows), len(left), batch_size, time.perf_counter() - started))
    return done


def _limits(prompts: Sequence[Sequence[int]], data: DataArguments, limit: int) -> list[int]:
    """New tokens that each prompt may get; the published evaluation counts prompt and answer together."""
    whole = data.max_source_length + limit + 1
    return [whole - len(ids) if PRESETS[data.generation].whole_length else limit for ids in prompts]


def _rates(rows: int, answered: int, batch_size: int, runtime: float) -> dict[str, float]:
    """Runtime in seconds, and rates of the rows that this run answered itself."""
    return {
        "runtime": round(runtime, 4),
        "samples": rows,
        "samples_per_second": round(answered / runtime, 3),
        "steps_per_second": round(math.ceil(answered / batch_size) / runtime, 3),
    }


@contextmanager
def _kept(
    folder: Path | None, fingerprint: dict[str, Any], rows: int, start_over: bool
) -> Iterator[tuple[dict[int, ScoredAnswer], Callable[[Iterable[ScoredAnswer]], None]]]:
    """The answers there are by row, and what keeps a further one: on disk, or in memory alone."""
    if folder is not None:
        with AnswerJournal(folder, fingerprint, rows, start_over=start_over) as journal:
            journal.answers.update({index: _rescored(answer) for index, answer in journal.answers.items()})
            yield journal.answers, journal.append
    else:
        answers: dict[int, ScoredAnswer] = {}
        yield answers, lambda further: answers.update({answer.index: answer for answer in further})


def _rescored(answer: ScoredAnswer) -> ScoredAnswer:
    """An answer of an earlier run, scored again where that run knew other metrics."""
    if answer.scores.keys() == {metric.name for metric in row_metrics()}:
        return answer
    return replace(answer, scores=score_pair(answer.answer, answer.reference))


def _scored(tokenizer: Any, index: int, row: Row, answer: Any, limit: int) -> ScoredAnswer:
    text, reference = reply_text(tokenizer, answer.ids), _reference(tokenizer, row, limit)
    return ScoredAnswer(
        index=index,
        reference=reference,
        answer=text,
        prompt=row.prompt,
        history=[list(turn) for turn in row.history or ()],
        source=row.source,
        finish_reason="stop" if answer.finished else "length",
        tokens=len(answer.ids),
        scores=score_pair(text, reference),
    )


def _reference(tokenizer: Any, row: Row, limit: int) -> str:
    """The reference as the model could at best have written it: through the tokenizer, truncated, no control pieces."""
    ids = reply_ids(tokenizer, row.response or "", max_target_length=limit)[:-1]
    return reply_text(tokenizer, ids)
