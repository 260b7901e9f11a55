"""What the server remembers of open pages, and for how long."""

from ptuning.edges.web import visits as visits_module
from ptuning.edges.web.visits import MAX_CHARACTERS, MAX_ROUNDS, Run, Visit, Visits


class Asked:
    """Counts how often it is cancelled."""

    def __init__(self):
        self.cancelled = 0

    def cancel(self):
        self.cancelled += 1


def test_every_session_has_its_own_visit():
    visits = Visits()
    assert visits.of("a") is visits.of("a")
    assert visits.of("a") is not visits.of("b")
    assert visits.of(None) is not visits.of(None)
    assert len(visits) == 2


def test_leaving_stops_the_answer_and_the_visit_stays_for_a_while(monkeypatch):
    visits = Visits()
    visit, asked = visits.of("a"), Asked()
    visit.run = Run("q")
    visit.run.take(asked)
    visits.leave("a")
    visits.leave("nobody")
    visits.leave(None)
    assert asked.cancelled == 1
    visits.of("b")
    assert visits.of("a") is visit
    visits.leave("a")
    monkeypatch.setattr(visits_module, "KEPT_SECONDS", -1.0)
    visits.of("b")
    assert len(visits) == 1
    assert visits.of("a") is not visit


def test_there_are_never_too_many(monkeypatch):
    monkeypatch.setattr(visits_module, "MAX_VISITS", 3)
    visits = Visits()
    first = visits.of("0")
    first.run = Run("q")
    for number in range(1, 6):
        visits.of(str(number)).run = Run("q")
    assert len(visits) == 3
    assert first.run.stopped


def test_whoever_opens_many_ends_nobodys_answer(monkeypatch):
    monkeypatch.setattr(visits_module, "MAX_VISITS", 10)
    visits = Visits()
    answered, talked = visits.of("answered"), visits.of("talked")
    answered.run = Run("q")
    talked.columns[0].rounds = [("a", "b")]
    for number in range(50):
        visits.of(f"nothing {number}")
        visits.of(f"language {number}").language = "en"
    assert len(visits) == 10
    assert not answered.run.stopped
    assert visits.of("answered") is answered
    assert visits.of("talked") is talked
    for number in range(50):
        visits.of(f"another {number}").columns[0].rounds = [("a", "b")]
    assert visits.of("answered") is answered
    assert visits.of("talked") is not talked


def test_a_conversation_has_bounds():
    column = Visit().columns[0]
    gone = [column.add("q", str(number)) for number in range(MAX_ROUNDS + 3)]
    assert sum(gone) == 3
    assert len(column.rounds) == MAX_ROUNDS
    assert column.rounds[0] == ("q", "3")
    assert column.add("q", "长" * (MAX_CHARACTERS - 100)) == MAX_ROUNDS - 24  # 99 characters are left for rounds of 4
    assert sum(len(query) + len(reply) for query, reply in column.rounds) <= MAX_CHARACTERS
    assert column.add("long", "长" * (2 * MAX_CHARACTERS)) == 25
    assert [query for query, _ in column.rounds] == ["long"]  # what was just said is always there


def test_a_stop_before_the_engine_has_the_question_holds():
    run, asked = Run("q"), Asked()
    run.stop()
    run.take(asked)
    assert asked.cancelled == 1


def test_side_by_side_begins_with_what_was_said():
    visit = Visit()
    visit.columns[0].rounds = [("a", "b")]
    visit.compare(True)
    visit.columns[1].rounds = [*visit.columns[1].rounds, ("c", "d")]
    visit.compare(True)
    assert visit.columns[1].rounds == [("a", "b"), ("c", "d")]
    assert visit.columns[0].rounds == [("a", "b")]
    visit.compare(False)
    visit.compare(True)
    assert visit.columns[1].rounds == [("a", "b")]
