"""model.chat and model.stream_chat as published, and what they refuse."""

import copy
import dataclasses
import json
import pickle
import threading
from itertools import pairwise

import pytest
import torch

import ptuning
from ptuning import UserError
from ptuning.engine.engine import Engine
from ptuning.engine.head import Head
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


@pytest.fixture(params=["engine", "transformers"])
def say(request, base, monkeypatch):
    """Makes the model answer with the tokens that a test names, and gives the settings that ask it, in either way."""

    def by_engine(ids, end):
        def sample(head, sampler, states):
            head.said = getattr(head, "said", 0) + 1
            return torch.tensor([[*ids, end][min(head.said - 1, len(ids))]])

        monkeypatch.setattr(Head, "sample", sample)
        return {}

    def by_transformers(ids, end):
        def generate(model, inputs, streamer=None, **settings):
            said = [*ids, end][: settings["max_new_tokens"]]
            if streamer is not None:
                streamer.put(inputs)
                for token in said:
                    streamer.put(torch.tensor([token]))
            return torch.cat([inputs, torch.tensor([said], dtype=torch.long)], dim=1)

        monkeypatch.setattr(type(base), "generate", generate)
        return {"num_assistant_tokens": 20}  # nothing that the engine knows

    return {"engine": by_engine, "transformers": by_transformers}[request.param]


TEXTS = ["a😀", "你好,我很好!", "[[训练时间]],好", "it isn't, is it?", "  空白 ", "", "好\n\n", "！！，", "a , b .", "😀a😀"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_that_is_cut_anywhere_has_the_same_text_at_every_door(base, tokenizer, say, text):
    """Within a character, too: by chat, by stream_chat, and as the engine makes it; and a stream never takes back."""
    ids = tokenizer.encode_text(text)
    for length in range(len(ids) + 1):
        for limit, end in ((99, tokenizer.eos_token_id), (length, 5)):  # the model ends it, or the limit
            if limit == 0:
                continue
            settings = say(ids[:length], end) | {"max_new_tokens": limit}
            response, history = base.chat(tokenizer, "x", **settings)
            items = list(base.stream_chat(tokenizer, "x", **settings))
            assert response == reply_text(tokenizer, ids[:length])
            assert "\ufffd" not in response
            assert items[-1] == (response, history)
            assert all(after.startswith(before) for (before, _), (after, _) in pairwise(items))
            assert all(item_history == [("x", item)] for item, item_history in items)


def test_what_follows_the_end_token_is_no_text(base, tokenizer, say):
    ids = [*tokenizer.encode_text("好的"), tokenizer.eos_token_id, *tokenizer.encode_text("不是")]
    settings = say(ids, 5) | {"max_new_tokens": 99}
    assert base.chat(tokenizer, "x", **settings)[0] == "好的"
    assert [text for text, _ in base.stream_chat(tokenizer, "x", **settings)][-1] == "好的"


def test_a_stream_does_not_decode_everything_again_at_every_token(base, tokenizer, say, monkeypatch):
    ids = tokenizer.encode_text("今天天气很好我们一起去公园玩，这件衣服的版型很好看。" * 30)
    settings = say(ids, tokenizer.eos_token_id) | {"max_new_tokens": len(ids) + 1}
    decode, decoded = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda some: decoded.append(len(some)) or decode(some))
    items = list(base.stream_chat(tokenizer, "x", **settings))
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


# ---- the engine behind it: always the model as it is at that moment


@pytest.fixture
def own(golden):
    return ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")


def by_transformers(model, tokenizer, **settings):
    """The same answer by ``generate``, which keeps nothing."""
    return model.chat(tokenizer, "你好", do_sample=False, max_new_tokens=12, num_assistant_tokens=20, **settings)[0]


def by_engine(model, tokenizer, **settings):
    return model.chat(tokenizer, "你好", do_sample=False, max_new_tokens=12, **settings)[0]


def test_an_answer_is_that_of_the_model_as_it_is_now(own, tokenizer, golden):
    answers = []

    def answer():
        answers.append(by_engine(own, tokenizer))
        assert answers[-1] == by_transformers(own, tokenizer)
        assert list(own.stream_chat(tokenizer, "你好", do_sample=False, max_new_tokens=12))[-1][0] == answers[-1]

    answer()
    with own.prefix_disabled():
        answer()
    answer()
    assert answers[0] == answers[2] != answers[1]
    own.train()  # a training step of the prefix
    own(torch.tensor([tokenizer.encode("你好")]), labels=torch.tensor([tokenizer.encode("你好")])).loss.backward()
    with torch.no_grad():
        own.prefix_encoder.embedding.weight += 3.0 * own.prefix_encoder.embedding.weight.grad.sign()
    own.eval()
    answer()
    assert answers[3] != answers[0]
    own.prefix_encoder.embedding.weight.data.mul_(-1)
    answer()
    own.lm_head.weight.data = own.lm_head.weight.data.roll(1, 0)
    answer()
    assert answers[5] != answers[4]
    own.lm_head.weight.data.copy_(own.lm_head.weight.data.roll(1, 0))  # nothing that a version counter sees
    answer()
    assert answers[6] != answers[5]
    own.to(torch.bfloat16)
    answer()
    own.float().quantize(8)
    answer()
    own.detach_prefix()
    answer()


def test_a_model_in_training_answers_without_dropout_and_trains_on(own, tokenizer):
    answer = by_engine(own, tokenizer)
    own.prefix_encoder.config = dataclasses.replace(own.prefix_encoder.config, dropout=0.9)
    own.train()
    own.transformer.layers[1].eval()
    own.gradient_checkpointing_enable()
    modes = [module.training for module in own.modules()]
    stream = own.stream_chat(tokenizer, "你好", do_sample=False, max_new_tokens=12)
    assert by_engine(own, tokenizer) == answer
    items = []
    for item in stream:
        assert [module.training for module in own.modules()] == modes
        items.append(item)
    assert items[-1][0] == answer


def test_answers_leave_nothing_in_the_model(own, tokenizer, tmp_path):
    before, names = list(own.state_dict()), set(vars(own))
    answer = by_engine(own, tokenizer)
    stream = own.stream_chat(tokenizer, "你好", do_sample=False, max_new_tokens=12)
    next(stream)
    assert list(own.state_dict()) == before
    assert set(vars(own)) == names
    assert by_engine(copy.deepcopy(own), tokenizer) == answer
    assert by_engine(pickle.loads(pickle.dumps(own)), tokenizer) == answer
    own.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ChatGLMForConditionalGeneration"]
    assert list(stream)[-1][0] == answer


def test_two_threads_do_not_meet(own, tokenizer):
    queries, answers = ["你好", "今天天气怎么样", "what is it", "裙"], {}
    alone = [own.chat(tokenizer, query, do_sample=False, max_new_tokens=15)[0] for query in queries]

    def ask(number):
        for turn in range(3):
            query = queries[(number + turn) % 4]
            items = list(own.stream_chat(tokenizer, query, do_sample=False, max_new_tokens=15))
            answers[number, turn] = (items[-1][0], own.chat(tokenizer, query, do_sample=False, max_new_tokens=15)[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {(n, t): (alone[(n + t) % 4],) * 2 for n in range(4) for t in range(3)}


def test_manual_seed_decides_what_is_drawn(base, tokenizer):
    settings = {"temperature": 3.0, "top_p": 1.0, "max_new_tokens": 20}
    torch.manual_seed(5)
    first, second = (base.chat(tokenizer, "你好", **settings)[0] for _ in range(2))
    torch.manual_seed(5)
    streamed = list(base.stream_chat(tokenizer, "你好", **settings))[-1][0]
    assert first == streamed != second
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    base.chat(tokenizer, "你好", do_sample=False, max_new_tokens=5)
    assert torch.equal(torch.rand(1), drawn)  # who takes the likeliest token draws nothing


def test_a_stream_takes_a_step_only_when_it_is_asked(base, tokenizer, monkeypatch):
    steps, step = [], Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: steps.append(1) or step(engine))
    stream = base.stream_chat(tokenizer, "你好", max_length=2000, do_sample=False)
    assert steps == []
    next(stream)
    count = len(steps)
    assert 0 < count < 10
    next(stream)
    stream.close()
    assert len(steps) < count + 10


def test_what_goes_wrong_reaches_the_caller(base, tokenizer, monkeypatch):
    monkeypatch.setattr(base.transformer, "run", lambda *args, **kwargs: 1 / 0)
    for ask in (base.chat, lambda *args: list(base.stream_chat(*args))):
        with pytest.raises(ptuning.GenerationError, match="division by zero"):
            ask(tokenizer, "你好")


def asked_for(monkeypatch, model):
    """The keywords that ``generate`` is called with; it answers nothing."""
    calls = []

    def generate(model, inputs, **settings):
        calls.append(settings)
        return torch.cat([inputs, torch.tensor([[settings["eos_token_id"]]])], dim=1)

    monkeypatch.setattr(type(model), "generate", generate)
    return calls


@pytest.mark.parametrize(
    ("settings", "by_generate"),
    [
        ({}, False),
        ({"max_new_tokens": 4, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "top_k": 5}, False),
        ({"top_k": None, "repetition_penalty": None, "max_new_tokens": None}, False),
        ({"num_beams": 2}, True),
        ({"min_new_tokens": 2}, True),
        ({"bad_words_ids": [[5]]}, True),
        ({"max_length": 2049, "do_sample": False}, True),  # more than the engine holds for this model
        ({"max_new_tokens": 2048}, True),
    ],
    ids=str,
)
def test_what_only_transformers_knows_goes_there(base, tokenizer, monkeypatch, settings, by_generate):
    calls = asked_for(monkeypatch, base)
    response, _ = base.chat(tokenizer, "你好", **{"max_length": 30} | settings)
    assert bool(calls) == by_generate == (response == "")
    if calls:
        assert settings.items() <= calls[0].items()


def test_the_models_own_generation_settings_count(base, tokenizer, monkeypatch):
    plain = by_engine(base, tokenizer)
    monkeypatch.setattr(base, "generation_config", copy.deepcopy(base.generation_config))
    base.generation_config.no_repeat_ngram_size = 2
    assert by_engine(base, tokenizer) == by_transformers(base, tokenizer) != plain
    assert by_engine(base, tokenizer, no_repeat_ngram_size=0) == plain
    calls = asked_for(monkeypatch, base)
    assert by_engine(base, tokenizer) != ""
    assert not calls
    base.generation_config.suppress_tokens = [7]
    by_engine(base, tokenizer)
    assert calls


def test_an_untrained_prefix_does_not_answer(golden, tokenizer):
    model = ptuning.load_model(golden / "model", device="cpu", pre_seq_len=3)
    for ask in (model.chat, lambda *args: next(model.stream_chat(*args))):
        with pytest.raises(UserError, match="was never trained or loaded"):
            ask(tokenizer, "你好")
    with model.prefix_disabled():
        assert by_engine(model, tokenizer)
