"""Rows to ids: the golden rows, the shape of every row whatever its text, and the limits."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ptuning
from ptuning.core.errors import QuestionTooLongError, UserError
from ptuning.data.preprocess import reply_ids, training_example
from ptuning.data.prompts import build_prompt
from ptuning.data.rows import Row
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.data.truncation import fit_prompt, fitting_prompt_ids, prompt_ids

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
CUE = TOKENIZER.encode_text("\n\n答：")[2:]  # without the dummy blank and the first newline


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


@settings(max_examples=300, deadline=None)
@given(TEXTS.filter(str.strip), HISTORIES, TEXTS, st.integers(2, 60), st.booleans(), st.sampled_from(["", "前缀："]))
def test_the_end_of_the_question_and_the_cue_are_never_cut(query, history, system, limit, legacy, prefix):
    """Whatever the limit: what is left ends as the whole prompt ends, and the question is whole where there is room."""
    assume(TOKENIZER.encode_text(f"\n{query}")[2:])  # a control character becomes no id; a row of such is left out
    options = {"legacy": legacy, "system": system, "source_prefix": prefix}
    fitted = fit_prompt(TOKENIZER, query, history, max_source_length=limit, **options)
    whole = fit_prompt(TOKENIZER, query, history, **options)
    text, all_text = fitted.ids[:-2], whole.ids[:-2]
    room = limit - 1
    assert fitted.full_length == len(all_text)
    assert len(text) <= room
    if len(all_text) <= room:
        assert (fitted.ids, fitted.dropped_rounds, fitted.cut) == (whole.ids, 0, 0)
        return
    cue = CUE if history or (legacy and history is not None) else []
    ending = TOKENIZER.encode_text(f"\n{query}" + ("\n答：" if cue else ""))[2:]
    kept = min(len(ending), len(text), len(cue) + (room - len(cue) + 1) // 2) if len(ending) > room else len(ending)
    assert text[len(text) - kept :] == ending[len(ending) - kept :]
    if room > len(cue):
        assert text[len(text) - len(cue) :] == cue
        assert kept > len(cue)
    assert fitted.dropped_rounds == len(history or []) if fitted.cut else fitted.dropped_rounds > 0


def test_the_oldest_rounds_go_first():
    history = [(f"第{i}问", f"第{i}答") for i in range(6)]
    whole = prompt_ids(TOKENIZER, "最后的问题", history)
    for dropped in range(6):
        wanted = prompt_ids(TOKENIZER, "最后的问题", history[dropped:])
        fitted = fit_prompt(TOKENIZER, "最后的问题", history, max_source_length=len(wanted) - 2 + 1)
        assert (fitted.ids, fitted.dropped_rounds, fitted.cut) == (wanted, dropped, 0)
        assert fitted.full_length == len(whole) - 2
    alone = fit_prompt(TOKENIZER, "最后的问题", history, max_source_length=len(wanted) - 3)
    assert alone.ids == prompt_ids(TOKENIZER, "最后的问题", [], legacy=True)  # the cue stays
    assert alone.dropped_rounds == 6


def test_a_long_question_loses_its_middle():
    query = "".join(chr(0x4E00 + i) for i in range(60))
    ids = TOKENIZER.encode_text(query)
    fitted = fit_prompt(TOKENIZER, query, max_source_length=21)
    assert fitted.ids == [*ids[:10], *ids[-10:], GMASK, SOP]
    assert fitted.cut == len(ids) - 20
    published = fit_prompt(TOKENIZER, query, max_source_length=21, truncation="published")
    assert published.ids == [*ids[:20], GMASK, SOP]


def test_system_text_stands_before_the_first_round_that_is_kept():
    history = [("一问", "一答"), ("二问", "二答")]
    whole = fit_prompt(TOKENIZER, "三问", history, system="你是导购")
    assert TOKENIZER.decode(whole.ids).startswith("[Round 0]\n问:你是导购\n一问\n答:")
    shorter = fit_prompt(TOKENIZER, "三问", history, system="你是导购", max_source_length=whole.full_length)
    assert TOKENIZER.decode(shorter.ids).startswith("[Round 0]\n问:你是导购\n二问\n答:")
    assert TOKENIZER.decode(prompt_ids(TOKENIZER, "问", None, system="你是导购")).startswith("你是导购\n问[gMASK]")
    # Too long itself, it is cut before the question is.
    cut = fit_prompt(TOKENIZER, "三问", None, system="你是导购" * 20, max_source_length=12)
    assert TOKENIZER.decode(cut.ids).endswith("三问[gMASK]<sop>")


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


class CountingTokenizer(ChatGLMTokenizer):
    """Counts the characters that it is given."""

    characters = 0

    def encode_text(self, text):
        self.characters += len(text)
        return super().encode_text(text)


@pytest.mark.parametrize(
    ("query", "history", "limit"),
    [
        ("x", [("a", "b")] * 190_000, 2048),
        ("x", [("问" * 500, "答" * 500)] * 2000, 2048),
        ("x", [("a", "b" * 1_900_000)], 2048),
        ("x", [("a", "b" * 1_900_000), ("a", "b")], 100),
        ("x", [("\u200b" * 1_000_000, "")] * 3, 2048),
        ("x", [("", "")] * 100_000, 64),
    ],
)
def test_a_long_history_takes_no_longer_than_one_that_fits(query, history, limit):
    """What cannot fit is never made into ids."""
    tokenizer = CountingTokenizer.from_pretrained(ptuning.load_tokenizer("tiny-chatglm").name_or_path)
    ids, dropped = fitting_prompt_ids(tokenizer, query, history, limit=limit, room=8)
    assert tokenizer.characters < 40 * limit  # rounds of a letter have twenty characters around them
    assert len(ids) + 8 <= limit
    assert ids == prompt_ids(tokenizer, query, history[dropped:])
    if "\u200b" not in history[-1][0]:  # nobody sees it, and it takes no token
        assert len(prompt_ids(tokenizer, query, history[dropped - 1 :])) + 8 > limit


def test_a_question_that_cannot_fit_is_not_even_counted():
    tokenizer = CountingTokenizer.from_pretrained(ptuning.load_tokenizer("tiny-chatglm").name_or_path)
    for query in ("长" * 500_000, " " * 170_000, "\u200b" * 170_000):
        with pytest.raises(QuestionTooLongError, match="the question has more than 2048 tokens"):
            fitting_prompt_ids(tokenizer, query, limit=2048)
    assert tokenizer.characters == 0
    assert len(fitting_prompt_ids(tokenizer, " " * 160_000, limit=2048)[0]) < 2048


@pytest.mark.parametrize(("flag", "value"), [("max_source_length", 0), ("max_target_length", 1)])
def test_limits_too_small(flag, value):
    limits = {"max_source_length": 64, "max_target_length": 64} | {flag: value}
    with pytest.raises(UserError, match=rf"--{flag} is {value}; allowed: {value + 1} or more"):
        training_example(TOKENIZER, Row("a", "b", None, "x:1"), **limits)


def test_a_row_without_reply_cannot_train():
    with pytest.raises(UserError, match=r"dev\.json:7: this row has no reply.*--response_column"):
        training_example(TOKENIZER, Row("a", None, None, "dev.json:7"), max_source_length=8, max_target_length=8)
