"""Where a prompt that is too long is truncated: rows and conversations, whatever their texts."""

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ptuning
from ptuning.core.errors import QuestionTooLongError
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.data.truncation import fit_prompt, fitting_prompt_ids, prompt_ids

GOLDEN = Path(__file__).parents[1] / "golden" / "chatglm-tiny"
TOKENIZER = ChatGLMTokenizer.from_pretrained(GOLDEN / "model")
GMASK, SOP = 86, 89

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
