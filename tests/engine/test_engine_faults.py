"""Whatever goes wrong in a step of the engine ends the request that made it go wrong, and no other.

Faults are put into every stage of a step, for one request of sixteen, whose clients are threads. The others' answers are
those of a run without faults, token for token; nothing is left behind, and the engine answers on.
"""

import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Thread

import pytest
import torch
from prefixes import random_encoder
from sampling import greedy

import ptuning
from ptuning.core.errors import GenerationError, UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine import cache as slot_cache
from ptuning.engine import runner as core
from ptuning.engine import scheduler, text_stream
from ptuning.engine.engine import Engine
from ptuning.engine.request import Generation, Request
from ptuning.engine.sampling_params import GREEDY, SamplingParams
from ptuning.engine.worker import EngineWorker

CLIENTS, TOKENS, CULPRIT = 16, 14, 5
MARK = "坏"  # a stop text of the culprit alone
SETTINGS = (
    GREEDY,
    SamplingParams(seed=3),
    SamplingParams(temperature=1.5, top_p=0.9, top_k=0, seed=4),
    SamplingParams(temperature=0, repetition_penalty=1.3),
    SamplingParams(seed=5, repetition_penalty=1.2, top_k=7),
    SamplingParams(seed=6, no_repeat_ngram_size=2),
)


@pytest.fixture(scope="module")
def parts():
    return ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm")


class Batch:
    """An engine with a worker, and sixteen requests of all kinds; the culprit has a prefix and a stop text of its own, and
    by far the longest prompt."""

    def __init__(self, parts, max_rows=8):
        self.model, self.tokenizer = parts
        self.engine = Engine(*parts, max_rows=max_rows, max_length=400)
        self.engine.scheduler.end_ids = frozenset()  # nobody ends early, so that faults come while all are there
        names = ("shared", "culprit's", "longer")
        self.prefixes = [
            self.engine.add_prefix(name, random_encoder(self.model.config, length, length)(self.model.dtype))
            for name, length in zip(names, (4, 4, 7), strict=True)
        ]
        self.requests = [self._request(number) for number in range(CLIENTS)]
        self.culprit = self.requests[CULPRIT]
        self.made = [None] * CLIENTS
        self.texts = [""] * CLIENTS

    def _request(self, number):
        if number == CULPRIT:
            ids = prompt_ids(self.tokenizer, "长" * 150)
            sampling = SamplingParams(seed=9, max_new_tokens=TOKENS + 4, stop=(MARK,))
            return Request(ids, self.prefixes[1], sampling, stream=True)
        prefix = (None, self.prefixes[0], self.prefixes[2])[number % 3]
        ids = prompt_ids(self.tokenizer, "你好今天怎么样"[: 1 + number % 7] + str(number))
        limit = TOKENS - number % 5
        return Request(ids, prefix, replace(SETTINGS[number % len(SETTINGS)], max_new_tokens=limit), stream=number % 2 == 0)

    def ask(self, number, listener=None):
        """One client: waits for its whole answer."""
        (made,) = self.engine.submit([self.requests[number]], listener)
        self.made[number] = made
        if made._pieces is None:
            assert made.wait(60)
            self.texts[number] = made.text
        else:
            with suppress(GenerationError):
                for piece in made.pieces():
                    self.texts[number] += piece
        assert made.wait(60)

    def answers(self):
        return [(one.ids, one.finish_reason, text) for one, text in zip(self.made, self.texts, strict=True)]

    def is_culprits(self, samplers):
        return any(row._prompt_ids is self.culprit.prompt_ids for row in samplers)

    def reads_culprit(self, cache):
        rows = self.engine.running[cache.first : cache.first + cache.rows]
        return any(row.generation.request is self.culprit for row in rows) and self.tokens_of_culprit() >= 3

    def tokens_of_culprit(self):
        return len(self.made[CULPRIT].ids) if self.made[CULPRIT] is not None else 0


def run_clients(batch, listener=None):
    worker = EngineWorker(batch.engine).start()
    threads = [
        Thread(target=batch.ask, args=(number, listener if number == CULPRIT else None)) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert worker.alive
    assert worker.drain(30)
    return worker


def nothing_is_left(engine):
    assert engine.idle
    assert not engine.running
    assert not engine.waiting
    assert {entry.rows for bank in engine.runner.prefix_pool.by_length.values() for entry in bank.entries} <= {0}
    assert {bank.in_use for bank in engine.runner.prefix_pool.by_length.values()} <= {0}


def still_answers(batch, wanted):
    """Every slot, after the fault: answers are what they were."""
    others = [number for number in range(CLIENTS) if number != CULPRIT]
    made = batch.engine.submit([batch.requests[number] for number in others])
    for number, one in zip(others, made, strict=True):
        assert one.wait(60)
        assert one.ids == wanted[number][0]


@pytest.fixture(scope="module")
def undisturbed(parts):
    batch = Batch(parts)
    run_clients(batch).stop()
    nothing_is_left(batch.engine)
    answers = batch.answers()
    assert {reason for _, reason, _ in answers} == {"length"}
    assert all(text for _, _, text in answers)
    return answers


# ---- the stages: each puts its fault in, and returns a listener of the culprit if it needs one


def raising(monkeypatch, owner, name, when, error, after=False):
    """A function that raises for the culprit, before or after it has done its work."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        bad = when(*args, **kwargs)
        if bad and not after:
            raise error
        result = original(*args, **kwargs)
        if bad:
            raise error
        return result

    monkeypatch.setattr(owner, name, wrapped)


def row_sampler(batch, patch, error):
    raising(patch, scheduler, "RowSampler", lambda request, *_: request is batch.culprit, error)


def sampler_while_reading(batch, patch, error):
    raising(patch, core, "Sampler", lambda rows, _: batch.is_culprits(rows), error)


def sampler_while_decoding(batch, patch, error):
    raising(patch, core, "Sampler", lambda rows, _: batch.is_culprits(rows) and batch.tokens_of_culprit() >= 1, error)


def prefix_reads(batch, patch, error):
    raising(patch, core, "PrefixReads", lambda bank, rows, _: batch.prefixes[1] in rows, error)


def bank_take(batch, patch, error):
    raising(patch, batch.engine.runner.prefix_pool, "acquire", lambda prefix: prefix is batch.prefixes[1], error)


def bank_take_done(batch, patch, error):
    raising(patch, batch.engine.runner.prefix_pool, "acquire", lambda prefix: prefix is batch.prefixes[1], error, after=True)


def reserve_while_reading(batch, patch, error):
    raising(patch, batch.engine.runner.cache, "reserve", lambda rows, columns: columns > 100, error)


def reserve_while_decoding(batch, patch, error):
    length = len(batch.culprit.prompt_ids)
    raising(patch, batch.engine.runner.cache, "reserve", lambda rows, columns: columns > length + 4, error)


def memory_while_growing(batch, patch, error):
    """The third layer of a larger cache cannot be had."""
    asked = []

    def large(shape, dtype, device):
        asked.append(shape)
        return shape[2] > 128 and len(asked) % 3 == 0

    raising(patch, slot_cache, "zeros_when_read", large, error)


def text_stream_made(batch, patch, error):
    raising(patch, scheduler, "TextStream", lambda tokenizer, stop: MARK in stop, error)


def the_prefill(batch, patch, error):
    def when(model, cache, bank, prompts, prefixes, first):
        return batch.culprit.prompt_ids in prompts

    raising(patch, core, "prefill", when, error, after=True)


def the_decode_step(batch, patch, error):
    raising(patch, core, "decode_step", lambda model, tokens, places, cache: batch.reads_culprit(cache), error)


def the_decode_step_done(batch, patch, error):
    def when(model, tokens, places, cache):
        return batch.reads_culprit(cache)

    raising(patch, core, "decode_step", when, error, after=True)


def step_cache(batch, patch, error):
    raising(patch, core, "StepCache", lambda *given: batch.reads_culprit(FirstRows(given)), error)


class FirstRows:
    def __init__(self, given):
        self.first, self.rows = given[5], given[1].shape[0]


def head_while_reading(batch, patch, error):
    raising(patch, batch.engine.runner.head, "sample", lambda sampler, states: batch.is_culprits(sampler.rows), error)


def head_done_while_decoding(batch, patch, error):
    """Random numbers are drawn and tokens are marked as seen: nobody else may notice."""

    def when(sampler, states):
        return batch.is_culprits(sampler.rows) and batch.tokens_of_culprit() >= 2

    raising(patch, batch.engine.runner.head, "sample", when, error, after=True)


def text_of_a_token(batch, patch, error):
    original = text_stream.TextStream.add

    def add(stream, token):
        if any(stop.text == MARK for stop in stream.stops) and batch.tokens_of_culprit() >= 4:
            raise error
        return original(stream, token)

    patch.setattr(text_stream.TextStream, "add", add)


def the_tokenizer(batch, patch, error):
    """It cannot decode, from the culprit's third token on, and not at the end either."""
    original = batch.tokenizer.decode

    def decode(ids, *args, **kwargs):
        if batch.tokens_of_culprit() >= 3 and list(ids)[:3] == batch.made[CULPRIT].ids[:3]:
            raise error
        return original(ids, *args, **kwargs)

    patch.setattr(batch.tokenizer, "decode", decode)


def a_token_is_remembered(batch, patch, error):
    original = scheduler.RowSampler.add
    count = []

    def add(sampler, token):
        if sampler._prompt_ids is batch.culprit.prompt_ids:
            count.append(1)
            if len(count) > 3:
                raise error
        return original(sampler, token)

    patch.setattr(scheduler.RowSampler, "add", add)


def listener(batch, patch, error):
    def listen(generation, piece):
        raise error

    return listen


def listener_later(batch, patch, error):
    def listen(generation, piece):
        if len(generation.ids) > 5 or generation.finish_reason is not None:
            raise error

    return listen


def listener_leaves(batch, patch, error):
    def listen(generation, piece):
        raise SystemExit(1)

    return listen


STAGES = [
    row_sampler, sampler_while_reading, sampler_while_decoding, prefix_reads, bank_take, bank_take_done,
    reserve_while_reading, reserve_while_decoding, memory_while_growing, text_stream_made, the_prefill, the_decode_step,
    the_decode_step_done,
    step_cache, head_while_reading, head_done_while_decoding, text_of_a_token, the_tokenizer, a_token_is_remembered,
    listener, listener_later, listener_leaves,
]  # fmt: skip
ERRORS = [
    RuntimeError("no memory\non the device"), ValueError("wrong"), MemoryError(), OverflowError("too large"), KeyError("k"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "error"),
    [pytest.param(stage, ERRORS[number % len(ERRORS)], id=stage.__name__) for number, stage in enumerate(STAGES)],
)
def test_a_fault_ends_its_request_alone(parts, undisturbed, monkeypatch, stage, error):
    batch = Batch(parts)
    with monkeypatch.context() as patch:
        listen = stage(batch, patch, error)
        worker = run_clients(batch, listen)
    culprit = batch.made[CULPRIT]
    assert culprit.finish_reason == "error"
    assert culprit.error
    assert "\n" not in culprit.error
    for number, (ids, reason, text) in enumerate(batch.answers()):
        if number != CULPRIT:
            assert (ids, reason, text) == undisturbed[number], number
    assert batch.engine.counters.finished == {"stop": 0, "length": CLIENTS - 1, "cancelled": 0, "error": 1}
    nothing_is_left(batch.engine)
    still_answers(batch, undisturbed)
    assert worker.alive
    worker.stop()
    nothing_is_left(batch.engine)


@pytest.mark.parametrize("where", ["move", "wipe", "release", "release done", "remove"])
@pytest.mark.parametrize("times", [1, 10**9], ids=["once", "always"])
def test_a_fault_while_rows_leave(parts, undisturbed, monkeypatch, where, times):
    """Once: nobody notices. Always: rows that cannot be moved end with an error; nothing is left and nobody waits."""
    batch = Batch(parts)
    left = [times]

    def when(*_):
        left[0] -= 1
        return left[0] >= 0

    with monkeypatch.context() as patch:
        fault = RuntimeError("the device failed")
        runner, name = batch.engine.runner, where.split()[0]
        owner = runner.cache if where in ("move", "wipe") else runner.prefix_pool
        raising(patch, owner, name, when, fault, after="done" in where)
        if where == "wipe":  # only the slots of broken rows are wiped
            the_decode_step(batch, patch, fault)
        if where == "remove":
            with pytest.raises(RuntimeError, match="device"):
                batch.engine.remove_prefix(batch.prefixes[2])
        worker = run_clients(batch)
        nothing_is_left(batch.engine)
    if times == 1 or "release" in where or where == "remove":
        for number, (ids, reason, _) in enumerate(batch.answers()):
            if not (where == "wipe" and number == CULPRIT):
                assert (ids, reason) == undisturbed[number][:2], number
    still_answers(batch, undisturbed)
    worker.stop()


def test_one_of_several_that_are_admitted_together(parts, undisturbed, monkeypatch):
    """They are read in one pass; two of them cannot be, and end, before their first token."""
    batch = Batch(parts, max_rows=CLIENTS)
    bad = [batch.requests[CULPRIT], batch.requests[0]]
    original = core.prefill

    def prefill(model, cache, bank, prompts, prefixes, first):
        result = original(model, cache, bank, prompts, prefixes, first)
        for tensors in (cache.keys, cache.values):  # what was written is no number
            for row, ids in enumerate(prompts):
                if any(ids is one.prompt_ids for one in bad):
                    tensors[0][first + row].fill_(torch.nan)
                    raise RuntimeError("cannot be read")
        return result

    monkeypatch.setattr(core, "prefill", prefill)
    made = batch.engine.submit(batch.requests)
    batch.engine.step()
    ended = [number for number, one in enumerate(made) if one.finish_reason is not None]
    assert ended == [0, CULPRIT]
    monkeypatch.undo()
    while batch.engine.step():
        pass
    for number, one in enumerate(made):
        assert one.ids == ([] if number in ended else undisturbed[number][0])
    nothing_is_left(batch.engine)
    again = batch.engine.submit(batch.requests)  # in the slots of those that were not numbers
    while batch.engine.step():
        pass
    assert [one.ids for one in again] == [ids for ids, _, _ in undisturbed]


@pytest.mark.parametrize("name", ["prefill", "decode_step", "Sampler", "StepCache"])
def test_a_fault_that_comes_every_time_ends_everybody_and_does_not_spin(parts, monkeypatch, name):
    batch = Batch(parts)
    calls = []
    with monkeypatch.context() as patch:
        raising(patch, core, name, lambda *args: calls.append(1) or True, RuntimeError("the device is lost"))
        worker = EngineWorker(batch.engine).start()
        made = batch.engine.submit(batch.requests)
        assert all(one.wait(60) for one in made)
        assert worker.drain(30)
        count = len(calls)
        assert count <= 2 * CLIENTS, "every try ends somebody or halves the batch"
        assert {one.error for one in made} == {"the device is lost"}
        batch.engine.between_steps(lambda: None)
        assert len(calls) == count
    nothing_is_left(batch.engine)
    (fine,) = batch.engine.submit([batch.requests[1]])
    assert fine.wait(60)
    assert fine.finish_reason == "length"
    worker.stop()


@pytest.mark.parametrize("name", ["prefill", "decode_step"])
def test_a_fault_that_comes_once_ends_nobody(parts, undisturbed, monkeypatch, name):
    """Nobody's in particular, and gone when it is tried again."""
    batch = Batch(parts)
    short = [number for number in range(CLIENTS) if number != CULPRIT]
    made = batch.engine.submit([batch.requests[number] for number in short])
    calls = []
    raising(monkeypatch, core, name, lambda *args: calls.append(1) or len(calls) == 1, RuntimeError("for once"))
    while batch.engine.step():
        pass
    assert [one.ids for one in made] == [undisturbed[number][0] for number in short]
    assert len(calls) > 2
    nothing_is_left(batch.engine)


def test_a_batch_that_is_too_large_again_and_again_gets_smaller(parts, undisturbed, monkeypatch):
    """As where memory does for four rows and not for eight: those that came last end, and the log is not filled."""
    batch = Batch(parts)
    raising(monkeypatch, core, "decode_step", lambda model, tokens, *_: len(tokens) > 4, MemoryError())
    made = batch.engine.submit(batch.requests)
    while batch.engine.step():
        pass
    reasons = [one.finish_reason for one in made]
    assert reasons.count("error") >= 1
    assert reasons.count("length") >= 8
    for number, one in enumerate(made):
        if one.finish_reason == "length":
            assert one.ids == undisturbed[number][0]
        else:
            assert "again and again" in one.error
    nothing_is_left(batch.engine)


@pytest.mark.parametrize("when", ["a prompt is read", "a row grows"])
def test_a_cache_that_cannot_even_be_kept_ends_who_runs(parts, undisturbed, monkeypatch, when):
    """Memory runs out while it grows, and for its old size as well: nobody goes on without what it has read."""
    batch = Batch(parts)
    short = [number for number in range(CLIENTS) if number != CULPRIT]
    requests = [batch.requests[number] for number in short[:3]]
    if when == "a row grows":
        requests.append(Request(batch.requests[1].prompt_ids, sampling=greedy(200)))
    made = batch.engine.submit(requests)
    batch.engine.step()
    with monkeypatch.context() as patch:
        memory_while_growing(batch, patch, MemoryError("none left"))
        raising(patch, torch.Tensor, "clone", lambda tensor: tensor.dim() == 4, MemoryError("none at all"))
        late = batch.engine.submit([batch.culprit] if when == "a prompt is read" else [])
        while batch.engine.running:
            batch.engine.step()
    ended = made[3:] if when == "a row grows" else [*made, *late]
    assert [one.finish_reason for one in ended] == ["error"] * len(ended)
    assert all("was lost" in one.error for one in ended)
    nothing_is_left(batch.engine)
    again = batch.engine.submit([batch.requests[number] for number in short])
    while batch.engine.step():
        pass
    assert [one.ids for one in again] == [undisturbed[number][0] for number in short]


def test_a_fault_in_the_engine_itself_ends_who_runs_and_no_more(parts, undisturbed, monkeypatch):
    """Nobody can be blamed for this one: whoever runs is told, whoever waits is answered."""
    batch = Batch(parts, max_rows=4)
    worker = EngineWorker(batch.engine)
    made = batch.engine.submit(batch.requests)
    calls = []
    sixth = lambda gone: calls.append(1) or len(calls) == 6  # noqa: E731
    raising(monkeypatch, batch.engine.scheduler, "_let_go", sixth, BaseException("odd"))
    worker.start()
    assert all(one.wait(60) for one in made)
    reasons = [one.finish_reason for one in made]
    assert 1 <= reasons.count("error") <= 4
    assert all(one.ids == undisturbed[number][0] for number, one in enumerate(made) if one.finish_reason == "length")
    assert worker.drain(30)
    nothing_is_left(batch.engine)
    assert worker.alive
    worker.stop()


def test_a_head_that_cannot_be_copied_is_used_as_it_is(parts, undisturbed, monkeypatch):
    """No memory for what only makes it faster: nobody's answer depends on that."""
    from ptuning.kernels import screening

    monkeypatch.setattr(screening, "fits", lambda weight: True)
    raising(monkeypatch, screening, "ScreenedWeight", lambda weight: True, MemoryError())
    batch = Batch(parts)
    (made,) = batch.engine.run([batch.requests[0]])
    assert made.ids == undisturbed[0][0]


def test_an_answer_that_is_no_text_is_an_error_of_its_reader(parts, monkeypatch):
    batch = Batch(parts)
    (made,) = batch.engine.run([batch.requests[1]])
    monkeypatch.setattr(batch.tokenizer, "decode", lambda ids: 1 / 0)
    with pytest.raises(GenerationError, match="cannot make a text of the answer: division by zero"):
        _ = made.text


def test_no_thread_no_engine(parts, monkeypatch):
    """The thread cannot be started: what waits already is told, and nobody waits afterwards."""
    batch = Batch(parts)
    made = batch.engine.submit(batch.requests[:2])
    worker = EngineWorker(batch.engine)
    raising(monkeypatch, worker._thread, "start", lambda: True, RuntimeError("can't start new thread"))
    with pytest.raises(RuntimeError, match="new thread"):
        worker.start()
    assert [one.error for one in made] == ["the engine could not be started"] * 2
    assert batch.engine.between_steps(lambda: 1) == 1
    assert batch.engine.submit(batch.requests[:1])[0].finish_reason == "error"


def test_admission_that_fails_outside_of_the_reading_leaves_the_running_rows_alone(parts, undisturbed, monkeypatch):
    batch = Batch(parts)
    first = batch.engine.submit(batch.requests[:3])
    batch.engine.step()
    late = batch.engine.submit(batch.requests[3:5])
    with monkeypatch.context() as patch:
        raising(patch, batch.engine.scheduler, "_join", lambda *_: True, ValueError("odd"))
        batch.engine.step()
    assert [one.finish_reason for one in late] == ["error", "error"]
    while batch.engine.step():
        pass
    assert [one.ids for one in first] == [ids for ids, _, _ in undisturbed[:3]]
    nothing_is_left(batch.engine)


def test_a_listener_may_use_the_engine(parts):
    """It asks again, unloads a prefix, cancels; what it must not do is an error of its own, and no standstill."""
    batch = Batch(parts)
    worker = EngineWorker(batch.engine).start()
    more, odd = [], []

    def listen(generation, piece):
        if generation.finish_reason is not None:
            more.extend(batch.engine.submit([batch.requests[1]]))
            batch.engine.remove_prefix(batch.prefixes[2])
            try:
                batch.engine.step()
            except RuntimeError as error:
                odd.append(str(error))

    (made,) = batch.engine.submit([batch.requests[2]], listen)
    assert made.wait(60)
    assert worker.drain(30)
    assert more[0].finish_reason == "length"
    assert odd == ["a listener cannot take a step: it is called within one"]
    with pytest.raises(UserError, match="unloaded"):
        batch.engine.submit([Request(batch.requests[0].prompt_ids, batch.prefixes[2])])
    worker.stop()


# ---- many threads


@contextmanager
def threads_of(count, work):
    """Threads that all end, and whose failures are seen."""
    failures = []

    def run(number):
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # told below
            failures.append(error)

    threads = [Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert not failures, failures


@pytest.fixture
def hasty():
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_request_that_comes_while_those_that_wait_are_looked_through(parts):
    """The other thread comes in between whenever it can: as late as it likes, but nothing breaks."""
    model, tokenizer = parts
    engine = Engine(model, tokenizer, max_rows=1)
    request = Request(prompt_ids(tokenizer, "你好"), sampling=greedy(2))
    made, comers = engine.submit([request] * 3), []

    class Looked(Generation):
        """Somebody submits at the moment in which it is asked whether it was cancelled."""

        @property
        def cancelled(self):
            comers.append(Thread(target=lambda: made.extend(engine.submit([request]))))
            comers[-1].start()
            comers[-1].join(0.1)
            return False

        @cancelled.setter
        def cancelled(self, value):
            pass

    made[1].__class__ = Looked
    for _ in range(2):
        engine.step()
    made[1].__class__ = Generation
    for comer in comers:
        comer.join(30)
    while engine.step():
        pass
    assert comers
    assert [one.finish_reason for one in made] == ["length"] * len(made)
    assert engine.counters.finished["error"] == 0


@pytest.mark.parametrize("driver", ["worker", "by hand"])
def test_threads_submit_and_cancel_while_another_steps(parts, hasty, driver):
    """Requests join, are cancelled at any time, and prefixes come and go: everything ends, and nothing is left."""
    model, tokenizer = parts
    engine = Engine(model, tokenizer, max_rows=4, max_waiting=5000)
    encoder = random_encoder(model.config, 3, 1)(model.dtype)
    ids = [prompt_ids(tokenizer, text) for text in ("你好", "今天", "a b c")]
    made, over = [], threading.Event()

    def with_prefixes(number):
        for turn in range(12):
            prefix = engine.add_prefix(f"{number}.{turn}", encoder)
            found = engine.submit([Request(ids[turn % 3], prefix, greedy(1 + turn % 4))] * (1 + turn % 3))
            made.extend(found)
            if turn % 4 == 3:
                engine.cancel_all()
            engine.remove_prefix(prefix)

    def many(number):
        for turn in range(150):
            found = engine.submit([Request(ids[(turn + place) % 3], None, greedy(2)) for place in range(1 + turn % 3)])
            made.extend(found)
            for generation in found[turn % 2 :] if turn % 10 == 0 else ():
                generation.cancel()

    def steps():
        while not (over.is_set() and engine.idle):
            engine.step()

    worker = EngineWorker(engine)
    stepping = Thread(target=steps)
    if driver == "worker":
        worker.start()
    else:
        stepping.start()
    with threads_of(6, lambda number: (with_prefixes if number < 2 else many)(number)):
        pass
    engine.cancel_all()
    over.set()
    if driver == "worker":
        assert worker.drain(60)
        assert worker.alive
        worker.stop()
    else:
        stepping.join(60)
        assert not stepping.is_alive()
    assert len(made) > 500
    assert all(one.wait(1) for one in made)
    assert {one.finish_reason for one in made} <= {"stop", "length", "cancelled", "error"}
    assert {one.error for one in made if one.error and "unloaded" not in one.error} == set()
    nothing_is_left(engine)
    assert not engine.runner.prefix_pool.by_length


def test_nobody_waits_for_an_engine_that_stops(parts):
    """Requests and actions that come before, while and after the thread ends."""
    model, tokenizer = parts
    ids = prompt_ids(tokenizer, "你好")
    encoder = random_encoder(model.config, 3, 1)(model.dtype)
    for turn in range(12):
        engine = Engine(model, tokenizer, max_rows=2)
        worker = EngineWorker(engine).start()
        ready, made = threading.Barrier(4), []

        def work(number, engine=engine, ready=ready, made=made):
            ready.wait()
            for _ in range(4):
                if number == 0:
                    engine.remove_prefix(engine.add_prefix("p", encoder))
                else:
                    made.extend(engine.submit([Request(ids, sampling=greedy(3), stream=True)]))

        with threads_of(3, work):
            ready.wait()
            for _ in range(turn):
                engine.between_steps(lambda: None)
            worker.stop()
        assert not worker.alive
        assert all(one.wait(10) for one in made)
        assert engine.idle
        nothing_is_left(engine)
    (late,) = engine.submit([Request(ids, stream=True)])
    assert late.finish_reason == "error"
    with pytest.raises(GenerationError, match="the engine was stopped"):
        list(late.pieces())
    assert engine.between_steps(lambda: 7) == 7
    EngineWorker(engine).start().stop()


def test_a_thread_that_dies_leaves_nobody_waiting(parts, monkeypatch):
    """It never should; if it does, whoever waits is told, and what comes after is refused."""
    model, tokenizer = parts
    engine = Engine(model, tokenizer, max_rows=2)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    made = engine.submit([Request(prompt_ids(tokenizer, "你好"), sampling=greedy(5))] * 4)
    original, calls = engine.fail_all, []
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)

    def fail_all(error):
        calls.append(error)
        if len(calls) == 1:
            raise RuntimeError("worse")
        original(error)

    monkeypatch.setattr(engine, "fail_all", fail_all)
    worker = EngineWorker(engine).start()
    assert all(one.wait(30) for one in made)
    assert {one.error for one in made} == {"the engine stopped"}
    worker._thread.join(30)
    assert not worker.alive
    assert engine.submit([Request(prompt_ids(tokenizer, "你好"))])[0].finish_reason == "error"


def test_a_request_that_is_cancelled_while_others_are_dropped_ends_as_well(parts):
    """Stop is pressed just after the engine looked at it: it leaves with the next step, and is not lost between."""

    class Late(Generation):
        looks = 0

        @property
        def cancelled(self):
            Late.looks += 1
            return Late.looks > 1

        @cancelled.setter
        def cancelled(self, value):
            pass

    model, tokenizer = parts
    engine = Engine(model, tokenizer, max_rows=1)
    first, late, last = engine.submit([Request(prompt_ids(tokenizer, "你好"), sampling=greedy(4))] * 3)
    late.__class__ = Late
    first.cancel()
    while engine.step():
        pass
    assert late.wait(0)
    assert [one.finish_reason for one in (first, late, last)] == ["cancelled", "cancelled", "length"]
