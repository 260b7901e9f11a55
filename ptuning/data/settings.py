"""What data/ reads of a run's settings. :class:`ptuning.settings.arguments.DataArguments` has it all, each under a flag of
the same name; the two rooms do not import each other."""

from __future__ import annotations

from typing import Protocol

from ptuning.core.choices import LossOn, RowFormat, TruncatedReplies, Truncation


class RowSettings(Protocol):
    """Where rows lie, and in which form."""

    train_file: str | None
    test_file: str | None
    row_format: RowFormat
    encoding: str | None
    prompt_column: str | None
    response_column: str | None
    history_column: str | None
    loss_on: LossOn
    max_train_samples: int | None

    @property
    def mix(self) -> tuple[str, float] | None:
        """Another file of rows, and its share of the training rows."""


class ExampleSettings(RowSettings, Protocol):
    """How rows become examples. Lengths are in tokens."""

    source_prefix: str
    max_source_length: int
    max_target_length: int
    truncation: Truncation
    cut_replies: TruncatedReplies | None
    legacy_first_round: bool
    overwrite_cache: bool
    preprocessing_num_workers: int | None
