"""Rows to ids: the golden rows, the shape of every row whatever its text, and the limits."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptuning.core.errors import UserError
from ptuning.data.preprocess import reply_ids, training_example
from ptuning.data.prompts import build_prompt
from ptuning.data.rows import Row
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.data.truncation import prompt_ids

GOLDEN = Path(__file__).parents[1] / "golden" / "chatglm-tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
TOKENIZER = ChatGLMTokenizer.from_pretrained(GOLDEN / "model")
GMASK, SOP, EOP = 86, 89, 90


def golden_row(case: dict) -> Row:
    history = None if case["history"] is None else [(query, reply) for query, reply in case["history"]]
    return Row(case["prompt"], case["response"], history, "train.json:1")


@pytest.mark.parametrize("case", CASES["train_rows"], ids=range(len(CASES["train_rows"])))
def test_golden_rows(case):
    limits = {name: case[name] for name in ("max_source_length", "max_target_length")}
    published = {"legacy": True, "truncation": "published", "close_cut_replies": True}
    example = training_example(TOKENIZER, golden_row(case), **limits, **published)
    missing = sum(limits.values()) - len(example.input_ids)  # the published rows are padded on the right
    assert example.input_ids + [3] * missing == case["input_ids"]
    assert example.labels + [-100] * missing == case["labels"]
    assert example.source == "train.json:1"


def test_a_first_round_is_wrapped_only_in_legacy_mode():
    row = Row("你好", "好", [], "x:1")
    limits = {"max_source_length": 64, "max_target_length": 64}
    plain = training_example(TOKENIZER, row, **limits)
    wrapped = training_example(TOKENIZER, row, **limits, legacy=True)
    assert plain.input_ids[:4] == [353, 465, GMASK, SOP]
    assert TOKENIZER.decode(wrapped.input_ids).startswith("[Round 0]\n问:你好\n答:[gMASK]")


@pytest.mark.parametrize("history", [None, [], [("a", "b")], [("a", "b"), ("第二问\n换行", "第二答")]])
@pytest.mark.parametrize("limit", [7, 256])
def test_training_evaluation_and_chat_see_the_same_prompt(history, limit):
    row = Row("最后的问题", "最后的回答。", history, "x:1")
    options = {"max_source_length": limit, "source_prefix": "写广告："}
    example = training_example(TOKENIZER, row, max_target_length=32, **options)
    prompt = prompt_ids(TOKENIZER, row.prompt, history, **options)
    assert example.input_ids[: len(prompt)] == prompt
    if limit == 256:
        text = "写广告：" + build_prompt(row.prompt, history)
        assert prompt == TOKENIZER(text)["input_ids"] == prompt_ids(TOKENIZER, text)


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["[gMASK]", "<sop>", "<eop>", "[MASK]", "<pad>", "＜sop＞", "<n>", "\n", "  ", "你好", "a"]),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)


HISTORIES = st.none() | st.lists(st.tuples(TEXTS, TEXTS), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    TEXTS,
    TEXTS,
    HISTORIES,
    TEXTS.filter(str.strip) | st.just(""),
    st.integers(1, 40),
    st.integers(2, 40),
    st.booleans(),
    st.sampled_from(["smart", "published"]),
    st.booleans(),
)
def test_every_row_has_one_mask_one_start_and_one_end(
    prompt, reply, history, system, source, target, legacy, truncation, closed
):
    row = Row(prompt, reply, history, "x:1", system)
    options = {"legacy": legacy, "truncation": truncation, "close_cut_replies": closed}
    example = training_example(TOKENIZER, row, max_source_length=source, max_target_length=target, **options)
    ids, labels = example.input_ids, example.labels
    whole = closed or example.full_target <= target
    assert [ids.count(token) for token in (85, GMASK, SOP, EOP, 3)] == [0, 1, 1, int(whole), 0]
    start = ids.index(SOP)
    assert ids[start - 1] == GMASK
    assert (ids[-1] == EOP) is whole
    assert labels == [-100] * start + ids[start:]
    assert start <= source
    assert len(ids) <= source + target


def test_limits_count_special_tokens():
    row = Row("长" * 50, "短" * 50, None, "x:1")
    whole = TOKENIZER.encode_text(row.prompt), TOKENIZER.encode_text(row.response)
    limits = {"max_source_length": 10, "max_target_length": 12}
    example = training_example(TOKENIZER, row, **limits)
    assert example.input_ids == [*whole[0][:4], *whole[0][-5:], GMASK, SOP, *whole[1][:10]]
    assert (example.full_source, example.full_target) == (len(whole[0]) + 1, len(whole[1]) + 2)
    published = training_example(TOKENIZER, row, **limits, truncation="published", close_cut_replies=True)
    assert published.input_ids == [*whole[0][:9], GMASK, SOP, *whole[1][:10], EOP]
    fits = training_example(TOKENIZER, row, max_source_length=len(whole[0]) + 1, max_target_length=len(whole[1]) + 2)
    assert fits.input_ids == [*whole[0], GMASK, SOP, *whole[1], EOP]
    assert prompt_ids(TOKENIZER, row.prompt) == [*whole[0], GMASK, SOP]
    assert reply_ids(TOKENIZER, "", max_target_length=2) == [EOP]


@pytest.mark.parametrize(("flag", "value"), [("max_source_length", 0), ("max_target_length", 1)])
def test_limits_too_small(flag, value):
    limits = {"max_source_length": 64, "max_target_length": 64} | {flag: value}
    with pytest.raises(UserError, match=rf"--{flag} is {value}; allowed: {value + 1} or more"):
        training_example(TOKENIZER, Row("a", "b", None, "x:1"), **limits)


def test_a_row_without_reply_cannot_train():
    with pytest.raises(UserError, match=r"dev\.json:7: this row has no reply.*--response_column"):
        training_example(TOKENIZER, Row("a", None, None, "dev.json:7"), max_source_length=8, max_target_length=8)
