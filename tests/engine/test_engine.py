"""The engine: a batch answers as each request alone would, whoever joins, leaves, fails or waits beside it."""

import random
from dataclasses import replace
from threading import Thread

import pytest
import torch
from prefixes import random_encoder
from sampling import greedy

import ptuning
from ptuning.core import limits
from ptuning.core.errors import GenerationError, UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import QueueFullError, Request
from ptuning.engine.sampling_params import GREEDY, SamplingParams
from ptuning.engine.text_stream import reply_text
from ptuning.engine.worker import EngineWorker
from ptuning.kernels import dispatch, screening

WORDS = ["你好", "今天", "天气", "怎么样", "hello", "what", "is", "a", "shirt", "裙子", "类型", "材质", "1", "2", "，。！"]


@pytest.fixture(scope="module")
def golden_parts(golden):
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")
    model.requires_grad_(False)
    return model, ptuning.load_tokenizer(golden / "model")


@pytest.fixture(scope="module")
def tiny_parts():
    return ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm")


@pytest.fixture
def screened(monkeypatch):
    """Heads of every size are screened."""
    monkeypatch.setattr(limits, "MIN_SCREENED", 0)
    if not screening.fits(torch.zeros(16, 32)):
        pytest.skip("no C compiler, or a CPU without AVX2")


def prompts_of(tokenizer, count, seed=0):
    """Prompts of 3 to about 60 ids."""
    rng = random.Random(seed)
    return [prompt_ids(tokenizer, " ".join(rng.choices(WORDS, k=rng.randint(1, 25)))) for _ in range(count)]


@torch.no_grad()
def alone(model, tokenizer, ids, new_tokens, encoder=None, **settings):
    """What transformers' generate answers to one prompt."""
    prefix = None if encoder is None else encoder(model.dtype)
    with model.prefix_disabled():
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=new_tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, prefix_key_values=prefix, **settings,
        )
    row = whole[0, len(ids) :].tolist()
    return row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row


@pytest.fixture
def kernel(request):
    """The kernel of the whole process, put back afterwards."""
    dispatch.configure(kernel=request.param)
    yield
    dispatch.configure()


@pytest.mark.parametrize("parts", ["golden_parts", "tiny_parts"])
@pytest.mark.parametrize("kernel", ["auto", "reference"], indirect=True)
def test_a_batch_answers_as_each_request_alone(parts, kernel, request):
    """Base and prefixes of two lengths mixed, fewer rows than requests, every length: token for token as alone."""
    model, tokenizer = request.getfixturevalue(parts)
    engine = Engine(model, tokenizer, max_rows=5)
    encoders = [None, *(random_encoder(model.config, length, seed) for seed, length in enumerate((4, 4, 4, 9)))]
    prefixes = [None if e is None else engine.add_prefix("x", e(model.dtype)) for e in encoders]
    asked = [
        (ids, number % 5, 4 + 7 * number % 23) for number, ids in enumerate(prompts_of(tokenizer, 18))
    ]
    requests = [Request(ids, prefixes[which], greedy(limit)) for ids, which, limit in asked]
    found = {one.index: one for one in engine.run(requests)}
    for index, (ids, which, limit) in enumerate(asked):
        assert found[index].ids == alone(model, tokenizer, ids, limit, encoders[which]), index
        assert found[index].finish_reason == ("length" if len(found[index].ids) == limit else "stop")
        assert found[index].text == reply_text(tokenizer, found[index].ids)
    assert engine.idle
    assert len({tuple(one.ids) for one in found.values()}) > 5  # the answers do differ


def test_the_attached_prefix_gives_the_chat_answer(golden_parts, golden_cases):
    model, tokenizer = golden_parts
    engine = Engine(model, tokenizer)
    prefix = engine.add_prefix("golden", model.prefix_key_values())
    for query in ("你好", "第二问\n换行"):
        ids = prompt_ids(tokenizer, query)
        (found,) = engine.run([Request(ids, prefix, greedy(40))])
        assert found.text == model.chat(tokenizer, query, max_new_tokens=40, do_sample=False)[0]


def test_base_rows_are_bit_identical_beside_prefix_rows(tiny_parts):
    """What a prefix does to its row never reaches another: scores of a base row with and without prefixes loaded."""
    from ptuning.engine import runner as core

    model, tokenizer = tiny_parts
    ids = prompts_of(tokenizer, 1)[0]

    def scores(neighbour):
        engine = Engine(model, tokenizer)
        seen = []
        prefix = engine.add_prefix("p", random_encoder(model.config, 6, 1)(model.dtype)) if neighbour else None
        original = core.decode_step
        core.decode_step = lambda *args: seen.append(original(*args)) or seen[-1]
        try:
            list(engine.run([Request(ids, None, greedy(5)), Request(ids, prefix, greedy(5))]))
        finally:
            core.decode_step = original
        return [step[0] for step in seen]

    for with_prefix, without in zip(scores(True), scores(False), strict=True):
        assert torch.equal(with_prefix, without)


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1}])
def test_penalties_are_those_of_transformers(tiny_parts, settings):
    model, tokenizer = tiny_parts
    prompts = prompts_of(tokenizer, 6, seed=3)
    plain = Request(prompts[0], sampling=greedy(15))
    requests = [plain, *(Request(ids, None, greedy(15, **settings)) for ids in prompts)]
    found = {one.index: one.ids for one in Engine(model, tokenizer, max_rows=4).run(requests)}
    for index, ids in enumerate(prompts, 1):
        assert found[index] == alone(model, tokenizer, ids, 15, **settings)
    assert found[0] == alone(model, tokenizer, prompts[0], 15)


def test_a_seed_gives_the_same_answer_whatever_is_beside_it(tiny_parts):
    model, tokenizer = tiny_parts
    ids = prompts_of(tokenizer, 1, seed=5)[0]
    asked = [
        Request(ids, None, SamplingParams(seed=7, temperature=1.5, top_p=1.0, top_k=0, max_new_tokens=20)),
        Request(ids, None, SamplingParams(seed=7, temperature=1.5, top_p=0.9, top_k=20, max_new_tokens=20)),
        Request(ids, None, SamplingParams(seed=8, temperature=1.5, top_p=0.9, top_k=20, max_new_tokens=20)),
    ]
    solo = [next(iter(Engine(model, tokenizer).run([one]))).ids for one in asked]
    prompts = enumerate(prompts_of(tokenizer, 9, seed=6))
    others = [Request(one, None, SamplingParams(top_k=k, seed=k, max_new_tokens=9)) for k, one in prompts]
    found = {one.index: one.ids for one in Engine(model, tokenizer, max_rows=6).run([*others, *asked])}
    assert [found[9], found[10], found[11]] == solo
    assert solo[1] != solo[2]


def test_requests_join_and_leave_at_token_steps(tiny_parts):
    model, tokenizer = tiny_parts
    one, two = prompts_of(tokenizer, 2, seed=9)
    engine = Engine(model, tokenizer, max_rows=2)
    (first,) = engine.submit([Request(one, sampling=greedy(12))])
    for _ in range(4):
        engine.step()
    (second,) = engine.submit([Request(two, sampling=greedy(3))])
    while second.finish_reason is None:
        engine.step()
    assert first.finish_reason is None
    while engine.step():
        pass
    assert first.ids == alone(model, tokenizer, one, 12)
    assert second.ids == alone(model, tokenizer, two, 3)


def test_cancelling_frees_the_row_within_one_step(tiny_parts):
    model, tokenizer = tiny_parts
    prompts = prompts_of(tokenizer, 3, seed=11)
    engine = Engine(model, tokenizer, max_rows=2)
    sampling = SamplingParams(temperature=2.0, seed=1, max_new_tokens=200)
    made = engine.submit([Request(ids, sampling=sampling) for ids in prompts])
    engine.step()
    made[0].cancel()
    made[2].cancel()
    engine.step()
    assert [one.finish_reason for one in made] == ["cancelled", None, "cancelled"]
    assert len(engine.running) == 1
    made[1].cancel()
    assert engine.step() is False


def test_a_full_queue_refuses_and_recovers(tiny_parts):
    model, tokenizer = tiny_parts
    request = Request(prompts_of(tokenizer, 1)[0], sampling=greedy(2))
    engine = Engine(model, tokenizer, max_rows=1, max_waiting=2)
    engine.submit([request, request])
    with pytest.raises(QueueFullError, match="limit is 2"):
        engine.submit([request])
    while engine.step():
        pass
    assert len(engine.submit([request])) == 1


@pytest.mark.parametrize("when", ["in the prompt", "while decoding"])
@pytest.mark.parametrize("head", ["whole", "screened"])
def test_broken_scores_end_that_request_alone(tiny_parts, when, head, request):
    """A prefix that makes its row overflow: base rows and other prefixes beside it, and whoever gets its slot, answer as
    ever. Its numbers turn bad before its prompt is read, or after the third step."""
    if head == "screened":
        request.getfixturevalue("screened")
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=3)
    healthy = random_encoder(model.config, 4, 1)
    poison, other = (engine.add_prefix(name, healthy(model.dtype)) for name in ("poison", "other"))
    prompts = prompts_of(tokenizer, 6, seed=2)
    prefixes = [None, poison, other, None, other, None]
    requests = [Request(ids, prefix, greedy(12)) for ids, prefix in zip(prompts, prefixes, strict=True)]
    made = engine.submit(requests)
    steps = 0
    while steps == 0 or engine.step():
        if steps == (0 if when == "in the prompt" else 3):
            with torch.inference_mode():
                for value in engine.runner.prefix_pool.by_length[4].values:
                    value[poison.position].fill_(torch.inf)
        steps += 1
    assert made[1].finish_reason == "error"
    assert len(made[1].ids) == (0 if when == "in the prompt" else 4)
    with pytest.raises(GenerationError, match="NaN or infinite"):
        made[1].raise_for_error()
    for index in (0, 2, 3, 4, 5):
        encoder = None if prefixes[index] is None else healthy
        assert made[index].ids == alone(model, tokenizer, prompts[index], 12, encoder)


def test_the_cache_is_not_made_anew_per_token(tiny_parts):
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=4)
    sampling = SamplingParams(temperature=3.0, top_p=1.0, seed=3)
    list(engine.run([Request(ids, None, replace(sampling, max_new_tokens=300)) for ids in prompts_of(tokenizer, 4)]))
    grown, pointers = engine.runner.cache.growths, [tensor.data_ptr() for tensor in engine.runner.cache.keys]
    assert grown <= 4
    list(engine.run([Request(ids, None, replace(sampling, max_new_tokens=100)) for ids in prompts_of(tokenizer, 8)]))
    assert engine.runner.cache.growths == grown
    assert [tensor.data_ptr() for tensor in engine.runner.cache.keys] == pointers


def test_the_cache_of_known_requests_is_made_once(tiny_parts):
    """As many rows and columns as the requests can take, no more, and nothing is copied on the way."""
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=8)
    prompts = prompts_of(tokenizer, 5)
    sampling = SamplingParams(temperature=3.0, top_p=1.0, seed=3, max_new_tokens=300)
    requests = [Request(ids, None, sampling) for ids in prompts]
    list(engine.run(requests))
    assert engine.runner.cache.growths == 1
    assert (engine.runner.cache.rows, engine.runner.cache.columns) == (5, max(map(len, prompts)) + 301)


def test_one_forward_and_one_wait_per_token(tiny_parts, monkeypatch):
    """Counted, not timed: calls of the head, and how often a step asks the device for its tokens."""
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=4)
    shapes, waits = [], []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(1) or tolist(self))
    try:
        list(engine.run([Request(ids, sampling=greedy(6)) for ids in prompts_of(tokenizer, 4, seed=4)]))
    finally:
        handle.remove()
    assert all(len(shape) == 2 or shape[1] == 1 for shape in shapes)  # [rows, V] or [rows, 1, V]: the last position only
    assert len(shapes) == len(waits) == engine.counters.steps + engine.counters.prefills
    assert engine.counters.prefills == 1


def test_a_screened_head_gives_the_same_tokens(tiny_parts, screened, monkeypatch):
    """Greedy rows, rows with top_k of different sizes and a prefix beside them; the head itself is never asked."""
    model, tokenizer = tiny_parts
    hot = SamplingParams(top_k=5, top_p=1.0, temperature=2.0, seed=4)
    settings = [GREEDY, SamplingParams(seed=3), hot, SamplingParams(top_k=9, seed=5)]

    def answers(whole):
        engine = Engine(model, tokenizer, max_rows=3)
        prefix = engine.add_prefix("p", random_encoder(model.config, 6, 1)(model.dtype))
        requests = [
            Request(ids, prefix if number % 2 else None, replace(settings[number % 4], max_new_tokens=12))
            for number, ids in enumerate(prompts_of(tokenizer, 9, seed=6))
        ]
        asked = []
        handle = model.lm_head.register_forward_hook(lambda *args: asked.append(1))
        try:
            made = {one.index: one.ids for one in engine.run(requests)}
        finally:
            handle.remove()
        assert bool(asked) == whole
        return made

    some = answers(False)
    monkeypatch.setattr(screening, "fits", lambda weight: False)
    assert answers(True) == some


@pytest.mark.parametrize(
    "setting", [{"top_k": 0}, {"top_k": 2000}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 2}], ids=str
)
def test_rows_that_need_all_scores_get_them(tiny_parts, screened, setting):
    model, tokenizer = tiny_parts
    asked = []
    handle = model.lm_head.register_forward_hook(lambda *args: asked.append(1))
    engine = Engine(model, tokenizer, max_rows=2)
    try:
        sampling = SamplingParams(seed=1, **setting, max_new_tokens=4)
        requests = [Request(ids, None, sampling) for ids in prompts_of(tokenizer, 2)]
        list(engine.run([*requests, Request(requests[0].prompt_ids, sampling=greedy(4))]))
    finally:
        handle.remove()
    assert len(asked) >= 4


def test_prefixes_come_and_go(tiny_parts):
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=4)
    encoders = [random_encoder(model.config, 5, seed) for seed in range(4)]
    ids = prompts_of(tokenizer, 1)[0]
    wanted = [alone(model, tokenizer, ids, 6, encoder) for encoder in encoders]
    shared = [engine.add_prefix(str(number), encoder(model.dtype)) for number, encoder in enumerate(encoders)]
    waiting = engine.submit([Request(ids, prefix, greedy(6)) for prefix in (shared[1], shared[3], shared[1])])
    engine.step()
    late = engine.submit([Request(ids, shared[1])] * 2)
    engine.remove_prefix(shared[1])  # two rows read it still, and two requests wait for it: one too many fits now
    engine.remove_prefix(shared[0])
    with pytest.raises(UserError, match="unloaded"):
        engine.submit([Request(ids, shared[1])])
    (other,) = engine.submit([Request(ids, shared[2], greedy(6))])
    while engine.step():
        pass
    assert [one.ids for one in waiting] == [wanted[1], wanted[3], wanted[1]]
    assert other.ids == wanted[2]
    assert [one.finish_reason for one in late] == ["error", "error"]
    pool = engine.runner.prefix_pool
    assert [entry.name for bank in pool.by_length.values() for entry in bank.entries] in (["2", "3"], ["3", "2"])
    for prefix in (shared[2], shared[3]):
        engine.remove_prefix(prefix)
    assert not pool.by_length


def test_many_rows_of_one_prefix_and_few_of_others(tiny_parts):
    """Groups of very different sizes are read apart; nothing gets another's prefix."""
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=24)
    encoders = [random_encoder(model.config, 3, seed) for seed in range(8)]
    shared = [engine.add_prefix(str(number), encoder(model.dtype)) for number, encoder in enumerate(encoders)]
    order = [0, 1, 2, *[3] * 15, 4, 5, 6, 7]
    ids = prompts_of(tokenizer, 1, seed=8)[0]
    found = {one.index: one.ids for one in engine.run([Request(ids, shared[which], greedy(5)) for which in order])}
    wanted = [alone(model, tokenizer, ids, 5, encoder) for encoder in encoders]
    assert [found[index] for index in range(len(order))] == [wanted[which] for which in order]


def test_a_worker_answers_threads(tiny_parts):
    model, tokenizer = tiny_parts
    engine = Engine(model, tokenizer, max_rows=4)
    worker = EngineWorker(engine).start()
    prompts, answers = prompts_of(tokenizer, 8, seed=12), {}

    def ask(number):
        (made,) = engine.submit([Request(prompts[number], sampling=greedy(10), stream=True)])
        answers[number] = "".join(made.pieces()), made

    threads = [Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    prefix = engine.add_prefix("late", random_encoder(model.config, 4, 1)(model.dtype))
    for thread in threads:
        thread.join()
    for number, (text, made) in answers.items():
        assert text == made.text == reply_text(tokenizer, alone(model, tokenizer, prompts[number], 10))
    sampling = SamplingParams(temperature=5.0, top_p=1.0, top_k=0)
    (endless,) = engine.submit([Request(prompts[0], prefix, sampling, stream=True)])
    pieces = endless.pieces()
    next(pieces)
    pieces.close()  # the reader goes away
    assert endless.wait(20)
    assert worker.drain(20)
    worker.stop()
    assert not worker.alive


@pytest.mark.parametrize(
    ("change", "message"),
    [({"temperature": -1}, "temperature -1"), ({"top_p": 0}, "top_p 0"), ({"repetition_penalty": 0}, "repetition_penalty")],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**change)


def test_prompts_that_cannot_be_answered_are_refused(tiny_parts):
    engine = Engine(*tiny_parts, max_length=30)
    with pytest.raises(UserError, match="no <sop>"):
        engine.submit([Request([5, 6, 7])])
    with pytest.raises(UserError, match="the limit of prompt and answer is 30"):
        engine.submit([Request(prompt_ids(tiny_parts[1], "你好" * 30))])
    (found,) = Engine(*tiny_parts, max_length=6).run([Request(prompt_ids(tiny_parts[1], "你好"), sampling=greedy(500))])
    assert len(found.ids) + len(found.request.prompt_ids) == 6
    assert found.finish_reason == "length"
