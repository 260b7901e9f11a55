"""Evaluation as a command in a process of its own: killed at any moment it resumes; several checkpoints, a general set."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from processes import Command

from ptuning.evaluation.run import _names

KILLS = {"greedy": 6, "published": 3}
ROWS, BASE = 24, 24  # rows asked of the prefix and of the base model


@pytest.fixture(scope="module")
def test_file(golden_cases, tmp_path_factory):
    rows = (golden_cases["train_rows"] * 3)[:ROWS]
    texts = [{"content": f"{row['prompt']}{n}", "summary": row["response"]} for n, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("rows") / "test.json"
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def flags(golden, test_file):
    def make(folder, *more, rows=test_file, **settings):
        values = {
            "model_name_or_path": golden / "model",
            "test_file": rows,
            "prompt_column": "content",
            "response_column": "summary",
            "output_dir": folder,
            "max_source_length": 24,
            "max_target_length": 16,
            "per_device_eval_batch_size": 4,
            "device": "cpu",
            **settings,
        }
        return ["evaluate", *map(str, more), *(f"--{name}={value}" for name, value in values.items())]

    return make


def run(argv, place):
    place.mkdir(parents=True, exist_ok=True)
    command = Command(argv, place / f"out-{len(list(place.glob('out-*')))}")
    assert command.wait() == 0, command.text()
    return command.text()


def predictions(folder):
    """Every file that holds answers, by its place, and the scores of the run without its times."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*generated_predictions*"))}
    for path in folder.rglob("predict_results.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        timed = ("runtime", "per_second")
        found[str(path.relative_to(folder))] = {k: v for k, v in results.items() if not k.endswith(timed)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("generation", KILLS)
def test_a_killed_evaluation_goes_on_and_scores_the_same(flags, golden, tmp_path, generation):
    settings = {"compare_base": True, "generation": generation, "ptuning_checkpoint": golden / "checkpoint-prefix"}
    run(flags(tmp_path / "straight", **settings), tmp_path / "log")
    draw, kills = random.Random(len(generation)), 0
    while kills < KILLS[generation]:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        while True:
            command = Command(flags(tmp_path / "killed", **settings), tmp_path / "out")
            if kills < KILLS[generation]:
                wanted = draw.randrange(1, ROWS + BASE)
                command.wait_for(lambda wanted=wanted: answered(tmp_path / "killed") >= wanted)
                time.sleep(draw.uniform(0, 0.03))
                command.send(signal.SIGKILL)
            code = command.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, command.text()
            kills += 1
        assert predictions(tmp_path / "killed") == predictions(tmp_path / "straight")
        assert not list((tmp_path / "killed").rglob(".*"))
    assert "resuming with" in (tmp_path / "out").read_text(encoding="utf-8")


def answered(folder):
    """Lines in both journals."""
    files = [folder / "base" / "generated_predictions.jsonl", folder / "generated_predictions.jsonl"]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX systems")
def test_a_full_disk_is_one_line_and_the_evaluation_goes_on_later(flags, golden, tmp_path):
    settings = {"ptuning_checkpoint": golden / "checkpoint-prefix", "max_predict_samples": 8}
    argv = flags(tmp_path / "full", **settings)
    command = Command(argv, tmp_path / "log", limit_file=1500)
    assert command.wait() == 1
    said = command.text()
    assert "Traceback" not in said
    assert "generated_predictions.jsonl: cannot be written (File too large); " in said.splitlines()[-1]
    kept = (tmp_path / "full" / "generated_predictions.jsonl").read_bytes()
    assert kept.endswith(b"\n")
    assert f"resuming with {kept.count(b'{') - kept.count(b'scores')} of 8 rows answered" in run(argv, tmp_path / "again")
    run(flags(tmp_path / "straight", **settings), tmp_path / "straight-log")
    assert predictions(tmp_path / "full") == predictions(tmp_path / "straight")


@pytest.fixture(scope="module")
def several(flags, golden, test_file, tmp_path_factory):
    """Two checkpoints of a run in one evaluation, with the base model and a general set; and the folder of that run."""
    place = tmp_path_factory.mktemp("several")
    trained = place / "run"
    for step, name in ((20, "prefix"), (100, "prefix_projection")):
        shutil.copytree(golden / f"checkpoint-{name}", trained / f"checkpoint-{step}")
        state = {"log_history": [{"step": number, "loss": 4 - number / 50} for number in range(10, step + 1, 10)]}
        (trained / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    general = place / "general.json"
    texts = [{"instruction": "你好", "output": "你好呀"}, {"instruction": "1+1", "output": "2"}]
    general.write_text(json.dumps(texts), encoding="utf-8")
    more = ("--all_checkpoints", "--compare_base", "--max_predict_samples=6")
    argv = flags(place / "out", trained, *more, general_file=general)
    return place, argv, run(argv, place)


@pytest.mark.slow
def test_every_checkpoint_has_its_answers_and_a_row_in_the_table(several):
    place, _, text = several
    table = json.loads((place / "out" / "comparison.json").read_text(encoding="utf-8"))
    names = ["base model", "checkpoint-20", "checkpoint-100"]
    assert [(row["model"], row["data"], row["rows"]) for row in table] == [
        *((name, "test rows", 6) for name in names), *((name, "general set", 2) for name in names),
    ]
    for name in names:
        assert f"\n{name} " in text
    for folder in ("base", "evaluation/checkpoint-20", "evaluation/checkpoint-100"):
        assert len((place / "out" / folder / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()) == 6
        assert (place / "out" / folder / "general" / "generated_predictions.jsonl").is_file()
    assert text.count("Loading prefix_encoder weight") == 3  # the first with the model, then both


@pytest.mark.slow
def test_a_checkpoint_alone_answers_as_among_others(several, flags, golden, tmp_path):
    place, _, _ = several
    run(flags(tmp_path / "alone", place / "run" / "checkpoint-20", "--max_predict_samples=6"), tmp_path)
    one = (tmp_path / "alone" / "generated_predictions.jsonl").read_bytes()
    assert one == (place / "out" / "evaluation" / "checkpoint-20" / "generated_predictions.jsonl").read_bytes()


@pytest.mark.slow
def test_the_report_has_the_curve_over_steps_and_the_loss_of_the_run(several):
    place, _, _ = several
    page = (place / "out" / "report.html").read_text(encoding="utf-8")
    assert "Scores of the checkpoints" in page
    assert page.count("<svg") == 2
    assert (place / "out" / "training_loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_finished_evaluation_is_not_answered_again_unless_asked(several):
    place, argv, _ = several
    before = predictions(place / "out")
    assert "resuming with 6 of 6 rows answered" in run(argv, place)
    assert predictions(place / "out") == before
    assert "resuming with" not in run([*argv, "--overwrite_predictions"], place)
    assert predictions(place / "out") == before


def test_names_tell_checkpoints_apart(tmp_path):
    places = [tmp_path / run / f"checkpoint-{step}" for run, step in (("a", 1), ("b", 1))]
    assert list(_names(places)) == ["a/checkpoint-1", "b/checkpoint-1"]
    assert list(_names([places[0], places[0]])) == ["checkpoint-1"]
    assert _names([]) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: no such checkpoint folder"),
        (["checkpoint-prefix", "none"], "none: no such checkpoint folder"),
        (["checkpoint-prefix", "--all_checkpoints"], "--all_checkpoints: no whole checkpoint-N folder in"),
        (["--all_checkpoints"], "--all_checkpoints: name the run's output folder"),
        (["checkpoint-prefix", "checkpoint-prefix_projection", "--ptuning_checkpoint=x"], "put it among those"),
        (["checkpoint-prefix", "--general_file=none.json"], "none.json"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, golden, tmp_path, words, message):
    named = [golden / word if word.startswith("checkpoint") else word for word in words]
    command = Command(flags(tmp_path / "out", *named), tmp_path / "log")
    assert command.wait() == 2
    assert message in command.text()
    assert "Traceback" not in command.text()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"per_device_eval_batch_size": 300}, {"per_device_eval_batch_size": 8, "num_beams": 256}])
def test_memory_that_does_not_suffice_says_what_to_lower(flags, tmp_path, more):
    rows = tmp_path / "rows.json"
    row = {"content": "类型#裙*颜色#白色" * 40, "summary": "白色的裙子" * 20}
    rows.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 300, encoding="utf-8")
    settings = {"model_name_or_path": "tiny-chatglm", "max_source_length": 512, "max_target_length": 128, **more}
    started = Command(flags(tmp_path / "run", rows=rows, **settings), tmp_path / "out", limit_memory=200 * 2**20)
    assert started.wait() == 1, started.text()
    assert "Traceback" not in started.text()
    assert "out of memory while answering" in started.text()
    assert "a smaller --per_device_eval_batch_size or fewer --num_beams" in started.text()
