"""Scores of a predictions file that is there: no model, no torch."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from ptuning.core.output_folder import claimed
from ptuning.core.paths import path_argument, quoted
from ptuning.core.progress import OpenProgress, silent
from ptuning.core.result_files import save_metrics
from ptuning.evaluation.answers import ScoredAnswer, read_answers
from ptuning.evaluation.metrics.scoring import score_pair
from ptuning.evaluation.report.report import write_report
from ptuning.evaluation.run_result import RunResult, ScoredModel, evaluation_of


def rescore(path: Path, folder: Path | None = None, progress: OpenProgress = silent) -> RunResult:
    """Score the answers of a file.

    Args:
        path: ``generated_predictions.txt`` or ``.jsonl`` of ours, of the published trainer or of LLaMA-Factory.
        folder: where ``predict_results.json`` and a report go; None writes nothing.
        progress: opens a progress display.

    Raises:
        UserError: a file that is none of these, as ``file:line``; a folder that cannot be written.
    """
    answers = read_answers(path)
    with nullcontext() if folder is None else claimed(folder):
        return _rescore(path, answers, folder, progress)


def _rescore(path: Path, answers: list[ScoredAnswer], folder: Path | None, progress: OpenProgress) -> RunResult:
    scored = []
    with closing(progress("scoring", len(answers))) as display:
        for number, answer in enumerate(answers):
            scored.append(replace(answer, index=number, scores=score_pair(answer.answer, answer.reference)))
            display.advance(1)
    evaluation = evaluation_of(scored)
    evaluation.metrics["samples"] = len(scored)
    model = ScoredModel(path.name, path.parent, None, False, evaluation)
    result = RunResult(folder or path.parent, None, answers, [model])
    if folder is not None:
        save_metrics(folder, "predict", evaluation.metrics)
        words = ["ptuning", "evaluate", "--metrics-only", path_argument(path), f"--output_dir={folder}"]
        command = " ".join(map(quoted, words))
        write_report(None, result, {"test": answers}, command=command)
    return result
