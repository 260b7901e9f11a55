"""``ptuning train``, put together: a tuning run, then the test rows answered and scored, then the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptuning.core.progress import OpenProgress, silent
from ptuning.data.rows import Row
from ptuning.evaluation.metrics.registry import row_metrics
from ptuning.evaluation.predictions import evaluate_rows
from ptuning.evaluation.report.report import write_report
from ptuning.evaluation.run import EvaluationRows, evaluate_models, prepare_evaluation_rows
from ptuning.evaluation.run_result import RunResult
from ptuning.methods.registry import METHODS
from ptuning.settings.output_claim import claimed_output
from ptuning.settings.training_arguments import Arguments
from ptuning.training.run import prepare_tuning, tune


def run_tuning(
    arguments: Arguments, progress: OpenProgress = silent, open_bar: OpenProgress | None = None
) -> RunResult:
    """Train, and evaluate it where the settings name test rows.

    Args:
        arguments: see :func:`ptuning.edges.run_arguments.parse_arguments`.
        progress: opens a progress display for the evaluation.
        open_bar: opens a bar that counts training steps; None: log lines instead.

    Raises:
        UserError: settings, rows or checkpoints that do not fit; rows are checked before the model is loaded.
        TrainingError, StoppedError, OutputError: see :func:`ptuning.training.run.tune`.
    """
    data, training, noun = arguments.data, arguments.training, METHODS[arguments.method].words.noun

    def score_rows(model: Any, tokenizer: Any, rows: Sequence[Row]) -> dict[str, float]:
        scored = evaluate_rows(
            model, tokenizer, rows, data, batch_size=training.per_device_eval_batch_size, seed=training.seed
        )
        return {metric.name: scored.metrics[metric.name] for metric in row_metrics()}

    with claimed_output(arguments) as place:
        prepared = prepare_tuning(arguments)
        asked = prepare_evaluation_rows(data) if training.do_predict else EvaluationRows([])
        tuned = tune(prepared, place, score_rows, open_bar)
        folder = Path(str(training.output_dir))
        if not tuned.is_first_process:
            return RunResult(folder, tuned.checkpoint, [], [], tuned.metrics, noun)
        models = []
        if asked.task:
            models = evaluate_models(
                tuned.model, prepared.base.tokenizer, asked, prepared.arguments, folder, progress, tuned.checkpoint, place
            )
        result = RunResult(folder, tuned.checkpoint, asked.task, models, tuned.metrics, noun, prepared.base.config)
        rows = {"training": prepared.rows, "validation": prepared.validation, **asked.by_name()}
        write_report(prepared.arguments, result, rows)
        return result
