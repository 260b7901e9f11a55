"""What a run gave: means, pairs, the table of scores, and the files with them."""

import json

import pytest

from ptuning.core.result_files import save_metrics
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.metrics.registry import row_metrics
from ptuning.evaluation.metrics.scoring import score_pair
from ptuning.evaluation.run_result import RunResult, ScoredModel, evaluation_of, save_comparison, score_rows

REFERENCES = ["今天天气不错，很好", "新到的衬衫", "颜色清爽讨喜", "请问要写什么"]


def evaluated(texts, finish="stop"):
    pairs = zip(texts, REFERENCES, strict=True)
    return evaluation_of(
        [
            ScoredAnswer(number, theirs, ours, finish_reason=finish, scores=score_pair(ours, theirs))
            for number, (ours, theirs) in enumerate(pairs)
        ]
    )


@pytest.fixture
def models(tmp_path):
    base = evaluated(["", "衬衫", "什么", "请问"])
    tuned = evaluated([*REFERENCES[:3], ""], "length")
    return [
        ScoredModel("base model", tmp_path / "base", None, True, base, tuned),
        ScoredModel("checkpoint-20", tmp_path, tmp_path / "checkpoint-20", False, tuned, base),
    ]


def test_means_and_counts(models):
    metrics = models[1].task.metrics
    assert metrics["bleu-4"] == pytest.approx(sum(a.scores["bleu-4"] for a in models[1].task.answers) / 4)
    assert (metrics["empty_predictions"], metrics["unfinished_predictions"]) == (1, 4)
    assert models[1].step == 20
    assert models[0].step is None


def test_differences_are_to_the_base_model_on_the_same_rows(models, tmp_path):
    rows = score_rows(models)
    assert [(row.model.name, row.data) for row in rows] == [
        (name, data) for data in ("test rows", "general set") for name in ("base model", "checkpoint-20")
    ]
    assert rows[0].differences == {}
    for name in (metric.name for metric in row_metrics()):
        mean, low, high = rows[1].differences[name]
        assert mean == pytest.approx(models[1].task.metrics[name] - models[0].task.metrics[name])
        assert low <= mean <= high
        assert rows[3].differences[name][0] == pytest.approx(-mean)  # the general set has both the other way round
    written = json.loads(save_comparison(tmp_path, rows).read_text(encoding="utf-8"))
    assert written == [row.values() for row in rows]


def test_without_a_base_model_there_is_no_difference(models):
    (row,) = [row for row in score_rows(models[1:]) if row.data == "test rows"]
    assert row.differences == {}


def test_tuned_and_base_of_a_run(models, tmp_path):
    both, alone = RunResult(tmp_path, None, [], models), RunResult(tmp_path, None, [], models[:1])
    assert (both.tuned, both.base) == (models[1].task, models[0].task)
    assert (alone.tuned, alone.base) == (models[0].task, None)
    assert RunResult(tmp_path, None, []).tuned is None


def test_results_are_merged_and_named_as_published(tmp_path):
    (tmp_path / "all_results.json").write_text('{"train_loss": 3.5}')
    save_metrics(tmp_path, "predict", {"bleu-4": 8.1, "predict_runtime": 2.0, "epoch": 1.0})
    assert json.loads((tmp_path / "predict_results.json").read_text()) == {
        "predict_bleu-4": 8.1,
        "predict_runtime": 2.0,
        "epoch": 1.0,
    }
    assert json.loads((tmp_path / "all_results.json").read_text())["train_loss"] == 3.5
    assert not list(tmp_path.glob(".*"))
