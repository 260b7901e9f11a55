"""What the server remembers of open pages, and for how long."""

from ptuning.edges.web import visits as visits_module
from ptuning.edges.web.visits import Run, Visit, Visits


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
    monkeypatch.setattr(visits_module, "MOST_VISITS", 3)
    visits = Visits()
    first = visits.of("0")
    first.run = Run("q")
    for number in range(1, 6):
        visits.of(str(number))
    assert len(visits) == 3
    assert first.run.stopped


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
