"""Shows what a run gave: score rows side by side, sample answers before and after, and where everything lies."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ptuning.uses.evaluation import PREDICTIONS_FILE, Evaluation
from ptuning.uses.tuning import RunResult

_COLUMNS = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
SAMPLES = 3


def progress_bar(title: str, total: int) -> Callable[[int], None]:
    """A bar on standard error that counts rows; it closes itself at the end."""
    from tqdm.auto import tqdm

    bar = tqdm(total=total, desc=f"predicting, {title}", unit="row", file=sys.stderr, dynamic_ncols=True)

    def advance(rows: int) -> None:
        bar.update(rows)
        if bar.n >= total:
            bar.close()

    return advance


def print_result(result: RunResult) -> None:
    """Print scores, samples and places on standard output."""
    if result.tuned is not None:
        print_scores(result, result.tuned)
        print_samples(result, result.tuned)
    print("\nfiles")
    if result.checkpoint is not None:
        print(f"  prefix       {result.checkpoint}")
    if result.tuned is not None:
        print(f"  predictions  {result.folder / PREDICTIONS_FILE}")
    if result.base is not None:
        print(f"  base model's {result.folder / 'base' / PREDICTIONS_FILE}")
    print(f"  all results  {result.folder / 'all_results.json'}")
    if result.checkpoint is not None:
        print(f"\ntalk to it:  bash scripts/chat.sh --ptuning_checkpoint {result.checkpoint}")


def print_scores(result: RunResult, tuned: Evaluation) -> None:
    """One row of scores for each model that was evaluated."""
    rows: list[tuple[str, Evaluation]] = []
    if result.base is not None:
        rows.append(("base model", result.base))
    rows.append(("with the prefix" if result.checkpoint else "base model", tuned))
    title = f"scores on {len(result.rows)} rows"
    print(f"\n{title:<18}" + "".join(f"{name:>9}" for name in _COLUMNS) + "   empty  cut off")
    for name, evaluation in rows:
        scores = "".join(f"{evaluation.metrics[column]:9.2f}" for column in _COLUMNS)
        counts = f"{evaluation.metrics['empty_predictions']:8d}{evaluation.metrics['unfinished_predictions']:9d}"
        print(f"{name:<18}{scores}{counts}")


def print_samples(result: RunResult, tuned: Evaluation) -> None:
    """Three rows spread over the file: the prompt, the wanted reply, and the answers."""
    count = min(SAMPLES, len(result.rows))
    for number in range(count):
        index = number * len(result.rows) // count
        row = result.rows[index]
        print(f"\nsample {number + 1}  ({row.source})")
        print(f"  prompt   {_one_line(row.prompt)}")
        print(f"  wanted   {_one_line(tuned.references[index])}")
        if result.base is not None:
            print(f"  base     {_one_line(result.base.predictions[index])}")
        print(f"  {'prefix' if result.checkpoint else 'base  '}   {_one_line(tuned.predictions[index])}")


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ") or "(empty)"
