"""``ptuning train``: tunes a prefix and scores it."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, rows or checkpoints that do not fit.
    """
    from ptuning.edges.run_arguments import parse_arguments

    arguments = parse_arguments(argv, task="train")
    from ptuning.edges.progress import open_progress, quiet_logs, terminal_bar
    from ptuning.edges.results import print_result
    from ptuning.edges.tuning import run_tuning
    from ptuning.evaluation.run import run_evaluation

    with quiet_logs():
        if arguments.training.do_train:
            result = run_tuning(arguments, open_progress, terminal_bar())
        else:
            result = run_evaluation(arguments, open_progress)
    if arguments.training.process_index == 0:
        print_result(result)
    return 0
