"""Questions of the page and their answers, over a real model: streaming, stop, retry, side by side, and what goes wrong."""

import asyncio
import math
import time

import pytest
from prefixes import save_random_prefix

import ptuning
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.web import answers as answers_module
from ptuning.edges.web.answers import Answers, Wishes
from ptuning.edges.web.visits import Visit
from ptuning.engine.engine import Engine
from ptuning.engine.sampling_params import SamplingParams
from ptuning.serving.chat_service import ChatService, Question
from ptuning.serving.prefix_store import PrefixStore

BASE = "tiny-chatglm"


def greedy(*names, tokens=12, **more):
    return Wishes(names or (BASE,), {"temperature": 0, "max_new_tokens": tokens}, **more)


def endless(*names):
    """What stands there already is preferred: <eop> never comes."""
    return Wishes(names or (BASE,), {"temperature": 0, "repetition_penalty": 0.3})


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
def made(service, monkeypatch):
    monkeypatch.setattr(answers_module, "PAUSE", 0.001)
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


def notes_of(visit, column=0):
    return [name for name, _ in visit.columns[column].notes]


def wait_until_idle(service, seconds=10):
    end = time.monotonic() + seconds
    while not service.engine.idle:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_answer_grows_and_is_that_of_model_chat(made, chat):
    visit = Visit()
    seen = follow(made.send(visit, " 今天天气怎么样？\n", greedy(tokens=30)), lambda: visit.columns[0].shown()[-1][1])
    answer = chat("今天天气怎么样？", tokens=30)
    assert visit.columns[0].rounds == [("今天天气怎么样？", answer)]
    assert len(set(seen)) > 2
    assert all(answer.startswith(text) for text in seen)
    assert visit.run is None
    assert {"by"} < set(notes_of(visit))


def test_the_second_question_has_the_first_round_before_it(made, chat):
    visit = Visit()
    follow(made.send(visit, "你好", greedy()))
    follow(made.send(visit, "你是谁", greedy()))
    first = chat("你好")
    assert visit.columns[0].rounds == [("你好", first), ("你是谁", chat("你是谁", [("你好", first)]))]


@pytest.mark.parametrize(("name", "history", "alone"), [
    ("single", "tuned", True), ("one", "tuned", False), (BASE, "never", True), ("single", "always", False),
])  # fmt: skip
def test_history_is_used_as_wished_or_as_the_prefix_was_tuned(made, service, monkeypatch, name, history, alone):
    visit = Visit()
    visit.columns[0].rounds = [("甲", "乙"), ("没有回答", "")]
    asked = []
    monkeypatch.setattr(service, "ask", lambda question, listener: asked.append(question) or type(service).ask(
        service, question, listener))  # fmt: skip
    follow(made.send(visit, "丙", greedy(name, tokens=2, history=history)))
    assert list(asked[0].history) == ([] if alone else [("甲", "乙")])
    assert ("alone" in notes_of(visit)) is alone
    assert asked[0].model == name


@pytest.mark.parametrize("query", ["", "  \n ", None])
def test_an_empty_question_does_nothing(made, query):
    visit = Visit()
    assert follow(made.send(visit, query or "", greedy())) == []
    assert visit.columns[0].shown() == []


def test_a_question_while_another_is_answered_does_nothing(made):
    visit = Visit()

    async def both():
        first = made.send(visit, "你好", endless())
        await anext(first)
        second = [None async for _ in made.send(visit, "你好", greedy())]
        again = [None async for _ in made.retry(visit, greedy())]
        await first.aclose()
        return second, again

    assert asyncio.run(both()) == ([], [])


def test_stop_frees_the_row_within_a_step_and_keeps_what_there_is(made, service):
    visit = Visit()
    steps = []

    def look():
        if len(visit.columns[0].shown()[-1][1]) > 4 and visit.run is not None and not visit.run.stopped:
            steps.append(service.engine.counters.steps)
            visit.stop()

    follow(made.send(visit, "你好", endless()), look)
    wait_until_idle(service)
    assert service.engine.counters.steps - steps[0] <= 2
    query, text = visit.columns[0].rounds[0]
    assert query == "你好"
    assert text
    assert "stopped" in notes_of(visit)


def test_a_stop_before_the_first_token_gives_the_question_back(made, service):
    visit = Visit()
    seen = follow(made.send(visit, "你好", endless()), visit.stop)
    wait_until_idle(service)
    assert seen
    if not visit.columns[0].rounds:  # the engine may have been faster
        assert visit.returned == "你好"


@pytest.mark.parametrize("steps", [1, 3])
def test_closing_the_page_stops_the_engine(made, service, steps):
    visit = Visit()

    async def leave():
        answer = made.send(visit, "你好", endless(BASE, "one"))
        for _ in range(steps):
            await anext(answer)
        await answer.aclose()

    asyncio.run(leave())
    wait_until_idle(service)
    assert visit.run is None


def test_clear_while_an_answer_runs_empties_and_nothing_comes_back(made, service):
    visit = Visit()

    def look():
        if visit.run is not None and visit.columns[0].shown()[-1][1]:
            visit.clear()

    follow(made.send(visit, "你好", endless()), look)
    wait_until_idle(service)
    assert visit.columns[0].shown() == []
    assert visit.run is None
    follow(made.send(visit, "你好", greedy(tokens=3)))
    assert len(visit.columns[0].rounds) == 1


def test_retry_replaces_the_last_answer(made, chat):
    visit = Visit()
    follow(made.retry(visit, greedy()))
    assert visit.columns[0].rounds == []
    follow(made.send(visit, "你好", greedy()))
    follow(made.send(visit, "你是谁", greedy("one")))
    follow(made.retry(visit, greedy()))
    first = chat("你好")
    assert visit.columns[0].rounds == [("你好", first), ("你是谁", chat("你是谁", [("你好", first)]))]


def test_a_retry_that_fails_leaves_the_old_answer(made):
    visit = Visit()
    follow(made.send(visit, "你好", greedy()))
    before = list(visit.columns[0].rounds)
    follow(made.retry(visit, greedy(max_length=0)))
    assert visit.columns[0].rounds == before
    assert visit.error == ("no_room", (0,))
    assert visit.returned is None


def test_side_by_side_both_answer_the_same_question_in_one_batch(made, service, chat):
    visit = Visit()
    follow(made.send(visit, "你好", greedy()))
    both_grew, running = [], []

    def look():
        running.append(len(service.engine.running))
        both_grew.append(all(column.query and column.shown()[-1][1] for column in visit.columns))

    follow(made.send(visit, "1+1=?", greedy(BASE, "one", tokens=40)), look)
    first = ("你好", chat("你好"))
    left, right = (column.rounds for column in visit.columns)
    assert left == [first, ("1+1=?", chat("1+1=?", [first], tokens=40))]
    alone = service.ask(Question("1+1=?", [first], "one", SamplingParams(temperature=0, max_new_tokens=40))).generations[0]
    assert alone.wait(20)
    assert right == [first, ("1+1=?", alone.text)]  # what was said before side by side was switched on is there as well
    assert right != left
    assert max(running) == 2
    assert any(both_grew)
    follow(made.send(visit, "再来", greedy(BASE, tokens=3)))
    assert (len(visit.columns[0].rounds), len(visit.columns[1].rounds)) == (3, 2)
    assert not visit.comparing


@pytest.mark.parametrize(("wishes", "query", "error"), [
    (greedy(max_length=0), "你好", "no_room"),
    (greedy(max_length=1), "你好", "no_room"),
    (greedy(), "长" * 3000, "too_long"),
    (greedy("nobody"), "你好", "unknown"),
    (greedy(BASE, "nobody"), "你好", "unknown"),
    (Wishes((BASE,), {"top_p": 0}), "你好", "error"),
    (Wishes((BASE,), {"temperature": -1}), "你好", "error"),
    (greedy(tokens=-5), "你好", "error"),
])  # fmt: skip
def test_what_cannot_be_answered_is_said_and_the_question_goes_back(made, service, wishes, query, error):
    visit = Visit()
    follow(made.send(visit, query, wishes))
    assert visit.error[0] == error
    assert visit.returned == query
    assert visit.columns[0].shown() == []
    assert visit.run is None
    wait_until_idle(service)
    follow(made.send(visit, "你好", greedy(tokens=2)))
    assert visit.error is None
    assert len(visit.columns[0].rounds) == 1


def test_a_full_queue_is_said_and_recovers(made, service):
    async def crowd():
        visits = [Visit() for _ in range(5)]
        steps = [made.send(visit, "你好", endless()) for visit in visits]
        for one in steps:
            await anext(one)
            await asyncio.wait_for(anext(one), 10) if one is steps[0] else None
        tasks = [asyncio.create_task(_all(one)) for one in steps]
        while not any(visit.error for visit in visits):
            await asyncio.sleep(0.01)
        for visit in visits:
            visit.stop()
        await asyncio.gather(*tasks)
        return [visit.error for visit in visits]

    errors = asyncio.run(crowd())
    assert ("busy", ()) in errors
    assert None in errors
    wait_until_idle(service)


async def _all(steps):
    async for _ in steps:
        pass


def test_rounds_that_do_not_fit_are_left_out_and_it_is_said(made):
    visit = Visit()
    visit.columns[0].rounds = [(f"问题{number}", "回答。" * 10) for number in range(30)]
    follow(made.send(visit, "最后？", greedy(tokens=5)))
    dropped = dict(visit.columns[0].notes)["dropped"][0]
    assert 0 < dropped < 30
    assert len(visit.columns[0].rounds) == 31
    assert "cut" in notes_of(visit)


def test_a_model_that_breaks_is_said(made, service, monkeypatch):
    """Scores that are no numbers: the round is forgotten, the question goes back."""
    forward = service.engine.model.lm_head.forward
    monkeypatch.setattr(service.engine.model.lm_head, "forward", lambda *given: forward(*given) * math.nan)
    visit = Visit()
    follow(made.send(visit, "你好", greedy()))
    assert notes_of(visit) == ["failed"]
    assert visit.columns[0].rounds == []
    assert visit.returned == "你好"
    monkeypatch.undo()
    wait_until_idle(service)


def test_two_visits_do_not_mix(made, chat):
    one, two = Visit(), Visit()

    async def both():
        await asyncio.gather(_all(made.send(one, "你好", greedy())), _all(made.send(two, "你是谁", greedy())))

    asyncio.run(both())
    assert one.columns[0].rounds == [("你好", chat("你好"))]
    assert two.columns[0].rounds == [("你是谁", chat("你是谁"))]


def test_half_characters_do_no_harm(made):
    visit = Visit()
    follow(made.send(visit, "a\ud800", greedy(tokens=2)))
    assert visit.columns[0].rounds[0][0] == "a\ufffd"


def test_a_question_of_more_characters_than_fit_is_not_even_looked_into(made, service, monkeypatch):
    visit = Visit()
    most = made.max_characters
    assert most == 16 * service.engine.max_length
    monkeypatch.setattr(answers_module, "whole_characters", None)  # not called: nothing of its size is done with it
    steps = follow(made.send(visit, "长" * (most + 1), greedy()), lambda: visit.run)
    assert steps == [None]
    assert visit.error == ("too_many_characters", (most,))
    assert (visit.columns[0].rounds, visit.returned) == ([], None)


def test_rounds_that_are_no_longer_kept_are_told(made, monkeypatch):
    monkeypatch.setattr("ptuning.edges.web.visits.MAX_ROUNDS", 2)
    visit = Visit()
    for number in range(4):
        follow(made.send(visit, f"{number}", greedy(tokens=2)))
        assert ("forgotten" in notes_of(visit)) == (number >= 2)
    assert [query for query, _ in visit.columns[0].rounds] == ["2", "3"]


@pytest.mark.parametrize(("name", "value"), [("top_k", 50.0), ("seed", 3.0), ("max_new_tokens", 2.0)])
def test_whole_numbers_may_come_as_json_has_them(made, name, value):
    visit = Visit()
    follow(made.send(visit, "你好", Wishes((BASE,), {"max_new_tokens": 2} | {name: value}, max_length=200.0)))
    assert visit.error is None
    assert len(visit.columns[0].rounds) == 1
