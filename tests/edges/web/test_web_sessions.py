"""What the server remembers of open pages, and for how long."""

from ptuning.edges.web import sessions as sessions_module
from ptuning.edges.web.sessions import MAX_CHARACTERS, MAX_ROUNDS, PageSession, Run, SessionStore


class Asked:
    """Counts how often it is cancelled."""

    def __init__(self):
        self.cancelled = 0

    def cancel(self):
        self.cancelled += 1


def test_every_session_has_its_own_visit():
    sessions = SessionStore()
    assert sessions.get("a") is sessions.get("a")
    assert sessions.get("a") is not sessions.get("b")
    assert sessions.get(None) is not sessions.get(None)
    assert len(sessions) == 2


def test_leaving_stops_the_answer_and_the_visit_stays_for_a_while(monkeypatch):
    sessions = SessionStore()
    session, asked = sessions.get("a"), Asked()
    session.run = Run("q")
    session.run.add(asked)
    sessions.leave("a")
    sessions.leave("nobody")
    sessions.leave(None)
    assert asked.cancelled == 1
    sessions.get("b")
    assert sessions.get("a") is session
    sessions.leave("a")
    monkeypatch.setattr(sessions_module, "KEPT_SECONDS", -1.0)
    sessions.get("b")
    assert len(sessions) == 1
    assert sessions.get("a") is not session


def test_there_are_never_too_many(monkeypatch):
    monkeypatch.setattr(sessions_module, "MAX_PAGE_SESSIONS", 3)
    sessions = SessionStore()
    first = sessions.get("0")
    first.run = Run("q")
    for number in range(1, 6):
        sessions.get(str(number)).run = Run("q")
    assert len(sessions) == 3
    assert first.run.stopped


def test_whoever_opens_many_ends_nobodys_answer(monkeypatch):
    monkeypatch.setattr(sessions_module, "MAX_PAGE_SESSIONS", 10)
    sessions = SessionStore()
    answered, talked = sessions.get("answered"), sessions.get("talked")
    answered.run = Run("q")
    talked.columns[0].rounds = [("a", "b")]
    for number in range(50):
        sessions.get(f"nothing {number}")
        sessions.get(f"language {number}").language = "en"
    assert len(sessions) == 10
    assert not answered.run.stopped
    assert sessions.get("answered") is answered
    assert sessions.get("talked") is talked
    for number in range(50):
        sessions.get(f"another {number}").columns[0].rounds = [("a", "b")]
    assert sessions.get("answered") is answered
    assert sessions.get("talked") is not talked


def test_a_conversation_has_bounds():
    column = PageSession().columns[0]
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
    run.add(asked)
    assert asked.cancelled == 1


def test_side_by_side_begins_with_what_was_said():
    session = PageSession()
    session.columns[0].rounds = [("a", "b")]
    session.compare(True)
    session.columns[1].rounds = [*session.columns[1].rounds, ("c", "d")]
    session.compare(True)
    assert session.columns[1].rounds == [("a", "b"), ("c", "d")]
    assert session.columns[0].rounds == [("a", "b")]
    session.compare(False)
    session.compare(True)
    assert session.columns[1].rounds == [("a", "b")]
