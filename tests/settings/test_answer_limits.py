"""The bounds of what can be set about an answer are the same at every door, and what stands within them is followed."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy
import pytest
import torch
from sampling import greedy

import ptuning
from ptuning.core.errors import UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import ChatService, Question
from ptuning.serving.prefix_store import PrefixStore
from ptuning.settings.answer_limits import MAX_SEED, MAX_STOP_CHARACTERS, MAX_STOPS, SAMPLING, shown
from ptuning.settings.arguments import AnswerArguments

HUGE = 10**5000
NO_NUMBERS = (True, False, "1", "", [1], {}, b"1", 1j, math.nan, math.inf, -math.inf, HUGE, -HUGE, 2**63, -1)
BAD = {
    "temperature": (*NO_NUMBERS, None, 1e-45, 5e-324, 1e-31, 1e30, 1e39, 100.5),
    "top_p": (*NO_NUMBERS, None, 0, -0.0, 1.0000001, 1e30),
    "top_k": (*NO_NUMBERS, None, 1.0, 0.5, 2**31, 2**62),
    "repetition_penalty": (*NO_NUMBERS, None, 0, 1e-45, 1e-30, 0.009, 100.5, 1e30, 1e39),
    "no_repeat_ngram_size": (*NO_NUMBERS, None, 1.5, 101, 2**31),
    "seed": (*NO_NUMBERS, 0.0, 2**64, 1e3),
}
GOOD = {
    "temperature": (0, 0.0, -0.0, 1e-30, 1e-9, 1, 100, numpy.float32(0.5), Fraction(1, 2)),
    "top_p": (1, 1.0, 5e-324, 1e-45, 1e-9, 0.7),
    "top_k": (0, 1, 5000, 2**31 - 1, numpy.int64(3)),
    "repetition_penalty": (0.01, 0.3, 1, 100),
    "no_repeat_ngram_size": (0, 1, 100),
    "seed": (None, 0, 1, MAX_SEED),
}


def cases(table):
    pairs = [(name, value) for name, values in table.items() for value in values]
    return [pytest.param(name, value, id=f"{name} {shown(value)}") for name, value in pairs]


@pytest.fixture(scope="module")
def parts():
    return ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm")


def test_every_setting_has_its_cases():
    limits = {"max_length", "max_new_tokens", "stop"}
    assert set(BAD) == set(GOOD) == set(SAMPLING) == set(SamplingParams.__dataclass_fields__) - limits


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_what_stands_outside_is_refused_with_the_range(name, value):
    for kind in (SamplingParams, AnswerArguments):
        with pytest.raises(UserError) as caught:
            kind(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} ")
        assert f"allowed is {SAMPLING[name].allowed}" in message or "number, " in message
        assert len(message) < 200
        assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
@torch.no_grad()
def test_what_stands_within_gives_an_answer(parts, name, value):
    """By the engine and by transformers' generate, both of which take it as it is."""
    model, tokenizer = parts
    sampling = SamplingParams(**{"seed": 1, name: value})
    ids = prompt_ids(tokenizer, "你好")
    both = (replace(one, max_new_tokens=4) for one in (sampling, SamplingParams(seed=1)))
    found = list(Engine(model, tokenizer).run([Request(ids, None, one) for one in both]))
    assert {one.finish_reason for one in found} <= {"length", "stop"}
    assert all(one.ids for one in found)
    assert type(getattr(sampling, name)) in (int, float, type(None))
    if name != "seed":
        assert model.chat(tokenizer, "你好", max_new_tokens=3, **{name: value})[0]


def test_settings_at_their_edges_do_what_they_say(parts):
    model, tokenizer = parts
    ids = prompt_ids(tokenizer, "今天天气怎么样")

    def answer(**settings):
        request = Request(ids, None, SamplingParams(seed=4, **settings, max_new_tokens=12))
        return next(iter(Engine(model, tokenizer).run([request]))).ids

    greedy = answer(temperature=0)
    assert answer(temperature=1e-30) == answer(top_p=5e-324) == answer(top_k=1) == greedy
    hot = {"temperature": 100, "top_p": 1}
    assert answer(top_k=2**31 - 1, **hot) == answer(top_k=0, **hot) != answer(top_k=5, **hot) != greedy
    repeated = answer(temperature=0, repetition_penalty=0.01)
    assert len(set(repeated)) < len(set(greedy))
    unrepeated = answer(temperature=0, repetition_penalty=100)
    assert len(set(unrepeated)) == len(unrepeated)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size"])
def test_python_refuses_what_the_engine_refuses(parts, name):
    model, tokenizer = parts
    for value in BAD[name]:
        if value is None:
            continue  # as if it were not given, for transformers' own settings
        with pytest.raises(UserError, match=f"^{name} "):
            model.chat(tokenizer, "你好", **{name: value})
        with pytest.raises(UserError, match=f"^{name} "):
            next(model.stream_chat(tokenizer, "你好", **{name: value}))


@pytest.mark.parametrize("name", ["max_length", "max_new_tokens", "num_beams"])
@pytest.mark.parametrize("value", [0, -1, True, "5", 2.0, math.nan, 2**31, HUGE], ids=lambda value: str(type(value)))
def test_python_refuses_counts_that_are_none(parts, name, value):
    with pytest.raises(UserError, match=f"^{name} "):
        parts[0].chat(parts[1], "你好", **{name: value})


def test_a_stream_has_no_beams(parts):
    with pytest.raises(UserError, match="num_beams 4 was given; stream_chat answers without beams"):
        next(parts[0].stream_chat(parts[1], "你好", num_beams=4))


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (["x"] * (MAX_STOPS + 1), "stop has 17 texts; allowed are at most 16"),
        (["x" * (MAX_STOP_CHARACTERS + 1)], "stop: a stop text may have 256 characters at most"),
        (["a", ""], "a stop text is empty"),
        ("abc", "allowed is a list of texts"),
        ([1], "allowed is a list of texts"),
        (None, "allowed is a list of texts"),
    ],
)
def test_stop_texts_have_bounds(stop, message):
    with pytest.raises(UserError, match=message):
        Request([1, 2], sampling=greedy(stop=stop))


def test_stop_texts_at_their_bounds_are_followed(parts):
    model, tokenizer = parts
    ids = prompt_ids(tokenizer, "你好")
    (whole,) = Engine(model, tokenizer).run([Request(ids, sampling=greedy(30))])
    near = [whole.text[:-1] + "x" * (MAX_STOP_CHARACTERS - len(whole.text) + 1) for _ in range(MAX_STOPS - 1)]
    (found,) = Engine(model, tokenizer).run([Request(ids, sampling=greedy(30, stop=(*near, whole.text[3:5])), stream=True)])
    assert found.text == whole.text[:3]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_rows", "max_length", "prefill_tokens", "admit_at_least"])
@pytest.mark.parametrize("value", [0, -1, True, 2.5, "3"])
def test_sizes_of_the_engine_that_make_no_sense_are_refused(parts, name, value):
    """0 never stands for the default."""
    with pytest.raises(UserError, match=f"^{name} .* was given; allowed is .*1 or more"):
        Engine(*parts, **{name: value})


def test_nobody_may_wait(parts):
    assert Engine(*parts, max_waiting=0).max_waiting == 0
    with pytest.raises(UserError, match="max_waiting -1"):
        Engine(*parts, max_waiting=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": 17}, "n 17 was given; allowed is 1 to 16"),
        ({"choices": HUGE}, "n .a number of more than"),
        ({"choices": True}, "n True"),
        ({"max_length": -5}, "max_length -5"),
        ({"max_length": 2.5}, "max_length 2.5"),
        ({"max_length": HUGE}, "max_length .a number"),
        ({"max_new_tokens": "7"}, "max_new_tokens '7'"),
        ({"max_new_tokens": math.nan}, "max_new_tokens nan"),
        ({"stop": ("x",) * 17}, "stop has 17 texts"),
        ({"stop": "我"}, "stop '我'"),
        ({"history": [("a", "b")] * 4001}, "history has 4001 rounds; allowed are at most 4000"),
    ],
)
def test_questions_have_bounds(parts, change, message):
    engine = Engine(*parts)
    sampling = {name: value for name, value in change.items() if name in SamplingParams.__dataclass_fields__}
    others = {name: value for name, value in change.items() if name not in sampling}
    with pytest.raises(UserError, match=message):
        ChatService(engine, PrefixStore(engine, "tiny-chatglm")).ask(
            Question("你好", sampling=SamplingParams(**sampling), **others)
        )
    assert not engine.waiting


def test_seeds_of_choices_go_on_at_0(parts):
    engine = Engine(*parts)
    service = ChatService(engine, PrefixStore(engine, "tiny-chatglm"))
    asked = service.ask(Question("你好", sampling=SamplingParams(seed=MAX_SEED), choices=3))
    assert [one.request.sampling.seed for one in asked.generations] == [MAX_SEED, 0, 1]


def test_ids_outside_of_the_vocabulary_are_refused(parts):
    model, tokenizer = parts
    ids = prompt_ids(tokenizer, "你好")
    for bad in (-1, model.config.vocab_size, 2**63):
        with pytest.raises(UserError, match="outside the model's vocabulary"):
            Engine(*parts).submit([Request([bad, *ids])])
