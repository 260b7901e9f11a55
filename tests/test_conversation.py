"""Answers in pieces: what was shown never changes, and the sum is the reply."""

import pytest

import ptuning
from ptuning.uses.conversation import Conversation


@pytest.fixture(scope="module")
def parts(golden):
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")
    return model, ptuning.load_tokenizer(golden / "model")


def test_pieces_add_up_to_the_chat_answer(parts):
    model, tokenizer = parts
    talk = Conversation(model, tokenizer, {"max_new_tokens": 60, "temperature": 0})
    history = []
    for query in ("你好", "第二问\n换行"):
        response, history = model.chat(tokenizer, query, history, max_new_tokens=60, do_sample=False)
        pieces = list(talk.ask(query))
        assert "".join(pieces) == response
        assert len(pieces) > 3
    assert talk.history == history
    talk.clear()
    assert talk.history == []


def test_a_stopped_answer_stays_as_far_as_it_was_shown(parts):
    talk = Conversation(*parts, {"max_length": 500, "temperature": 0})
    pieces = talk.ask("你好")
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert talk.history == [("你好", shown)]


def test_without_history_every_question_stands_alone(parts):
    talk = Conversation(*parts, {"max_length": 60, "temperature": 0}, keep_history=False)
    assert list(talk.ask("你好")) == list(talk.ask("你好"))
    assert talk.history == []
