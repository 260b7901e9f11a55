"""Tidying a reply: the golden cases and the corners of the punctuation rule."""

import json
from pathlib import Path

import pytest

from ptuning.plain.response import process_response

CASES = json.loads((Path(__file__).parent / "golden/chatglm-tiny/cases.json").read_text(encoding="utf-8"))


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
