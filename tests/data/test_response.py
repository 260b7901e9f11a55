"""Tidying a reply: the golden cases and the corners of the punctuation rule."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data.response import process_response, settled

CASES = json.loads((Path(__file__).parents[1] / "golden/chatglm-tiny/cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES["process_response"], ids=lambda case: case["raw"])
def test_golden_replies(case):
    assert process_response(case["raw"]) == case["clean"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        ("\n好,\n", "好，"),
        ("中,a,文", "中，a，文"),
        ("中,,文", "中，，文"),  # each of the two stands beside one character
        ("中,,,文", "中，,，文"),
        ("好.好", "好.好"),
        ("3:4", "3:4"),
        ("時:刻", "時：刻"),
        ("かな,カナ", "かな,カナ"),  # kana are outside the published range
        ("[[训练时间]],[[训练时间]]", "2023年，2023年"),
        ("〇,", "〇,"),
    ],
)
def test_punctuation_beside_cjk(raw, clean):
    assert process_response(raw) == clean


@given(st.text(alphabet="中文ab ,!:;?。[]训练时间'nt'svre\n", max_size=30))
def test_settled_text_never_changes(text):
    """For every way a reply may grow, what counts as settled is the start of what follows."""
    final = process_response(text)
    for length in range(len(text) + 1):
        so_far = settled(process_response(text[:length]))
        assert final.startswith(so_far), (text[:length], so_far)


@pytest.mark.parametrize("half", ["你好,", "等 ", "[", "[[训练", "[[训练时间]", "a\ufffd", "it 's"[:4]])
def test_unsettled_ends_are_held_back(half):
    assert len(settled(half)) < len(half)
