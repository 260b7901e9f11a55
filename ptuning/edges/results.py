"""Shows a run: progress while rows are answered, scores side by side, sample answers, and where everything lies."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from ptuning.core.paths import pasted
from ptuning.edges.output import inline, say, tell
from ptuning.evaluation.answers import ANSWERS_FILE, PREDICTIONS_FILE
from ptuning.evaluation.intervals import LEVEL
from ptuning.evaluation.report.report import PAGE_FILE
from ptuning.evaluation.run_result import COMPARISON_FILE, RunResult, ScoredModel, ScoreRow

_COLUMNS = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
_COUNTS = {"empty_predictions": "empty", "unfinished_predictions": "cut off"}
SAMPLES = 3
SECONDS_BETWEEN_LINES = 30.0
"""How often progress is told where standard error is no terminal."""


def progress_bar(title: str, total: int, answered: int) -> Callable[[int], None]:
    """A display on standard error that counts rows: a bar on a terminal, which closes itself at the end, else a line now
    and then.

    Args:
        title: what is being done.
        total: rows; ``answered`` of them were done by an earlier run and do not count for the rate.
        answered: see there.
    """
    if not sys.stderr.isatty():
        return _progress_lines(title, total, answered)
    from tqdm.auto import tqdm

    bar = tqdm(total=total, initial=answered, desc=inline(title), unit="row", file=sys.stderr, dynamic_ncols=True)

    def advance(rows: int) -> None:
        bar.update(rows)
        if bar.n >= total:
            bar.close()

    if answered >= total:
        bar.close()
    return advance


def _progress_lines(title: str, total: int, answered: int) -> Callable[[int], None]:
    started = said = time.monotonic()
    done = answered

    def advance(rows: int) -> None:
        nonlocal done, said
        done += rows
        now = time.monotonic()
        if done < total and now - said < SECONDS_BETWEEN_LINES:
            return
        said = now
        rate = (done - answered) / max(now - started, 1e-9)
        left = f", {timedelta(seconds=round((total - done) / rate))} left" if done < total else ""
        tell(f"{title}: {done}/{total} rows, {rate:.1f} rows/s{left}")

    return advance


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Log lines and warnings of libraries go above the bar instead of through it."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logging.captureWarnings(True)
    try:
        with logging_redirect_tqdm([logging.getLogger(), logging.getLogger("transformers")]):
            yield
    finally:
        logging.captureWarnings(False)


def print_result(result: RunResult, *, written: bool = True) -> None:
    """Print scores, samples and places on standard output; ``written`` tells whether there are any places."""
    if result.models:
        print_scores(result.table)
        print_samples(result.models, result.noun)
    if not written:
        return
    say()
    say("files")
    if result.checkpoint is not None:
        say(f"  {result.noun:<12} {result.checkpoint}")
    for model in result.models:
        if (model.folder / ANSWERS_FILE).is_file():
            say(f"  predictions  {model.folder / PREDICTIONS_FILE}  ({model.name})")
    if len(result.table) > 1:
        say(f"  comparison   {result.folder / COMPARISON_FILE}")
    if (result.folder / "all_results.json").is_file():
        say(f"  all results  {result.folder / 'all_results.json'}")
    say(f"  report       {result.folder / PAGE_FILE}")
    if result.checkpoint is not None:
        say()
        say(f"talk to it:  bash scripts/chat.sh --ptuning_checkpoint {pasted(result.checkpoint)}")


def print_scores(rows: Sequence[ScoreRow]) -> None:
    """One line of scores for each model that was evaluated, with the interval of its difference to the base model."""
    for data in dict.fromkeys(row.data for row in rows):
        chosen = [row for row in rows if row.data == data]
        count = len(chosen[0].evaluation.answers)
        title = f"scores on {count} rows" if data == "test rows" else f"{data}, {count} rows"
        width = max(18, len(title), *(len(row.model.name) + 2 for row in chosen))
        counted = {name: head for name, head in _COUNTS.items() if name in chosen[0].evaluation.metrics}
        heads = "".join(f"{name:>9}" for name in _COLUMNS) + "".join(f"{head:>9}" for head in counted.values())
        say()
        say(f"{title:<{width}}{heads}{'repeats':>9}")
        for row in chosen:
            metrics = row.evaluation.metrics
            scores = "".join(f"{metrics[column]:9.2f}" for column in _COLUMNS)
            counts = "".join(f"{metrics[name]:9.0f}" for name in counted)
            say(f"{row.model.name:<{width}}{scores}{counts}{metrics['repeated_4grams']:8.1f}%")
        _print_intervals(chosen, width)


def _print_intervals(rows: Sequence[ScoreRow], width: int) -> None:
    """Intervals of the differences to the base model; of the scores themselves where there is nothing to compare."""
    compared = [row for row in rows if row.differences]
    say()
    say(f"{LEVEL} % intervals" + (", difference to the base model" if compared else ""))
    for row in compared or rows:
        if compared:
            cells = [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in map(row.differences.get, _COLUMNS)]  # type: ignore[misc]
        else:
            cells = [f"[{low:.2f}, {high:.2f}]" for low, high in map(row.intervals.get, _COLUMNS)]  # type: ignore[misc]
        say(f"{row.model.name:<{width}}" + "  ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS, cells, strict=True)))


def print_samples(models: Sequence[ScoredModel], noun: str) -> None:
    """Three rows spread over the file: the prompt, the wanted reply, and the answers of the base and the last model.

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
        say()
        say(f"sample {number + 1}  ({answer.source})")
        if answer.prompt:
            say(f"  prompt   {_one_line(answer.prompt)}")
        say(f"  wanted   {_one_line(answer.reference)}")
        if base is not None and base.task is not None:
            say(f"  base     {_one_line(base.task.answers[answer.index].answer)}")
        say(f"  {name}   {_one_line(answer.answer)}")


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ") or "(empty)"
