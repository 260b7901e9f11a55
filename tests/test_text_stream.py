"""Text while it is made: the pieces are whole, never taken back, and add up to the reply."""

from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ptuning
from ptuning.plain import text_stream
from ptuning.plain.text_stream import TextStream, reply_text


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
