"""Prediction files of three tools are read alike, and a wrong line is named."""

import json

import pytest

from ptuning.core.errors import UserError
from ptuning.evaluation.answers import ScoredAnswer, parse_answer, published_text, read_answers

ODD = '一\n二\u2028三\x85四"五\ud83d'


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else (line + "\n").encode() for line in lines))
    return path


def test_an_answer_comes_back_from_its_line():
    answer = ScoredAnswer(3, ODD, "答", "问", [["q", "a"]], "rows.json:4", "length", 7, {"bleu-4": 0.1 + 0.2})
    assert answer.line().count("\n") == 1
    assert answer.line().encode("utf-8").endswith(b"}\n")
    assert parse_answer(json.loads(answer.line())) == answer


def test_the_published_text_is_one_object_a_line():
    lines = published_text([ScoredAnswer(0, "参考", ODD), ScoredAnswer(1, "b", "")]).encode("utf-8").split(b"\n")
    assert [json.loads(line) for line in lines[:2]] == [{"labels": "参考", "predict": ODD}, {"labels": "b", "predict": ""}]
    assert lines[2:] == [b""]


@pytest.mark.parametrize(
    "line",
    [
        '{"labels": "参考", "predict": "答"}',
        '{"prompt": "问", "predict": "答", "label": "参考"}',
        '{"index": 0, "reference": "参考", "answer": "答", "tokens": 3, "finish_reason": "stop", "source": "a:1"}',
    ],
    ids=["published", "LLaMA-Factory", "ours"],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_three_forms_are_read(tmp_path, line, ending):
    path = tmp_path / "p"
    path.write_bytes(b"\xef\xbb\xbf" + (line + ending).encode())
    (answer,) = read_answers(path)
    assert (answer.reference, answer.answer) == ("参考", "答")


def test_an_unfinished_file_of_ours_is_read_in_the_order_of_its_rows_each_once(tmp_path):
    lines = [ScoredAnswer(index, "r", text).line().strip() for index, text in ((2, "c"), (0, "a"), (2, "d"))]
    assert [answer.answer for answer in read_answers(write(tmp_path / "p", *lines))] == ["a", "d"]


GOOD = '{"labels": "a", "predict": "b"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "p: no predictions in this file; a line is an object like"),
        (["", "  "], "p: no predictions in this file"),
        ([GOOD, '{"labels": "a", "pre'], "p:2:17: not valid JSON"),
        ([GOOD, "labels: a"], "p:2:1: not valid JSON: Expecting value"),
        ([GOOD, "[" + GOOD + "]"], "p:2: a list instead of an object"),
        (['"text"'], "p:1: a text instead of an object"),
        ([GOOD, "", '{"labels": "a", "prediction": "b"}'], "p:3: needs reference and answer or labels and predict or label"),
        (["{}"], "(has: nothing)"),
        (['{"labels": null, "predict": "b"}'], "p:1: labels must be a text, but holds null"),
        (['{"labels": "a", "predict": ["b"]}'], "p:1: predict must be a text, but holds a list"),
        (['{"label": 3, "predict": "b"}'], "p:1: label must be a text, but holds a number"),
        ([GOOD, b'{"labels": "\xb2\xce", "predict": "b"}\n'], "p:2: not UTF-8 text (byte 13 of the line)"),
        (['{"index": "x", "reference": "a", "answer": "b"}'], "p:1: index, reference or answer is of another type"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, message):
    with pytest.raises(UserError) as error:
        read_answers(write(tmp_path / "p", *lines))
    assert str(error.value).startswith(str(tmp_path))
    assert message in str(error.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_answers(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a folder: name the file in it"):
        read_answers(tmp_path)


def test_halves_of_characters_become_what_can_be_scored_and_shown(tmp_path):
    line = '{"labels": "a\\ud800", "predict": "\\udfff", "prompt": "\\ud83d\\ude00", '
    line += '"history": [["\\ud800", "b"]], "index": 3}'
    (answer,) = read_answers(write(tmp_path / "p", line))
    assert (answer.reference, answer.answer, answer.prompt, answer.history) == ("a\ufffd", "\ufffd", "😀", [["\ufffd", "b"]])


@pytest.mark.parametrize("value", ["Infinity", "1e999", '"x"', "[1]"])
def test_odd_counts_are_named_with_their_line(tmp_path, value):
    with pytest.raises(UserError, match=r"p:1: "):
        read_answers(write(tmp_path / "p", f'{{"index": 0, "reference": "a", "answer": "b", "tokens": {value}}}'))
