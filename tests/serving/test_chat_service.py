"""The service under the front ends: what is asked, what does not fit, what is left out, and how it starts."""

import json
from dataclasses import replace

import pytest
from prefixes import save_random_prefix
from sampling import greedy

import ptuning
from ptuning.core.errors import UserError
from ptuning.data.truncation import fitting_prompt_ids, prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import ChatService, Question, load_service
from ptuning.serving.prefix_store import PrefixStore, UnknownPrefixError
from ptuning.settings.arguments import ServingArguments


@pytest.fixture(scope="module")
def parts():
    return ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm")


@pytest.fixture(scope="module")
def service(parts):
    engine = Engine(*parts, max_rows=4, max_length=200)
    running = ChatService(engine, PrefixStore(engine, "tiny-chatglm")).start()
    yield running
    running.stop()
    assert not running.worker.alive


def text_of(asked):
    assert asked.generations[0].wait(30)
    return asked.generations[0].text


def test_answers_are_those_of_model_chat(service, parts):
    model, tokenizer = parts
    history = []
    for query in ("你好", "今天天气怎么样？"):
        asked = service.ask(Question(query, history, sampling=greedy(16)))
        response, history = model.chat(tokenizer, query, history, max_new_tokens=16, do_sample=False)
        assert text_of(asked) == response
        assert asked.note is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_at_the_very_start_leaves_an_empty_answer(service, stream):
    whole = text_of(service.ask(Question("你是谁", sampling=greedy(8))))
    for stop in (whole[0], whole[:3], whole[:1] + "\n", whole):
        asked = service.ask(Question("你是谁", sampling=greedy(8, stop=("不会", stop)), stream=stream))
        generation = asked.generations[0]
        if stream:
            assert "".join(generation.pieces()) == ("" if "\n" not in stop else whole)
        assert text_of(asked) == ("" if "\n" not in stop else whole)
        assert generation.finish_reason == ("stop" if "\n" not in stop else "length")


def test_max_length_counts_prompt_and_answer(service, parts):
    limit = len(prompt_ids(parts[1], "你好")) + 3
    asked = service.ask(Question("你好", sampling=greedy(max_length=limit)))
    assert text_of(asked)
    assert len(asked.generations[0].ids) <= 3


def test_the_oldest_rounds_go_and_it_is_said(service, parts):
    history = [(f"问题{number}", "回答。" * 8) for number in range(30)]
    asked = service.ask(Question("最后？", history, sampling=greedy(20)))
    kept = history[asked.dropped_rounds :]
    assert 0 < asked.dropped_rounds < 30
    assert asked.generations[0].request.prompt_ids == prompt_ids(parts[1], "最后？", kept)
    assert asked.prompt_tokens + 20 <= 200 < len(prompt_ids(parts[1], "最后？", history[asked.dropped_rounds - 1 :])) + 20
    assert f"its oldest {asked.dropped_rounds} rounds" in asked.note
    assert text_of(asked)


@pytest.mark.parametrize(("limit", "room"), [(60, None), (60, 10), (100, 60), (200, 1), (5000, None)])
def test_the_rule_for_long_histories(parts, limit, room):
    """As few rounds go as leave the room; the question is never cut."""
    tokenizer = parts[1]
    history = [(f"问 {number}", "答" * (number % 7)) for number in range(12)]
    ids, dropped = fitting_prompt_ids(tokenizer, "你好吗", history, limit=limit, room=room)
    free = min(limit // 4 if room is None else room, limit // 2)
    lengths = [len(prompt_ids(tokenizer, "你好吗", history[number:])) for number in range(13)]
    assert dropped == next((number for number in range(13) if lengths[number] + free <= limit), 12)
    assert ids == prompt_ids(tokenizer, "你好吗", history[dropped:])


def test_what_cannot_be_asked_is_refused(service):
    for asked, sampling, message in (
        ({"query": "长" * 500}, {}, "the question has"),
        ({"query": "长" * 500, "history": [("a", "b")]}, {}, "without its history"),
        ({"query": "x", "choices": 0}, {}, "n 0"),
        ({"query": "x"}, {"max_length": 0}, "max_length 0"),
        ({"query": "x"}, {"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"query": "x"}, {"stop": ("",)}, "stop text is empty"),
    ):
        with pytest.raises(UserError, match=message):
            service.ask(Question(**asked, sampling=SamplingParams(**sampling)))
    with pytest.raises(UnknownPrefixError):
        service.ask(Question("x", model="nobody"))


def test_choices_have_seeds_of_their_own(service):
    sampling = SamplingParams(temperature=2.0, top_p=1.0, seed=5)
    asked = service.ask(Question("你好", sampling=replace(sampling, max_new_tokens=12), choices=3))
    texts = [one.text for one in asked.generations if one.wait(30)]
    again = service.ask(Question("你好", sampling=SamplingParams(2.0, 1.0, seed=6, max_new_tokens=12)))
    assert len(set(texts)) > 1
    assert text_of(again) == texts[1]


def test_a_service_starts_from_settings(parts, tmp_path):
    one = save_random_prefix(tmp_path / "one", parts[0].config, 4, 1, base_model="tiny-chatglm")
    two = save_random_prefix(tmp_path / "two", parts[0].config, 6, 2, base_model="tiny-chatglm")
    made = load_service(ServingArguments(ptuning_checkpoint=[f"a={one}", str(two)], device="cpu"), max_rows=2)
    assert made.store.names() == ["tiny-chatglm", "a", "two"]
    assert made.engine.max_rows == 2
    assert load_service(ServingArguments(device="cpu")).store.names() == ["tiny-chatglm"]
    with pytest.raises(UserError, match="has pre_seq_len=4, you passed 5"):
        load_service(ServingArguments(ptuning_checkpoint=[str(one)], pre_seq_len=5))
    described = one / "prefix_config.json"
    described.write_text(json.dumps({k: v for k, v in json.loads(described.read_text()).items() if k != "base_model"}))
    with pytest.raises(UserError, match="--model_name_or_path is missing"):
        load_service(ServingArguments(ptuning_checkpoint=[str(one)]))
