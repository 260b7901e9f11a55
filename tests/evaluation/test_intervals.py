"""Bootstrap intervals: seeded, as wide as theory says, paired where two models answer the same rows."""

import random

import pytest

from ptuning.evaluation import intervals
from ptuning.evaluation.intervals import difference_intervals, mean_intervals


def rows(count, spread=10.0, seed=0, offset=0.0):
    draw = random.Random(seed)
    return [{"a": 50 + draw.gauss(0, spread) + offset, "b": 1.0} for _ in range(count)]


def test_a_normal_mean_has_the_interval_that_theory_gives():
    low, high = mean_intervals(rows(400))["a"]
    assert high - low == pytest.approx(2 * 1.96 * 10 / 20, rel=0.15)
    assert mean_intervals(rows(400))["b"] == (1.0, 1.0)


def test_the_same_seed_draws_the_same_in_parts_or_at_once(monkeypatch):
    whole = mean_intervals(rows(50))
    assert mean_intervals(rows(50)) == whole
    assert mean_intervals(rows(50), seed=1) != whole
    monkeypatch.setattr(intervals, "_AT_ONCE", 7 * 50)
    assert mean_intervals(rows(50)) == whole


def test_one_row_has_no_width():
    assert mean_intervals([{"a": 3.5}]) == {"a": (3.5, 3.5)}


def test_a_paired_difference_is_sure_of_what_unpaired_means_are_not():
    base = rows(100)
    tuned = [{"a": row["a"] + 1 + 0.1 * (number % 3), "b": 1.0} for number, row in enumerate(base)]
    low, high = difference_intervals(tuned, base)["a"]
    assert 1 < low < high < 1.2
    ours, theirs = mean_intervals(tuned)["a"], mean_intervals(base)["a"]
    assert ours[0] < theirs[1]  # these overlap


def test_other_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="zip"):
        difference_intervals(rows(3), rows(4))
