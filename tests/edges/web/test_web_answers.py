"""Questions of the page and their answers, over a real model: streaming, stop, retry, side by side, and what goes wrong."""

import asyncio
import math
import time

import pytest
from prefixes import save_random_prefix

import ptuning
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.web import answers as answers_module
from ptuning.edges.web.answers import AnswerOptions, Answers
from ptuning.edges.web.sessions import PageSession
from ptuning.engine.engine import Engine
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import ChatService, Question
from ptuning.serving.prefix_store import PrefixStore

BASE = "tiny-chatglm"


def greedy(*names, tokens=12, **more):
    return AnswerOptions(names or (BASE,), {"temperature": 0, "max_new_tokens": tokens}, **more)


def endless(*names):
    """What stands there already is preferred: <eop> never comes."""
    return AnswerOptions(names or (BASE,), {"temperature": 0, "repetition_penalty": 0.3})


@pytest.fixture(scope="module")
def parts():
    return ptuning.load_model(BASE, device="cpu"), ptuning.load_tokenizer(BASE)


@pytest.fixture(scope="module")
def service(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefixes")
    engine = Engine(*parts, max_rows=2, max_waiting=2, max_length=400)
    store = PrefixStore(engine, BASE)
    store.load("one", save_random_prefix(folder / "one", parts[0].config, 24, 1, base_model=BASE))
    store.load("single", save_random_prefix(folder / "single", parts[0].config, 4, 2, base_model=BASE, history=False))
    running = ChatService(engine, store).start()
    yield running
    running.stop()


@pytest.fixture
def answers(service, monkeypatch):
    monkeypatch.setattr(answers_module, "REFRESH_SECONDS", 0.001)
    return Answers(service, Metrics(service))


@pytest.fixture
def chat(parts):
    """What ``model.chat`` answers, greedily."""

    def ask(query, history=(), tokens=12):
        return parts[0].chat(parts[1], query, list(history), max_new_tokens=tokens, do_sample=False)[0]

    return ask


def follow(steps, look=lambda: None):
    """Run to the end; what ``look`` saw at each step."""

    async def run():
        return [look() async for _ in steps]

    return asyncio.run(run())


def notes_of(session, column=0):
    return [name for name, _ in session.columns[column].notes]


def wait_until_idle(service, seconds=10):
    end = time.monotonic() + seconds
    while not service.engine.idle:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_answer_grows_and_is_that_of_model_chat(answers, chat):
    session = PageSession()
    seen = follow(answers.send(session, " 今天天气怎么样？\n", greedy(tokens=30)), lambda: session.columns[0].shown()[-1][1])
    answer = chat("今天天气怎么样？", tokens=30)
    assert session.columns[0].rounds == [("今天天气怎么样？", answer)]
    assert len(set(seen)) > 2
    assert all(answer.startswith(text) for text in seen)
    assert session.run is None
    assert {"by"} < set(notes_of(session))


def test_the_second_question_has_the_first_round_before_it(answers, chat):
    session = PageSession()
    follow(answers.send(session, "你好", greedy()))
    follow(answers.send(session, "你是谁", greedy()))
    first = chat("你好")
    assert session.columns[0].rounds == [("你好", first), ("你是谁", chat("你是谁", [("你好", first)]))]


@pytest.mark.parametrize(("name", "history", "without_history"), [
    ("single", "tuned", True), ("one", "tuned", False), (BASE, "never", True), ("single", "always", False),
])  # fmt: skip
def test_history_is_used_as_wished_or_as_the_prefix_was_tuned(answers, service, monkeypatch, name, history, without_history):
    session = PageSession()
    session.columns[0].rounds = [("甲", "乙"), ("没有回答", "")]
    asked = []
    monkeypatch.setattr(service, "ask", lambda question, listener: asked.append(question) or type(service).ask(
        service, question, listener))  # fmt: skip
    follow(answers.send(session, "丙", greedy(name, tokens=2, history=history)))
    assert list(asked[0].history) == ([] if without_history else [("甲", "乙")])
    assert ("without_history" in notes_of(session)) is without_history
    assert asked[0].model == name


@pytest.mark.parametrize("query", ["", "  \n ", None])
def test_an_empty_question_does_nothing(answers, query):
    session = PageSession()
    assert follow(answers.send(session, query or "", greedy())) == []
    assert session.columns[0].shown() == []


def test_a_question_while_another_is_answered_does_nothing(answers):
    session = PageSession()

    async def both():
        first = answers.send(session, "你好", endless())
        await anext(first)
        second = [None async for _ in answers.send(session, "你好", greedy())]
        again = [None async for _ in answers.retry(session, greedy())]
        await first.aclose()
        return second, again

    assert asyncio.run(both()) == ([], [])


def test_stop_frees_the_row_within_a_step_and_keeps_what_there_is(answers, service):
    session = PageSession()
    steps = []

    def look():
        if len(session.columns[0].shown()[-1][1]) > 4 and session.run is not None and not session.run.stopped:
            steps.append(service.engine.counters.steps)
            session.stop()

    follow(answers.send(session, "你好", endless()), look)
    wait_until_idle(service)
    assert service.engine.counters.steps - steps[0] <= 2
    query, text = session.columns[0].rounds[0]
    assert query == "你好"
    assert text
    assert "stopped" in notes_of(session)


def test_a_stop_before_the_first_token_gives_the_question_back(answers, service):
    session = PageSession()
    seen = follow(answers.send(session, "你好", endless()), session.stop)
    wait_until_idle(service)
    assert seen
    if not session.columns[0].rounds:  # the engine may have been faster
        assert session.returned == "你好"


@pytest.mark.parametrize("steps", [1, 3])
def test_closing_the_page_stops_the_engine(answers, service, steps):
    session = PageSession()

    async def leave():
        answer = answers.send(session, "你好", endless(BASE, "one"))
        for _ in range(steps):
            await anext(answer)
        await answer.aclose()

    asyncio.run(leave())
    wait_until_idle(service)
    assert session.run is None


def test_clear_while_an_answer_runs_empties_and_nothing_comes_back(answers, service):
    session = PageSession()

    def look():
        if session.run is not None and session.columns[0].shown()[-1][1]:
            session.clear()

    follow(answers.send(session, "你好", endless()), look)
    wait_until_idle(service)
    assert session.columns[0].shown() == []
    assert session.run is None
    follow(answers.send(session, "你好", greedy(tokens=3)))
    assert len(session.columns[0].rounds) == 1


def test_retry_replaces_the_last_answer(answers, chat):
    session = PageSession()
    follow(answers.retry(session, greedy()))
    assert session.columns[0].rounds == []
    follow(answers.send(session, "你好", greedy()))
    follow(answers.send(session, "你是谁", greedy("one")))
    follow(answers.retry(session, greedy()))
    first = chat("你好")
    assert session.columns[0].rounds == [("你好", first), ("你是谁", chat("你是谁", [("你好", first)]))]


def test_a_retry_that_fails_leaves_the_old_answer(answers):
    session = PageSession()
    follow(answers.send(session, "你好", greedy()))
    before = list(session.columns[0].rounds)
    follow(answers.retry(session, greedy(max_length=0)))
    assert session.columns[0].rounds == before
    assert session.error == ("no_room", (0,))
    assert session.returned is None


def test_side_by_side_both_answer_the_same_question_in_one_batch(answers, service, chat):
    session = PageSession()
    follow(answers.send(session, "你好", greedy()))
    both_grew, running = [], []

    def look():
        running.append(len(service.engine.running))
        both_grew.append(all(column.query and column.shown()[-1][1] for column in session.columns))

    follow(answers.send(session, "1+1=?", greedy(BASE, "one", tokens=40)), look)
    first = ("你好", chat("你好"))
    left, right = (column.rounds for column in session.columns)
    assert left == [first, ("1+1=?", chat("1+1=?", [first], tokens=40))]
    alone = service.ask(Question("1+1=?", [first], "one", SamplingParams(temperature=0, max_new_tokens=40))).generations[0]
    assert alone.wait(20)
    assert right == [first, ("1+1=?", alone.text)]  # what was said before side by side was switched on is there as well
    assert right != left
    assert max(running) == 2
    assert any(both_grew)
    follow(answers.send(session, "再来", greedy(BASE, tokens=3)))
    assert (len(session.columns[0].rounds), len(session.columns[1].rounds)) == (3, 2)
    assert not session.comparing


@pytest.mark.parametrize(("options", "query", "error"), [
    (greedy(max_length=0), "你好", "no_room"),
    (greedy(max_length=1), "你好", "no_room"),
    (greedy(), "长" * 3000, "too_long"),
    (greedy("nobody"), "你好", "unknown"),
    (greedy(BASE, "nobody"), "你好", "unknown"),
    (AnswerOptions((BASE,), {"top_p": 0}), "你好", "error"),
    (AnswerOptions((BASE,), {"temperature": -1}), "你好", "error"),
    (greedy(tokens=-5), "你好", "error"),
])  # fmt: skip
def test_what_cannot_be_answered_is_said_and_the_question_goes_back(answers, service, options, query, error):
    session = PageSession()
    follow(answers.send(session, query, options))
    assert session.error[0] == error
    assert session.returned == query
    assert session.columns[0].shown() == []
    assert session.run is None
    wait_until_idle(service)
    follow(answers.send(session, "你好", greedy(tokens=2)))
    assert session.error is None
    assert len(session.columns[0].rounds) == 1


def test_a_full_queue_is_said_and_recovers(answers, service):
    async def crowd():
        sessions = [PageSession() for _ in range(5)]
        steps = [answers.send(session, "你好", endless()) for session in sessions]
        for one in steps:
            await anext(one)
            await asyncio.wait_for(anext(one), 10) if one is steps[0] else None
        tasks = [asyncio.create_task(_all(one)) for one in steps]
        while not any(session.error for session in sessions):
            await asyncio.sleep(0.01)
        for session in sessions:
            session.stop()
        await asyncio.gather(*tasks)
        return [session.error for session in sessions]

    errors = asyncio.run(crowd())
    assert ("busy", ()) in errors
    assert None in errors
    wait_until_idle(service)


async def _all(steps):
    async for _ in steps:
        pass


def test_rounds_that_do_not_fit_are_left_out_and_it_is_said(answers):
    session = PageSession()
    session.columns[0].rounds = [(f"问题{number}", "回答。" * 10) for number in range(30)]
    follow(answers.send(session, "最后？", greedy(tokens=5)))
    dropped = dict(session.columns[0].notes)["dropped"][0]
    assert 0 < dropped < 30
    assert len(session.columns[0].rounds) == 31
    assert "truncated" in notes_of(session)


def test_a_model_that_breaks_is_said(answers, service, monkeypatch):
    """Scores that are no numbers: the round is forgotten, the question goes back."""
    forward = service.engine.model.lm_head.forward
    monkeypatch.setattr(service.engine.model.lm_head, "forward", lambda *given: forward(*given) * math.nan)
    session = PageSession()
    follow(answers.send(session, "你好", greedy()))
    assert notes_of(session) == ["failed"]
    assert session.columns[0].rounds == []
    assert session.returned == "你好"
    monkeypatch.undo()
    wait_until_idle(service)


def test_two_visits_do_not_mix(answers, chat):
    one, two = PageSession(), PageSession()

    async def both():
        await asyncio.gather(_all(answers.send(one, "你好", greedy())), _all(answers.send(two, "你是谁", greedy())))

    asyncio.run(both())
    assert one.columns[0].rounds == [("你好", chat("你好"))]
    assert two.columns[0].rounds == [("你是谁", chat("你是谁"))]


def test_half_characters_do_no_harm(answers):
    session = PageSession()
    follow(answers.send(session, "a\ud800", greedy(tokens=2)))
    assert session.columns[0].rounds[0][0] == "a\ufffd"


def test_a_question_of_more_characters_than_fit_is_not_even_looked_into(answers, service, monkeypatch):
    session = PageSession()
    limit = answers.max_characters
    assert limit == 16 * service.engine.max_length
    monkeypatch.setattr(answers_module, "whole_characters", None)  # not called: nothing of its size is done with it
    steps = follow(answers.send(session, "长" * (limit + 1), greedy()), lambda: session.run)
    assert steps == [None]
    assert session.error == ("too_many_characters", (limit,))
    assert (session.columns[0].rounds, session.returned) == ([], None)


def test_rounds_that_are_no_longer_kept_are_told(answers, monkeypatch):
    monkeypatch.setattr("ptuning.edges.web.sessions.MAX_ROUNDS", 2)
    session = PageSession()
    for number in range(4):
        follow(answers.send(session, f"{number}", greedy(tokens=2)))
        assert ("forgotten" in notes_of(session)) == (number >= 2)
    assert [query for query, _ in session.columns[0].rounds] == ["2", "3"]


@pytest.mark.parametrize(("name", "value"), [("top_k", 50.0), ("seed", 3.0), ("max_new_tokens", 2.0)])
def test_whole_numbers_may_come_as_json_has_them(answers, name, value):
    session = PageSession()
    follow(answers.send(session, "你好", AnswerOptions((BASE,), {"max_new_tokens": 2} | {name: value}, max_length=200.0)))
    assert session.error is None
    assert len(session.columns[0].rounds) == 1
