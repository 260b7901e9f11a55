"""Reports: everything that belongs in them, every text as text, and a page that a browser shows without complaint."""

import json
import os
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ptuning.data.rows import Row, Rows
from ptuning.edges.run_arguments import parse_arguments
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.metrics.scoring import score_pair
from ptuning.evaluation.report.published_figures import ADGEN, published_figures
from ptuning.evaluation.report.report import write_report
from ptuning.evaluation.report.run_settings import command_of
from ptuning.evaluation.run_result import RunResult, ScoredModel, evaluation_of

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'"> & | `*_[a](b)'
WANTED = [f"新到的衬衫，第{number}件清清爽爽，坐着站着都好看。" for number in range(20)]
ANSWERS = [*WANTED[:12], EVIL, "", "立领端正显气质，" * 9, *["请问要写什么？"] * 5]
HISTORY = [{"step": step, "loss": 4 - step / 100} for step in range(10, 210, 10)]
HISTORY += [{"step": 100, "eval_loss": 3.5}, {"step": 200, "eval_loss": 3.2}]
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Checks that tags are closed, and keeps them and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


def evaluation(texts):
    return evaluation_of(
        [
            ScoredAnswer(
                n, WANTED[n], text, f"类型#衬衫*件#{n}", [["早", EVIL]] if n == 12 else [], f"test.json:{n + 1}",
                "length" if n == 13 else "stop", len(text), score_pair(text, WANTED[n]),
            )
            for n, text in enumerate(texts)
        ]
    )


def arguments(folder, *more):
    words = [
        "--model_name_or_path=tiny-chatglm", "--train_file=train.json", "--test_file=test.json", "--prompt_column=content",
        "--response_column=summary", f"--output_dir={folder}", "--pre_seq_len=8", "--do_train", "--do_predict",
        "--token=hf_x", f"--source_prefix={EVIL}", "--report_to", "tensorboard", "--use_cpu", *more,
    ]
    return parse_arguments(words, task="train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("报告") / "运行 <b>1"
    place.mkdir()
    (place / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    models = [
        ScoredModel("base model", place / "base", None, True, evaluation(["请问要写什么？"] * 20)),
        ScoredModel("with the prefix", place, place / "checkpoint-200", False, evaluation(ANSWERS)),
    ]
    rows = Rows([Row("p", "r", None, "train.json:1")] * 90, total=100, dropped={"empty summary": 10})
    result = RunResult(place, place / "checkpoint-200", [], models, {"train_loss": 3.74})
    write_report(arguments(place), result, {"training": rows, "validation": [], "test": [1] * 20})
    return place


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_runs_nothing(page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "img", "b1"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not [value for name, value in attributes.items() if name in ("href", "src") and value != "data:,"]
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_answers_with_markup_are_text(page, folder):
    assert page.text.count('<script>document.title="owned"</script>') >= 3  # answer, history, settings
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("\\<script", "").split("## Do it again")[0]


def test_the_page_has_what_a_colleague_asks_for(page, folder):
    for heading in ("Scores", "Loss", "Length and repetition", "Answers", "Data", "Settings", "Do it again"):
        assert heading in page.text
    for text in ("运行 <b>1", "difference to the base model", "100", "90", "10: 10 empty summary", "ptuning train", "torch"):
        assert text in page.text
    lines = [tag for tag, _ in page.tags if tag == "polyline"]
    assert len(lines) == 2  # training and validation
    assert sum(tag == "article" for tag, _ in page.tags) == 3 + 3 + 4
    assert "truncated at the limit" in page.text
    assert "(empty)" in page.text
    assert (folder / "training_loss.png").is_file()


def test_both_reports_show_the_same_scores(page, folder):
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert [row["model"] for row in content["scores"]] == ["base model", "with the prefix"]
    for row in content["scores"]:
        for value in row["scores"].values():
            assert f"{value['mean']:.2f}" in page.text
            assert f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" in markdown


def test_best_and_worst_are_the_best_and_the_worst(folder):
    samples = json.loads((folder / "report.json").read_text(encoding="utf-8"))["samples"]

    def means(kind):
        return [sum(sample["scores"].values()) for sample in samples[kind]]

    assert min(means("best")) >= max(means("random"))
    assert max(means("worst")) <= max(means("random"))
    # Five answers are the same: one of them is enough.
    assert {"", "请问要写什么？"} < {sample["answer"] for sample in samples["worst"]}
    sources = [sample["source"] for chosen in samples.values() for sample in chosen]
    assert len(set(sources)) == len(sources)


def test_markdown_tables_have_equal_columns(folder):
    for block in (folder / "report.md").read_text(encoding="utf-8").split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_no_token_is_told(folder):
    for name in ("report.html", "report.md", "report.json"):
        assert "hf_x" not in (folder / name).read_text(encoding="utf-8")


def test_counts_of_training_rows_stay_when_the_folder_is_evaluated_later(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "again")
    model = ScoredModel("with the prefix", place, None, False, evaluation(ANSWERS))
    write_report(None, RunResult(place, None, [], [model]), {"test": [1] * 5}, command="x")
    data = json.loads((place / "report.json").read_text(encoding="utf-8"))["data"]
    assert [(row["name"], row["used"]) for row in data] == [("training", 90), ("test", 5)]


def test_a_run_without_test_rows_has_a_report_as_well(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    write_report(arguments(tmp_path), RunResult(tmp_path, None, []), {})
    assert "Loss" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_the_command_says_the_same_settings_again(tmp_path):
    given = arguments(tmp_path / "a b", "--generation=published", "--gradient_checkpointing=False", "--warmup_steps=10")
    words = shlex.split(command_of(given))
    assert words[:2] == ["ptuning", "train"]
    again = parse_arguments(words[2:], task="train")
    assert again.given == {name: value for name, value in given.given.items() if name != "token"}


def test_the_command_names_several_checkpoints(tmp_path, golden):
    names = [str(golden / f"checkpoint-{name}") for name in ("prefix", "prefix_projection")]
    flags = ["--model_name_or_path=m", "--test_file=t", "--prompt_column=a", "--response_column=b"]
    given = parse_arguments([*names, *flags], task="evaluate")
    words = shlex.split(command_of(given))
    assert words[:4] == ["ptuning", "evaluate", *names]
    assert parse_arguments(words[2:], task="evaluate").checkpoints == given.checkpoints


PUBLISHED = [
    "--model_name_or_path=THUDM/chatglm-6b", "--quantization_bit=4", "--pre_seq_len=128", "--learning_rate=2e-2",
    "--max_source_length=64", "--max_target_length=64", "--max_steps=3000", "--gradient_accumulation_steps=16",
    "--per_device_train_batch_size=1", "--train_file=a", "--test_file=b", "--prompt_column=content",
    "--response_column=summary", "--do_train", "--do_predict", "--output_dir=out", "--use_cpu",
]
ADGEN_ROWS = [Row("类型#裤*版型#宽松", "宽松的裤子", None, "dev.json:1")]


def test_published_figures_stand_beside_a_run_with_the_same_settings():
    figures = published_figures(parse_arguments(PUBLISHED, task="train"), ADGEN_ROWS)
    assert figures["scores"] == ADGEN
    assert "likeliest token" in figures["note"]
    assert published_figures(parse_arguments([*PUBLISHED, "--sampling"], task="train"), ADGEN_ROWS)["note"] == ""


@pytest.mark.parametrize(
    "other",
    [
        "--learning_rate=1e-2", "--max_steps=300", "--pre_seq_len=64", "--prefix_projection", "--quantization_bit=8",
        "--max_target_length=128", "--gradient_accumulation_steps=8", "--model_name_or_path=tiny-chatglm",
        "--max_predict_samples=10",
    ],
)
def test_published_figures_are_left_out_otherwise(other):
    assert published_figures(parse_arguments([*PUBLISHED, other], task="train"), ADGEN_ROWS) == {}


def test_published_figures_are_for_rows_of_that_form_only():
    rows = [*ADGEN_ROWS, Row("你好", "你好", None, "dev.json:2")]
    assert published_figures(parse_arguments(PUBLISHED, task="train"), rows) == {}


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        assert not os.environ.get("CI"), "a browser is missing under CI: .ci/run installs one where it may"
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    return found


def browse(browser, page, profile, *flags):
    command = [
        browser, "--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}", "--enable-logging=stderr",
        "--window-size=1100,2400", *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []), *flags,
        Path(page).as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_browser_shows_it_without_a_complaint(browser, folder, tmp_path):
    done = browse(browser, folder / "report.html", tmp_path / "a", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "<title>运行 &lt;b&gt;1: tuning run</title>" in done.stdout  # no answer changed it
    assert done.stdout.count("<polyline") == 2
    picture = tmp_path / "page.png"
    done = browse(browser, folder / "report.html", tmp_path / "b", f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert picture.stat().st_size > 50_000  # an empty page has a few thousand bytes
