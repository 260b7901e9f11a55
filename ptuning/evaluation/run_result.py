"""What a run gave: answers and scores of one model or several, compared. Nothing here needs torch."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ptuning.core.atomic import replace_when_whole
from ptuning.core.choices import DEFAULT_METHOD
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.intervals import difference_intervals, mean_intervals
from ptuning.evaluation.metrics.registry import corpus_metrics
from ptuning.evaluation.metrics.scoring import summary
from ptuning.evaluation.text_statistics import text_statistics

logger = logging.getLogger(__name__)

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        predictions: answers in the order of the rows, as a chat would show them.
        references: the reference replies in the same form.
        metrics: the scores by the names of the metrics, empty_predictions, unfinished_predictions, length and repetition
            statistics; runtime and rates where a model answered.
        answers: the same answers with all that is known about each.
    """

    predictions: list[str]
    references: list[str]
    metrics: dict[str, float]
    answers: list[ScoredAnswer] = field(default_factory=list)


def evaluation_of(answers: list[ScoredAnswer]) -> Evaluation:
    """Means, counts and statistics of answers that have their scores; at least one, in the order of the rows."""
    predictions, references = [answer.answer for answer in answers], [answer.reference for answer in answers]
    metrics = summary([answer.scores for answer in answers], predictions, references)
    if all(answer.finish_reason for answer in answers):
        metrics["unfinished_predictions"] = sum(answer.finish_reason == "length" for answer in answers)
    return Evaluation(predictions, references, metrics | text_statistics(answers), answers)


@dataclass(frozen=True)
class ScoredModel:
    """One model of a run and its scores.

    Attributes:
        name: for tables: ``base model``, ``with the prefix``, ``checkpoint-1000``.
        folder: where its answers lie.
        checkpoint: what it was tuned to; None for the base model, and for what is in memory only.
        is_base: whether it is the model as it was before tuning.
        task: on the test rows; None where they were not asked of it. ``general`` likewise, on the general set.
    """

    name: str
    folder: Path
    checkpoint: Path | None
    is_base: bool
    task: Evaluation | None
    general: Evaluation | None = None

    @property
    def step(self) -> int | None:
        """The training step of its checkpoint, by the folder's name."""
        match = re.fullmatch(r"checkpoint-(\d+)", self.checkpoint.name) if self.checkpoint else None
        return int(match[1]) if match else None


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        folder: the output folder.
        checkpoint: the last (or best) checkpoint, or the one that was evaluated; None for a base model.
        rows: the test rows, in the order of the answers; empty without ``--do_predict``.
        models: what was evaluated, the base model first.
        train_metrics: what the trainer reports.
        noun: of what is tuned, for tables: ``prefix``.
        config: of the base model, a :class:`~ptuning.model.config.ChatGLMConfig`; None for scores of a file.
    """

    folder: Path
    checkpoint: Path | None
    rows: Sequence[Any]
    models: list[ScoredModel] = field(default_factory=list)
    train_metrics: dict[str, float] = field(default_factory=dict)
    noun: str = DEFAULT_METHOD
    config: Any = None

    @cached_property
    def table(self) -> list[ScoreRow]:
        """The table of scores of its models."""
        return score_rows(self.models)

    @property
    def tuned(self) -> Evaluation | None:
        """Of the last model: the tuned one, or the base model where nothing is tuned."""
        return self.models[-1].task if self.models else None

    @property
    def base(self) -> Evaluation | None:
        """Of the base model, where it was compared with a tuned one."""
        return next((model.task for model in self.models[:-1] if model.is_base), None)


@dataclass(frozen=True)
class ScoreRow:
    """One row of the table of scores.

    Attributes:
        model: who was scored.
        data: ``test rows`` or ``general set``.
        evaluation: the scores.
        intervals: 95 % of each mean score.
        differences: to the base model on the same rows, paired: mean, low, high; empty for the base model itself, and
            where it was not scored.
    """

    model: ScoredModel
    data: str
    evaluation: Evaluation
    intervals: dict[str, tuple[float, float]]
    differences: dict[str, tuple[float, float, float]]

    def values(self) -> dict[str, Any]:
        """The same for JSON."""
        metrics = self.evaluation.metrics
        return {
            "model": self.model.name,
            "checkpoint": None if self.model.checkpoint is None else str(self.model.checkpoint),
            "step": self.model.step,
            "data": self.data,
            "rows": len(self.evaluation.answers),
            "scores": {
                name: {"mean": metrics[name], "low": low, "high": high} for name, (low, high) in self.intervals.items()
            },
            "difference_to_base": {
                name: {"mean": mean, "low": low, "high": high} for name, (mean, low, high) in self.differences.items()
            },
            "set_scores": {metric.name: metrics[metric.name] for metric in corpus_metrics() if metric.name in metrics},
        }


def score_rows(models: Sequence[ScoredModel]) -> list[ScoreRow]:
    """The table of scores: every model on the test rows, then every model on the general set."""
    return [row for data in ("test rows", "general set") for row in _rows_of(models, data)]


def _rows_of(models: Sequence[ScoredModel], data: str) -> Iterator[ScoreRow]:
    base: list[dict[str, float]] | None = None
    for model in models:
        evaluation = model.task if data == "test rows" else model.general
        if evaluation is None:
            continue
        scores = [answer.scores for answer in evaluation.answers]
        differences = {}
        if model.is_base:
            base = scores
        elif base is not None:
            for name, (low, high) in difference_intervals(scores, base).items():
                mean = sum(ours[name] - theirs[name] for ours, theirs in zip(scores, base, strict=True)) / len(scores)
                differences[name] = (mean, low, high)
        yield ScoreRow(model, data, evaluation, mean_intervals(scores), differences)


def save_comparison(folder: Path, rows: Sequence[ScoreRow]) -> Path:
    """Write the table of scores as ``comparison.json``."""
    path = folder / COMPARISON_FILE
    with replace_when_whole(path) as temporary:
        text = json.dumps([row.values() for row in rows], ensure_ascii=False, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path
