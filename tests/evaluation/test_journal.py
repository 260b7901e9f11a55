"""The journal of answers: truncated at any byte it resumes; answers of other settings are never continued."""

import json
import logging

import pytest

from ptuning.core.errors import UserError
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.journal import PREVIOUS_FILE, SETTINGS_FILE, AnswerJournal

SETTINGS = {"generation": "greedy", "rows": 3, "prefix": "none"}
ANSWERS = [ScoredAnswer(n, f"参考{n}", f"答\u2028{n}\n", "问", [], f"a:{n}", "stop", n, {"bleu-4": n / 7}) for n in range(3)]


def journal(folder, **changes):
    start_over = changes.pop("start_over", False)
    return AnswerJournal(folder, SETTINGS | changes, 3, start_over=start_over)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def whole(tmp_path):
    with journal(tmp_path / "whole") as kept:
        kept.append(ANSWERS)
    return files(tmp_path / "whole")


def test_the_files_are_in_the_order_of_the_rows_however_answers_came(tmp_path, whole):
    with journal(tmp_path / "other") as kept:
        for number in (2, 0, 1):
            kept.append([ANSWERS[number]])
    assert files(tmp_path / "other") == whole
    lines = whole["generated_predictions.txt"].split(b"\n")[:-1]
    assert [json.loads(line)["labels"] for line in lines] == ["参考0", "参考1", "参考2"]


def test_an_answer_is_on_disk_as_soon_as_it_is_made(tmp_path):
    kept = journal(tmp_path)
    for count in (1, 2):
        kept.append([ANSWERS[count]])
        assert kept.path.read_bytes().count(b"\n") == count
    assert not (tmp_path / "generated_predictions.txt").exists()
    kept.close()


def test_cut_off_at_any_byte_it_goes_on(tmp_path, whole):
    """Every length that a kill can leave the file with, in the middle of a character too."""
    made = b"".join(ANSWERS[number].line().encode() for number in (2, 0, 1))
    for length in range(len(made) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "generated_predictions.jsonl").write_bytes(made[:length])
        (folder / SETTINGS_FILE).write_bytes(whole[SETTINGS_FILE])
        with journal(folder) as kept:
            assert len(kept.answers) == made[:length].count(b"\n")
            kept.append(answer for answer in ANSWERS if answer.index not in kept.answers)
        assert files(folder) == whole


def test_killed_a_second_time_nothing_more_is_lost(tmp_path):
    """What is written after a line that was cut in half stands on a line of its own."""
    first = journal(tmp_path)
    first.append(ANSWERS[:2])
    first.path.write_bytes(first.path.read_bytes()[:-5])
    journal(tmp_path).append(ANSWERS[2:])  # neither is closed: both were killed
    assert sorted(journal(tmp_path).answers) == [0, 2]


def test_a_finished_one_is_taken_over_whole(tmp_path):
    for _ in range(2):
        with journal(tmp_path) as kept:
            kept.append(answer for answer in ANSWERS if answer.index not in kept.answers)
    with journal(tmp_path) as kept:
        assert kept.answers == dict(enumerate(ANSWERS))


def test_a_damaged_line_is_answered_again(tmp_path, whole, caplog):
    with journal(tmp_path) as kept:
        kept.append(ANSWERS)
    kept.path.write_bytes(kept.path.read_bytes().replace(b'"index": 1', b'"index": ?'))
    with caplog.at_level(logging.WARNING), journal(tmp_path) as kept:
        assert sorted(kept.answers) == [0, 2]
        kept.append([ANSWERS[1]])
    assert "damaged line" in caplog.text
    assert files(tmp_path) == whole


def test_other_settings_are_named_and_start_anew(tmp_path, caplog):
    with journal(tmp_path) as kept:
        kept.append(ANSWERS)
    with caplog.at_level(logging.WARNING), journal(tmp_path, generation="published", prefix="a" * 16) as kept:
        assert not kept.answers
    assert f"(generation greedy → published, prefix none → {'a' * 16}); starting over" in caplog.text
    assert not (tmp_path / PREVIOUS_FILE).exists()  # it was finished: replaced, as the published script does


def test_an_unfinished_one_of_other_settings_is_put_aside(tmp_path, caplog):
    with journal(tmp_path) as kept:
        kept.append(ANSWERS[:2])
    before = kept.path.read_bytes()
    assert "2 of 3 rows are answered; the same command resumes from there" in caplog.text
    with journal(tmp_path, prefix="other") as kept:
        assert not kept.answers
    assert (tmp_path / PREVIOUS_FILE).read_bytes() == before


def test_a_file_of_another_tool_is_put_aside(tmp_path):
    (tmp_path / "generated_predictions.jsonl").write_text('{"prompt": "a", "predict": "b", "label": "c"}\n')
    with journal(tmp_path) as kept:
        assert not kept.answers
    assert '"label"' in (tmp_path / PREVIOUS_FILE).read_text()


def test_anew_leaves_nothing_of_before(tmp_path):
    for _ in range(2):
        with journal(tmp_path, start_over=True) as kept:
            assert not kept.answers
            kept.append(ANSWERS)


def test_an_interruption_leaves_what_there_is_in_the_published_form(tmp_path):
    def interrupted():
        with journal(tmp_path) as kept:
            kept.append([ANSWERS[2]])
            kept.append([ANSWERS[0]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    lines = (tmp_path / "generated_predictions.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["labels"] for line in lines] == ["参考0", "参考2"]


def test_a_place_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output_dir: cannot write"):
        journal(tmp_path / "file" / "below")
