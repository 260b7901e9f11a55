"""Everything that a report shows, as one mapping of plain values (``report.json``); both pages are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ptuning.core.paths import working_directory
from ptuning.evaluation.metrics.registry import headline_metrics
from ptuning.evaluation.report.loss_curve import Points, points_of
from ptuning.evaluation.report.published_figures import published_figures
from ptuning.evaluation.report.row_counts import row_counts
from ptuning.evaluation.report.run_settings import command_of, settings_shown
from ptuning.evaluation.report.samples import chosen_samples
from ptuning.evaluation.run_result import Evaluation, RunResult
from ptuning.memory.machine import machine, versions

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

_SHOWN_STATISTICS = {
    "characters_mean": "characters, mean",
    "characters_p95": "characters, p95",
    "reference_characters_mean": "reference, mean",
    "tokens_mean": "tokens, mean",
    "tokens_max": "tokens, longest",
    "empty_percent": "empty, %",
    "at_limit_percent": "at the limit, %",
    "repeated_4grams": "repeated 4-grams, %",
    "repetitive_percent": "mostly repetition, %",
}


def report_content(
    arguments: Arguments | None,
    result: RunResult,
    data: Mapping[str, Sequence[Any]],
    log_history: Sequence[Mapping[str, Any]],
    command: str | None = None,
) -> dict[str, Any]:
    """Everything a report shows, as values for JSON."""
    training = arguments is not None and arguments.training.do_train
    table = result.table
    last = result.models[-1] if result.models else None
    base = next((model for model in result.models if model.is_base), None)
    return {
        "title": result.folder.resolve().name,
        "kind": "tuning run" if training else "evaluation",
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command or (command_of(arguments) if arguments is not None else ""),
        "directory": working_directory(),
        "settings": settings_shown(arguments) if arguments is not None else [],
        "data": row_counts(arguments, data, result.folder),
        "curves": _curves(log_history),
        "train_metrics": {name: value for name, value in result.train_metrics.items() if isinstance(value, int | float)},
        "scores": [row.values() for row in table],
        "published": published_figures(arguments, result.rows, result.config) if arguments is not None else {},
        "statistics": [
            {"model": row.model.name, "data": row.data} | _statistics(row.evaluation) for row in table
        ],
        "samples": chosen_samples(last, base if base is not last else None),
        "machine": machine(),
        "versions": versions(),
    }


def _curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Losses and scores over the steps of the run, by the names in the legends."""
    keys = {"training loss": "loss", "validation loss": "eval_loss"}
    keys |= {metric.title: f"eval_{metric.name}" for metric in headline_metrics()}
    return {name: points_of(log_history, key) for name, key in keys.items()}


def _statistics(evaluation: Evaluation) -> dict[str, float]:
    return {shown: evaluation.metrics[name] for name, shown in _SHOWN_STATISTICS.items() if name in evaluation.metrics}
