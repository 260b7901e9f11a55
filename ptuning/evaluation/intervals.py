"""How sure a mean score is: percentile bootstrap over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 95
RESAMPLES = 2000
_AT_ONCE = 1_000_000  # drawn rows that are held in memory together


def mean_intervals(
    rows: Sequence[Mapping[str, float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % interval of the mean of every score.

    Args:
        rows: the scores of each row under the same names; at least one row.
        resamples: how many sets of as many rows are drawn with replacement.
        seed: of the draws; the same seed draws the same rows whatever the scores are.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979), percentile method.
    """
    names = list(rows[0])
    means = _resampled_means(np.array([[row[name] for name in names] for row in rows], dtype=np.float64), resamples, seed)
    edge = (100 - LEVEL) / 2
    low, high = np.percentile(means, [edge, 100 - edge], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def difference_intervals(
    tuned: Sequence[Mapping[str, float]],
    base: Sequence[Mapping[str, float]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % interval of the mean difference tuned - base, paired: both answer the same drawn rows.

    Source: Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (2004), paired bootstrap.

    Raises:
        ValueError: not as many rows on both sides.
    """
    pairs = [{name: ours[name] - theirs[name] for name in ours} for ours, theirs in zip(tuned, base, strict=True)]
    return mean_intervals(pairs, resamples=resamples, seed=seed)


def _resampled_means(scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples, names] means of ``scores`` [rows, names]."""
    generator, count = np.random.default_rng(seed), len(scores)
    sets = max(1, _AT_ONCE // count)
    parts = []
    for start in range(0, resamples, sets):
        drawn = generator.integers(0, count, size=(min(sets, resamples - start), count))
        parts.append(scores[drawn].mean(axis=1))
    return np.concatenate(parts)
