"""``ptuning evaluate``: predicts test rows with the base model or prefixes, and scores the replies; or scores a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ptuning.core.errors import UserError
from ptuning.settings.arguments import RescoringArguments
from ptuning.settings.parsing import SettingsParser

_METRICS_ONLY = ("--metrics-only", "--metrics_only", "metrics_only")


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, rows or checkpoints that do not fit.
    """
    if any(word.partition("=")[0] in _METRICS_ONLY for word in argv):
        return _metrics_only(argv)
    from ptuning.edges.run_arguments import parse_arguments

    arguments = parse_arguments(argv, task="evaluate")
    from ptuning.edges.progress import open_progress, quiet_logs
    from ptuning.edges.results import print_result
    from ptuning.evaluation.run import run_evaluation

    with quiet_logs():
        result = run_evaluation(arguments, open_progress)
    if arguments.training.process_index == 0:
        print_result(result)
    return 0


def _metrics_only(argv: Sequence[str]) -> int:
    """Score a file. Neither torch nor transformers is imported on this way."""
    given = SettingsParser(
        {"scores of a file": RescoringArguments},
        prog="ptuning evaluate",
        description="Score a predictions file that is there, without a model.",
        positional="--metrics-only FILE",
    ).parse(argv)
    if given.folder is not None:
        raise UserError(f"{given.folder!r}: not expected beside --metrics-only FILE, which loads no model")
    settings = given.build(RescoringArguments)
    if settings.metrics_only is None:
        raise UserError("--metrics-only: name a predictions file (generated_predictions.txt)")
    from ptuning.edges.progress import open_progress
    from ptuning.edges.results import print_result
    from ptuning.evaluation.rescoring import rescore

    folder = Path(settings.output_dir) if settings.output_dir else None
    result = rescore(Path(settings.metrics_only), folder, open_progress)
    print_result(result, written=folder is not None)
    return 0
