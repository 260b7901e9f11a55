"""Text while it is made: the pieces are whole, never taken back, and add up to the reply."""

from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ptuning
from ptuning.engine import text_stream
from ptuning.engine.text_stream import TextStream, reply_text


@pytest.fixture(scope="module")
def tokenizer():
    return ptuning.load_tokenizer("tiny-chatglm")


def pieces_of(tokenizer, ids, stop=()):
    stream, pieces = TextStream(tokenizer, stop), []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.end()], stream


@contextmanager
def patched(**sizes):
    """Other sizes of the window, so that it is cut in short texts as well."""
    before = {name: getattr(text_stream, name) for name in sizes}
    vars(text_stream).update(sizes)
    try:
        yield
    finally:
        vars(text_stream).update(before)


TEXTS = st.text(alphabet="中文你好ab ,!:;?。[]训练时间'nt'svre\n😀é1", max_size=120)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, window=st.sampled_from([6, 12, 48]), kept=st.sampled_from([(1, 2, 3), (4, 8), text_stream._KEPT]))
def test_pieces_add_up_to_the_reply(tokenizer, text, window, kept):
    """Whatever the text and wherever the window is cut."""
    ids = tokenizer.encode_text(text)
    with patched(_WINDOW=window, _KEPT=kept):
        pieces, _ = pieces_of(tokenizer, ids)
    assert "".join(pieces) == reply_text(tokenizer, ids)
    assert "\ufffd" not in "".join(pieces)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, stop=st.lists(st.text(alphabet="中文ab ,\n。", min_size=1, max_size=4), min_size=1, max_size=2))
def test_a_stop_text_ends_the_reply_before_it(tokenizer, text, stop):
    ids = tokenizer.encode_text(text)
    pieces, stream = pieces_of(tokenizer, ids, tuple(stop))
    shown, whole = "".join(pieces), reply_text(tokenizer, ids)
    if stream.stopped:
        assert not any(one in shown for one in stop)
        assert any((shown + one) in whole for one in stop) or any(one in whole for one in stop)
    else:
        assert shown == whole


def test_the_window_stays_small(tokenizer):
    """The work per token does not grow with the reply."""
    ids = tokenizer.encode_text("今天天气很好我们一起去公园玩，这件衣服的版型很好看。" * 40)
    stream, longest, text = TextStream(tokenizer), 0, ""
    for token in ids:
        text += stream.add(token)
        longest = max(longest, len(stream.ids))
    assert text + stream.end() == reply_text(tokenizer, ids)
    assert len(ids) > 600
    assert longest < 100


def test_bytes_become_whole_characters(tokenizer):
    ids = tokenizer.encode_text("a😀b")
    pieces, _ = pieces_of(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["a", "😀", "b"]
    assert reply_text(tokenizer, ids[:-2]) == "a"  # cut within the character


@pytest.mark.parametrize(
    "text", ["a! ' !", "a ' b", "a ' , ' ' !", "n ' t", "it ' s", "a  ' m", "' ' ' '", "中 ' ,中", "a n ' t!", "!! 's ' ?"]
)
def test_blanks_beside_quotation_marks_are_decided_before_they_are_shown(tokenizer, text):
    """The clean-up takes blanks on either side of one, and an English mark takes them first."""
    ids = tokenizer.encode_text(text)
    for length in range(len(ids) + 1):
        pieces, _ = pieces_of(tokenizer, ids[:length])
        assert "".join(pieces) == reply_text(tokenizer, ids[:length])


REPEATED = {
    "sentences": "今天天气很好我们一起去公园玩，这件衣服的版型很好看。", "words": "the shirt isn't made of cotton, is it? ",
    "marks": "!", "full stops": "。", "brackets": "[", "halves of the year": "[[训练", "quotes": "'", "pictures": "😀",
    "digits": "1 2 3 ", "commas": "你，", "newlines": "\n", "lines": "好\n\n\n\n\n\n", "blanks": "a            ",
    "years": "[[训练时间]]",
}  # fmt: skip


@pytest.mark.parametrize("text", REPEATED.values(), ids=REPEATED.keys())
@pytest.mark.parametrize("stop", [(), ("不会出现" * 60, "!" * 200 + "?", "aab")], ids=["", "stops"])
def test_the_work_for_a_token_does_not_grow_whatever_is_repeated(tokenizer, monkeypatch, text, stop):
    """Ids decoded for a token, on average over a long reply; a reply of nothing but newlines is looked at less often."""
    ids = tokenizer.encode_text(text * 1000)[:900]
    decode, decoded = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda some: decoded.append(len(some)) or decode(some))
    stream = TextStream(tokenizer, stop)
    shown = "".join(stream.add(token) for token in ids)
    work = sum(decoded) / len(ids)
    assert shown + stream.end() == reply_text(tokenizer, ids)
    assert not stream.stopped
    assert work < 90


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_stop_text_is_found_however_it_repeats_itself(tokenizer, data):
    """Where it begins is where Python finds it, and nothing of its beginning was shown before."""
    letters = data.draw(st.sampled_from(["a", "ab", "aab中", "!,"]))
    text = data.draw(st.text(alphabet=letters, max_size=200))
    stop = data.draw(st.text(alphabet=letters, min_size=1, max_size=12))
    ids = tokenizer.encode_text(text)
    whole = reply_text(tokenizer, ids)
    pieces, stream = pieces_of(tokenizer, ids, (stop,))
    assert stream.stopped == (stop in whole)
    assert "".join(pieces) == whole.partition(stop)[0]


def test_a_long_stop_text_costs_a_step_for_a_character(tokenizer, monkeypatch):
    """Not its length, again and again: counted in steps of the comparison."""
    steps = []
    original = text_stream._StopText._step
    monkeypatch.setattr(text_stream._StopText, "_step", lambda *args: steps.append(1) or original(*args))
    ids = tokenizer.encode_text("a" * 600)
    stream = TextStream(tokenizer, ("a" * 255 + "b",) * 16)
    made = len(steps)
    assert made <= 16 * 256
    for token in ids:
        stream.add(token)
    assert len(steps) - made <= 16 * 600


def test_a_stop_text_at_the_very_start(tokenizer):
    for text, stop in (("我是", "我"), ("  \n我是", "我"), ("我是", "我是")):
        pieces, stream = pieces_of(tokenizer, tokenizer.encode_text(text), (stop,))
        assert stream.stopped
        assert "".join(pieces) == ""
