"""Charts: every point inside the picture, round ticks, escaped names, nothing for nothing."""

import math
import re
from xml.etree import ElementTree

import pytest

from ptuning.evaluation.report.svg_chart import HEIGHT, WIDTH, Series, line_chart, ticks


def drawn(*series):
    text = line_chart(series, x_label="step & <x>", y_label="loss")
    return ElementTree.fromstring(f"<div>{text}</div>")


def test_points_stay_inside_and_in_order():
    tree = drawn(Series("a", [(0, 3.0), (100, 1.0), (3000, 0.5)]), Series("b", [(1500, -2.0)]))
    first = tree.findall(".//polyline")[0].get("points").split()
    places = [tuple(map(float, point.split(","))) for point in first]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted(y for _, y in places)  # a smaller value stands lower


def test_what_is_not_finite_is_left_out():
    tree = drawn(Series("a", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]))
    assert len(tree.find(".//polyline").get("points").split()) == 2
    assert line_chart([Series("a", [(0, math.nan)])], x_label="x", y_label="y") == ""
    assert line_chart([], x_label="x", y_label="y") == ""


def test_one_point_and_equal_values_are_drawn():
    for points in ([(5, 2.0)], [(1, 0.0), (2, 0.0)]):
        assert drawn(Series("a", points)).find(".//polyline") is not None


def test_names_are_escaped():
    text = line_chart([Series("<script>", [(0, 1)])], x_label='"&<x>', y_label="y")
    assert not re.search(r"<script|<x>", text)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.31, 0.52, [0.3, 0.35, 0.4, 0.45, 0.5, 0.55]),
        (20, 3000, [0, 1000, 2000, 3000]),
        (-3, 3, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
