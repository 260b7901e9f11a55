"""``ptuning evaluate --metrics-only``: the same scores from a file, without a model and without torch."""

import json
import subprocess
import sys

import pytest

from ptuning.core.errors import UserError
from ptuning.edges import evaluate
from ptuning.evaluation.metrics.scoring import score
from ptuning.evaluation.rescoring import rescore

PAIRS = [("今天天气不错，很好", "今天天气很好"), ("新到的衬衫", ""), ("颜色清爽", "颜色颜色颜色颜色颜色颜色")]
FORMS = {
    "published": lambda wanted, answer: {"labels": wanted, "predict": answer},
    "LLaMA-Factory": lambda wanted, answer: {"prompt": "问", "predict": answer, "label": wanted},
    "ours": lambda wanted, answer: {"index": PAIRS.index((wanted, answer)), "reference": wanted, "answer": answer},
}


@pytest.fixture(params=FORMS)
def file(request, tmp_path):
    path = tmp_path / "predictions"
    lines = [json.dumps(FORMS[request.param](*pair), ensure_ascii=False) + "\n" for pair in PAIRS]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_every_form_gets_the_scores_of_its_texts(file):
    result = rescore(file)
    assert score([answer for _, answer in PAIRS], [wanted for wanted, _ in PAIRS]).items() <= result.tuned.metrics.items()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_results_and_a_report_are_written_on_request(file, tmp_path):
    rescore(file, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "predict_results.json").read_text(encoding="utf-8"))
    assert written["predict_empty_predictions"] == 1
    assert written["predict_samples"] == 3
    assert "--metrics-only" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_command_imports_no_torch(tmp_path):
    path = tmp_path / "generated_predictions.txt"
    path.write_text('{"labels": "今天天气不错", "predict": "今天天气很好"}\n', encoding="utf-8")
    code = (
        "import sys; from ptuning.edges.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, "evaluate", f"--metrics-only={path}", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "scores on 1 rows" in done.stdout
    assert "Building prefix dict" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics-only"], "expected one argument"),
        (["--metrics-only", "none.txt"], "--metrics-only none.txt: no such file (current directory: "),
        (["CKPT", "--metrics-only", "x"], "'CKPT': not expected beside --metrics-only FILE, which loads no model"),
        (["--metrics-only", "x", "--test_file", "y"], "--test_file: no such setting"),
    ],
)
def test_mistakes_are_users_mistakes(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        evaluate.main(words)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_as_output_folder_is_refused(file):
    with pytest.raises(UserError, match="this is a file; name a folder"):
        rescore(file, file)
