"""``report.html`` from the content of a report: one file, no script, nothing fetched, every text escaped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ptuning.evaluation.metrics import SET_SCORE_NAMES
from ptuning.evaluation.report.markdown import SAMPLE_TITLES, SHOWN_SCORES, TITLES, dropped_text
from ptuning.evaluation.report.svg_chart import Series, line_chart

_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "report"


def html_report(content: dict[str, Any]) -> str:
    """The page. Whatever rows and answers hold is text in it and nothing else."""
    from markupsafe import Markup

    curves = {name: [tuple(point) for point in points] for name, points in content["curves"].items()}
    loss = [Series(name, curves[name]) for name in ("training loss", "validation loss") if curves.get(name)]
    scores = [Series(name, curves[name]) for name in ("BLEU-4", "ROUGE-L") if curves.get(name)]
    over_steps = [Series(name, points) for name, points in scores_over_steps(content).items()]
    rows = content["scores"]
    charts = [
        ("Loss", line_chart(loss, x_label="step", y_label="loss")),
        ("Scores of the validation sample during training", line_chart(scores, x_label="step", y_label="score")),
        ("Scores of the checkpoints", line_chart(over_steps, x_label="step", y_label="score")),
    ]
    return str(
        _template().render(
            content,
            style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),  # our own file
            charts=[(title, Markup(drawn)) for title, drawn in charts if drawn],  # escapes its texts itself
            shown=SHOWN_SCORES,
            set_names=[name for name in SET_SCORE_NAMES if any(name in row["set_scores"] for row in rows)],
            titles=TITLES,
            sample_titles=SAMPLE_TITLES,
            dropped=dropped_text,
            cards=_cards(content),
        )
    )


def scores_over_steps(content: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Of several checkpoints of one run: score over step for each metric, by step; empty for fewer than two."""
    rows = [row for row in content["scores"] if row["data"] == "test rows" and row["step"] is not None]
    if len({row["step"] for row in rows}) != len(rows) or len(rows) < 2:
        return {}
    if len({str(Path(row["checkpoint"]).parent) for row in rows}) > 1:
        return {}
    rows.sort(key=lambda row: row["step"])
    return {TITLES[name]: [(row["step"], row["scores"][name]["mean"]) for row in rows] for name in SHOWN_SCORES}


def _cards(content: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few figures one looks for first: name, value, note."""
    cards = []
    rows = [row for row in content["scores"] if row["data"] == "test rows"]
    if rows:
        best = rows[-1]
        for name in ("bleu-4", "rouge-l"):
            change = best["difference_to_base"].get(name)
            note = best["model"] if change is None else f"{change['mean']:+.2f} to the base model"
            cards.append((TITLES[name], f"{best['scores'][name]['mean']:.2f}", note))
        cards.append(("rows scored", str(best["rows"]), "test rows"))
    for name, note in (("training loss", "last logged"), ("validation loss", "lowest")):
        points = content["curves"].get(name)
        if points:
            value = points[-1][1] if note == "last logged" else min(value for _, value in points)
            cards.append((name, f"{value:.3f}", note))
    return cards


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja")
