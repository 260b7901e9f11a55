"""The loss over the steps, and a picture whose letters are letters."""

import json
import warnings

import pytest

from ptuning.evaluation.report import loss_curve
from ptuning.evaluation.report.loss_curve import draw_loss_curve, points_of, read_log_history

HISTORY = [
    {"step": 10, "loss": 3.0, "learning_rate": 0.02},
    {"step": 10, "eval_loss": 2.5},
    {"step": 20, "loss": float("nan")},
    {"step": 20, "loss": 2.0},
    {"step": 20, "train_runtime": 3.0},
]


def test_points_of_a_history():
    assert points_of(HISTORY, "loss") == [(10, 3.0), (20, 2.0)]
    assert points_of(HISTORY, "eval_loss") == [(10, 2.5)]
    assert points_of(HISTORY, "eval_bleu-4") == []


def test_the_first_readable_state_counts(tmp_path):
    for name, text in (("broken", "{"), ("odd", "[]"), ("good", json.dumps({"log_history": HISTORY[:1]}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(text)
    folders = [tmp_path / name for name in ("none", "broken", "odd", "good")]
    assert read_log_history(folders) == HISTORY[:1]
    assert read_log_history(folders[:3]) == []


@pytest.mark.parametrize("title", ["adgen", "运行-1", "运行\U0010fffd", "$x_1$"])
def test_the_picture_is_drawn_without_a_missing_glyph(tmp_path, title):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every glyph that a font lacks
        path = draw_loss_curve(HISTORY, tmp_path / "training_loss.png", title)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_title_without_a_font_is_left_out():
    pytest.importorskip("matplotlib")
    assert loss_curve._font_for("loss") is not None
    assert loss_curve._font_for("运行\U0010fffd") is None


def test_nothing_is_drawn_from_nothing(tmp_path):
    assert draw_loss_curve([{"step": 1, "train_runtime": 2.0}], tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())
