"""``ptuning evaluate``: predicts test rows with the base model or a prefix, and scores the replies."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, rows or checkpoints that do not fit.
    """
    from ptuning.loops.training_arguments import parse_arguments

    arguments = parse_arguments(argv, task="evaluate")
    from ptuning.edges.results import print_result, progress_bar
    from ptuning.uses.tuning import run_evaluation

    print_result(run_evaluation(arguments, progress_bar))
    return 0
