"""What a metric is: a name in files, a title in tables, and one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

RowFunction = Callable[[str, str], float]
"""(prediction, reference) → score; neither text is blank."""
CorpusFunction = Callable[[Sequence[str], Sequence[str]], float | None]
"""(predictions, references) → score of the whole set; None where the library it needs is not installed."""


@dataclass(frozen=True)
class Metric:
    """One metric. It has ``row`` or ``corpus``: a score of each row (its mean has an interval, and a run can choose its best
    checkpoint by it), or one of the whole set.

    Attributes:
        name: its key in every file, and what ``--metric_for_best_model`` takes.
        title: above its column in a report.
        row: scores one reply.
        corpus: scores a whole set.
        higher_is_better: whether more of it is better.
        blank: the score of a row whose prediction or reference is blank: the worst there is.
        headline: whether it is one of the few figures that a report shows first, and draws over the steps of a run.
        first: whether tables show it before the others.
    """

    name: str
    title: str
    row: RowFunction | None = None
    corpus: CorpusFunction | None = None
    higher_is_better: bool = True
    blank: float = 0.0
    headline: bool = True
    first: bool = False
