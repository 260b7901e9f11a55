"""A metric is one function and one line of the registry, and is then shown everywhere."""

import json

import pytest

from ptuning.core.errors import UserError
from ptuning.core.result_files import save_metrics
from ptuning.edges.results import print_result
from ptuning.edges.run_arguments import parse_arguments
from ptuning.evaluation.answers import ScoredAnswer, parse_answer
from ptuning.evaluation.metrics import registry
from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.scoring import score, score_pair
from ptuning.evaluation.predictions import _rescored
from ptuning.evaluation.report.page import _trend
from ptuning.evaluation.report.report import write_report
from ptuning.evaluation.rescoring import rescore
from ptuning.evaluation.run_result import RunResult, ScoredModel, evaluation_of

REFERENCES = ["今天天气不错，很好", "新到的衬衫", "颜色清爽讨喜", "请问要写什么"]


def letters_too_many(prediction, reference):
    """A metric of which less is better."""
    return float(abs(len(prediction) - len(reference)))


@pytest.fixture
def registered(monkeypatch):
    metric = Metric("letters", "Letters too many", letters_too_many, higher_is_better=False, blank=99.0)
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, metric))
    return metric


def evaluated(texts):
    pairs = zip(texts, REFERENCES, strict=True)
    return evaluation_of(
        [ScoredAnswer(n, theirs, ours, finish_reason="stop", scores=score_pair(ours, theirs)) for n, (ours, theirs) in
         enumerate(pairs)]
    )


@pytest.fixture
def result(registered, tmp_path):
    """Two checkpoints of one run beside the base model, and scores of a validation sample in its log."""
    log = [{"step": step, "loss": 3.0, "eval_letters": step / 2} for step in (10, 20)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    texts = ["今天", "新到的", "颜色清爽讨喜", ""]
    models = [ScoredModel("base model", tmp_path / "base", None, True, evaluated(texts))]
    models += [
        ScoredModel(f"checkpoint-{step}", tmp_path, tmp_path / f"checkpoint-{step}", False, evaluated(texts[:keep] + rest))
        for step, keep, rest in ((10, 1, REFERENCES[1:]), (20, 0, REFERENCES))
    ]
    return RunResult(tmp_path, None, [], models)


def test_names_and_their_order_are_those_of_every_file_and_table():
    assert [metric.name for metric in registry.row_metrics()] == ["rouge-1", "rouge-2", "rouge-l", "bleu-4"]
    assert [metric.title for metric in registry.table_metrics()] == ["BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert [metric.title for metric in registry.headline_metrics()] == ["BLEU-4", "ROUGE-L"]
    assert [(metric.name, metric.title) for metric in registry.corpus_metrics()] == [
        ("chrf", "chrF"), ("sacrebleu-zh", "BLEU (zh)"),
    ]
    assert len({metric.name for metric in registry.METRICS}) == len(registry.METRICS)
    assert all((metric.row is None) != (metric.corpus is None) for metric in registry.METRICS)


def test_a_new_metric_scores_rows_and_sets(registered):
    assert score_pair("今天", "今天天气")["letters"] == 2
    assert score_pair(" ", "今天")["letters"] == 99
    assert score(["今天", ""], ["今天天气", "好"])["letters"] == 50.5


def test_a_new_metric_is_in_every_result_file(result, tmp_path):
    write_report(None, result, {}, command="ptuning evaluate")
    comparison = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert comparison == content["scores"]
    assert comparison[0]["scores"]["letters"]["mean"] == pytest.approx((7 + 2 + 0 + 99) / 4)
    change = comparison[-1]["difference_to_base"]["letters"]
    assert change["mean"] == pytest.approx(-27)
    assert change["low"] <= change["mean"] <= change["high"]
    assert content["curves"]["Letters too many"] == [[10, 5.0], [20, 10.0]]
    assert all("letters" in sample["scores"] for kind in content["samples"].values() for sample in kind)
    path = save_metrics(tmp_path, "predict", result.models[0].task.metrics)
    assert json.loads(path.read_text(encoding="utf-8"))["predict_letters"] == 27
    answer = result.models[0].task.answers[0]
    assert json.loads(answer.line())["scores"]["letters"] == 7
    assert parse_answer(json.loads(answer.line())).scores == answer.scores


def test_a_new_metric_is_on_both_pages(result, tmp_path):
    write_report(None, result, {}, command="ptuning evaluate")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    (low, high) = result.table[0].intervals["letters"]
    assert "| ROUGE-L | Letters too many |" in markdown
    assert f"| 27.00 [{low:.2f}, {high:.2f}] |" in markdown
    assert "Letters too many 0.0)" in markdown.split("## Best answers")[1]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th class="number">Letters too many</th>' in page
    assert f"<small>{low:.2f} – {high:.2f}</small>" in page
    assert '<div class="card"><span>Letters too many</span><b>0.00</b><span>-27.00 to the base model</span></div>' in page
    assert page.count("</i>Letters too many</span>") == 2  # the validation sample over the steps, and the checkpoints


def test_the_terminal_has_a_column_and_an_interval_of_it(result, capsys):
    print_result(result, written=False)
    lines = capsys.readouterr().out.splitlines()
    heads = lines[1].split()
    assert heads[4:9] == ["bleu-4", "rouge-1", "rouge-2", "rouge-l", "letters"]
    assert lines[2].split()[6] == "27.00"  # base model
    assert any("letters -27.00 [" in line for line in lines)


def test_a_file_of_predictions_is_scored_by_it(registered, tmp_path):
    file = tmp_path / "generated_predictions.txt"
    file.write_text('{"labels": "今天天气", "predict": "今天"}\n', encoding="utf-8")
    rescore(file, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "predict_results.json").read_text())["predict_letters"] == 2


def settings_of_run(tmp_path, *more):
    return parse_arguments(
        ["--model_name_or_path=tiny-chatglm", "--train_file=a", "--validation_file=b", "--prompt_column=c",
         "--response_column=d", f"--output_dir={tmp_path}", "--pre_seq_len=4", "--use_cpu", "--predict_with_generate",
         "--eval_strategy=steps", "--eval_steps=5", *more], task="train",
    )


def test_a_run_can_choose_its_best_checkpoint_by_it(registered, tmp_path):
    training = settings_of_run(tmp_path, "--metric_for_best_model=letters").training
    assert training.greater_is_better is False
    with pytest.raises(UserError, match="would keep the worst"):
        settings_of_run(tmp_path, "--metric_for_best_model=letters", "--greater_is_better=true")
    assert settings_of_run(tmp_path, "--metric_for_best_model=bleu-4").training.greater_is_better is True


def test_a_metric_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"allowed are eval_loss, eval_bleu-4, eval_rouge-1, eval_rouge-2, eval_rouge-l$"):
        settings_of_run(tmp_path, "--metric_for_best_model=letters")


def test_of_which_less_is_better_a_smaller_score_is_progress(registered):
    fewer, more, neither = ({"low": low, "high": high} for low, high in ((-3, -1), (1, 3), (-1, 1)))
    assert [_trend(registered, change) for change in (fewer, more, neither)] == ["up", "down", ""]
    assert [_trend(registry.METRICS[0], change) for change in (fewer, more, neither)] == ["down", "up", ""]


def test_answers_of_a_run_that_did_not_know_it_are_scored_again(request):
    answer = ScoredAnswer(0, "今天天气", "今天", scores=score_pair("今天", "今天天气"))
    assert _rescored(answer) is answer
    request.getfixturevalue("registered")
    assert _rescored(answer).scores == answer.scores | {"letters": 2}
