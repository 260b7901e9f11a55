"""The rows of a run, read as its settings say."""

from __future__ import annotations

from ptuning.data.row_forms import MissingColumnError
from ptuning.data.rows import Rows, every_round, mixed, read_rows
from ptuning.data.settings import RowSettings


def prepare_rows(path: str, data: RowSettings, max_samples: int | None) -> Rows:
    """The rows of one file by the settings: named columns, or the form that is found by the keys."""
    return read_rows(
        path,
        prompt_column=data.prompt_column,
        response_column=data.response_column,
        history_column=data.history_column,
        max_samples=max_samples,
        row_format=data.row_format,
        encoding=data.encoding,
    )


def prepare_other_rows(path: str, data: RowSettings, max_samples: int | None) -> Rows:
    """The rows of a file beside those of the task (``--mix_file``, ``--general_file``): by the named columns where it has
    them all, else in the form found by its keys."""
    try:
        return prepare_rows(path, data, max_samples)
    except MissingColumnError:
        return read_rows(path, encoding=data.encoding, max_samples=max_samples)


def prepare_training_rows(data: RowSettings, seed: int) -> Rows:
    """The training rows: those of ``--train_file``, a row for every round with ``--loss_on all``, and the share of
    ``--mix_file``, drawn by ``seed``.

    The other file is read as by :func:`prepare_other_rows`.
    """
    rows = prepare_rows(data.train_file or "", data, data.max_train_samples)
    others, share = None, 0.0
    if data.mix is not None:
        path, share = data.mix
        others = prepare_other_rows(path, data, None)
    if data.loss_on == "all":
        rows, others = every_round(rows), others if others is None else every_round(others)
    return rows if others is None else mixed(rows, others, share, seed)
