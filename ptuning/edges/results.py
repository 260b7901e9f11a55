"""Shows what a run gave: scores side by side, sample answers, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ptuning.core.paths import pasted
from ptuning.edges.output import print_line
from ptuning.edges.table import table
from ptuning.evaluation.answers import ANSWERS_FILE, PREDICTIONS_FILE
from ptuning.evaluation.intervals import LEVEL
from ptuning.evaluation.metrics.registry import table_metrics
from ptuning.evaluation.report.report import PAGE_FILE
from ptuning.evaluation.run_result import COMPARISON_FILE, RunResult, ScoredModel, ScoreRow

_COUNTS = {"empty_predictions": "empty", "unfinished_predictions": "truncated"}
SAMPLES = 3


def print_result(result: RunResult, *, written: bool = True) -> None:
    """Print scores, samples and places on standard output; ``written`` tells whether there are any places."""
    if result.models:
        print_scores(result.table)
        print_samples(result.models, result.noun)
    if not written:
        return
    print_line()
    print_line("files")
    if result.checkpoint is not None:
        print_line(f"  {result.noun:<12} {result.checkpoint}")
    for model in result.models:
        if (model.folder / ANSWERS_FILE).is_file():
            print_line(f"  predictions  {model.folder / PREDICTIONS_FILE}  ({model.name})")
    if len(result.table) > 1:
        print_line(f"  comparison   {result.folder / COMPARISON_FILE}")
    if (result.folder / "all_results.json").is_file():
        print_line(f"  all results  {result.folder / 'all_results.json'}")
    print_line(f"  report       {result.folder / PAGE_FILE}")
    if result.checkpoint is not None:
        print_line()
        print_line(f"talk to it:  bash scripts/chat.sh --ptuning_checkpoint {pasted(result.checkpoint)}")


def print_scores(rows: Sequence[ScoreRow]) -> None:
    """One line of scores for each model that was evaluated, with the interval of its difference to the base model."""
    metrics = table_metrics()
    for data in dict.fromkeys(row.data for row in rows):
        chosen = [row for row in rows if row.data == data]
        count = len(chosen[0].evaluation.answers)
        title = f"scores on {count} rows" if data == "test rows" else f"{data}, {count} rows"
        counted = {name: head for name, head in _COUNTS.items() if name in chosen[0].evaluation.metrics}
        lines: list[list[str]] = [[title, *(metric.name for metric in metrics), *counted.values(), "repeats"]]
        for row in chosen:
            values = row.evaluation.metrics
            means = (f"{values[metric.name]:.2f}" for metric in metrics)
            counts = (f"{values[name]:.0f}" for name in counted)
            lines.append([row.model.name, *means, *counts, f"{values['repeated_4grams']:.1f}%"])
        print_line()
        _say_table(lines)
        _print_intervals(chosen)


def _print_intervals(rows: Sequence[ScoreRow]) -> None:
    """Intervals of the differences to the base model; of the scores themselves where there is nothing to compare."""
    metrics = table_metrics()
    compared = [row for row in rows if row.differences]
    print_line()
    print_line(f"{LEVEL} % intervals" + (", difference to the base model" if compared else ""))
    lines = []
    for row in compared or rows:
        cells = [f"{metric.name} {_interval(row, metric.name)}" for metric in metrics]
        lines.append([row.model.name, *cells])
    _say_table(lines, align="left")


def _interval(row: ScoreRow, name: str) -> str:
    if row.differences:
        mean, low, high = row.differences[name]
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    low, high = row.intervals[name]
    return f"[{low:.2f}, {high:.2f}]"


def _say_table(rows: Sequence[Sequence[str]], align: Literal["left", "right"] = "right") -> None:
    for line in table(rows, first=18, align=align):
        print_line(line)


def print_samples(models: Sequence[ScoredModel], noun: str) -> None:
    """Three rows spread over the file: the prompt, the reference, and the answers of the base and the last model.

    Args:
        models: of a run.
        noun: of what the last one has and the base model lacks.
    """
    last = models[-1]
    base = next((model for model in models[:-1] if model.is_base and model.task is not None), None)
    if last.task is None:
        return
    answers = last.task.answers
    name = "answer" if base is None else noun
    count = min(SAMPLES, len(answers))
    for number in range(count):
        answer = answers[number * len(answers) // count]
        print_line()
        print_line(f"sample {number + 1}  ({answer.source})")
        texts = [("prompt", answer.prompt)] if answer.prompt else []
        texts.append(("reference", answer.reference))
        if base is not None and base.task is not None:
            texts.append(("base", base.task.answers[answer.index].answer))
        texts.append((name, answer.answer))
        for what, text in texts:
            print_line(f"  {what:<9}  {_one_line(text)}")


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ") or "(empty)"
