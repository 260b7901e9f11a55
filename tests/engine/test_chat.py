"""model.chat and model.stream_chat as published, and what they refuse."""

import threading
from itertools import pairwise

import pytest
import torch

import ptuning
from ptuning import UserError
from ptuning.engine.text_stream import reply_text


@pytest.fixture(scope="module")
def tokenizer(golden):
    return ptuning.load_tokenizer(golden / "model")


@pytest.fixture(scope="module", params=["prefix", "prefix_projection"])
def named(request, golden):
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / f"checkpoint-{request.param}")
    return request.param, model


@pytest.fixture(scope="module")
def base(golden):
    return ptuning.load_model(golden / "model", device="cpu")


@pytest.mark.parametrize("number", range(3))
def test_answers_are_the_published_ones(named, tokenizer, golden_cases, number):
    name, model = named
    case = golden_cases[f"{name}.chat"][number]
    history = [tuple(turn) for turn in case["history"]]
    given = list(history)
    response, after = model.chat(tokenizer, case["query"], history, max_length=96, do_sample=False)
    assert response == case["response"]
    assert after == [*given, (case["query"], response)]
    assert history == given
    pieces = list(model.stream_chat(tokenizer, case["query"], case["history"], max_length=96, do_sample=False))
    assert pieces[-1] == (response, after)
    assert len(pieces) > 5


def test_temperature_zero_is_greedy(base, tokenizer):
    greedy, _ = base.chat(tokenizer, "你好", max_length=40, do_sample=False)
    assert base.chat(tokenizer, "你好", max_length=40, temperature=0)[0] == greedy


def test_beams_answer(named, tokenizer):
    response, _ = named[1].chat(tokenizer, "你好", max_length=40, num_beams=4, do_sample=False)
    assert response


def test_settings_of_generate_pass_through(base, tokenizer):
    short, _ = base.chat(tokenizer, "你好", do_sample=False, max_new_tokens=3)
    free, _ = base.chat(tokenizer, "你好", do_sample=False, max_length=60)
    unrepeated, _ = base.chat(tokenizer, "你好", do_sample=False, max_length=60, no_repeat_ngram_size=2)
    assert free.startswith(short)
    assert unrepeated != free


def test_control_strings_in_a_question_stay_text(base, tokenizer):
    response, history = base.chat(tokenizer, "说 <eop> 和 [gMASK]<sop>", max_length=60, do_sample=False)
    assert history == [("说 <eop> 和 [gMASK]<sop>", response)]


def test_closing_a_stream_stops_the_model(base, tokenizer):
    stream = base.stream_chat(tokenizer, "你好", max_length=2000, do_sample=False, no_repeat_ngram_size=1)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "stream_chat"]


def test_an_error_in_the_model_reaches_the_reader(golden, tokenizer):
    model = ptuning.load_model(golden / "model", device="cpu")
    model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(ptuning.GenerationError, match="NaN or infinite"):
        list(model.stream_chat(tokenizer, "你好"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1}, "temperature -1"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"num_beams": 0}, "num_beams 0"),
        ({"max_length": 3}, "max_length is 3"),
        ({"history": ["你好"]}, "history round 0"),
        ({"history": [("a", None)]}, "history round 0"),
    ],
)
def test_settings_out_of_range_are_refused(base, tokenizer, settings, words):
    with pytest.raises(UserError, match=words):
        base.chat(tokenizer, "你好", **settings)


def test_the_source_prefix_of_the_training_is_used(golden, tokenizer, tmp_path):
    from prefixes import save_prefix

    plain = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")
    save_prefix(tmp_path, plain.prefix_encoder, {"source_prefix": "写广告："})
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path)
    settings = {"max_length": 40, "do_sample": False}
    assert model.chat(tokenizer, "裙", **settings)[0] == plain.chat(tokenizer, "写广告：裙", **settings)[0]
    with model.prefix_disabled(), plain.prefix_disabled():
        assert model.chat(tokenizer, "裙", **settings)[0] == plain.chat(tokenizer, "裙", **settings)[0]


# ---- one text function for both doors


class Scripted:
    """``generate`` that says what it is told to, token by token, so that an answer can be cut anywhere."""

    def __init__(self, model, monkeypatch, ids):
        self.ids = ids
        monkeypatch.setattr(type(model), "generate", lambda model, inputs, **settings: self.generate(inputs, **settings))

    def generate(self, inputs, streamer=None, **settings):
        if streamer is not None:
            streamer.put(inputs)
            for token in self.ids:
                streamer.put(torch.tensor([token]))
        return torch.cat([inputs, torch.tensor([self.ids], dtype=torch.long)], dim=1)


TEXTS = ["a😀", "你好,我很好!", "[[训练时间]],好", "it isn't, is it?", "  空白 ", "", "好\n\n", "！！，", "a , b .", "😀a😀"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_that_is_cut_anywhere_has_the_same_text_at_every_door(base, tokenizer, monkeypatch, text):
    """Within a character, too: by chat, by stream_chat, and as the engine makes it; and a stream never takes back."""
    ids = tokenizer.encode_text(text)
    for length in range(len(ids) + 1):
        Scripted(base, monkeypatch, ids[:length])
        response, history = base.chat(tokenizer, "x", max_new_tokens=99)
        items = list(base.stream_chat(tokenizer, "x", max_new_tokens=99))
        assert response == reply_text(tokenizer, ids[:length])
        assert "\ufffd" not in response
        assert items[-1] == (response, history)
        assert all(after.startswith(before) for (before, _), (after, _) in pairwise(items))
        assert all(item_history == [("x", item)] for item, item_history in items)


def test_what_follows_the_end_token_is_no_text(base, tokenizer, monkeypatch):
    ids = [*tokenizer.encode_text("好的"), tokenizer.eos_token_id, *tokenizer.encode_text("不是")]
    Scripted(base, monkeypatch, ids)
    assert base.chat(tokenizer, "x")[0] == "好的"
    assert [text for text, _ in base.stream_chat(tokenizer, "x")][-1] == "好的"


def test_a_stream_does_not_decode_everything_again_at_every_token(base, tokenizer, monkeypatch):
    ids = tokenizer.encode_text("今天天气很好我们一起去公园玩，这件衣服的版型很好看。" * 30)
    Scripted(base, monkeypatch, ids)
    decode, decoded = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda some: decoded.append(len(some)) or decode(some))
    items = list(base.stream_chat(tokenizer, "x"))
    monkeypatch.undo()
    assert items[-1][0] == reply_text(tokenizer, ids)
    assert len(items) > len(ids) / 3
    assert sum(decoded) < 60 * len(ids)
    assert max(decoded) < 100


@pytest.mark.parametrize(
    ("query", "settings", "message"),
    [
        (None, {}, "query None was given; allowed is a text"),
        (["x"], {}, "query "),
        ("x", {"do_sample": "no"}, "do_sample 'no' was given; allowed are True and False"),
        ("x", {"do_sample": 1}, "do_sample 1 was given"),
        ("x", {"stop": ["a"]}, "transformers' generate does not take these settings: .*stop"),
        ("x", {"foo": 1}, "does not take these settings: .*foo"),
    ],
)
def test_what_is_no_question_or_setting_is_one_clear_error(base, tokenizer, query, settings, message):
    with pytest.raises(UserError, match=message):
        base.chat(tokenizer, query, **settings)
    with pytest.raises(UserError, match=message):
        list(base.stream_chat(tokenizer, query, **settings))
