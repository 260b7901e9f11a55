"""``report.html`` from the content of a report: one file, no script, nothing fetched, every text escaped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ptuning.evaluation.intervals import LEVEL
from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.registry import headline_metrics, table_metrics
from ptuning.evaluation.report.svg_chart import Series, line_chart
from ptuning.evaluation.report.wording import SAMPLE_TITLES, corpus_note, dropped_text, shown_corpus_metrics

_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "report"


def html_report(content: dict[str, Any]) -> str:
    """The page. Whatever rows and answers hold is text in it and nothing else."""
    from markupsafe import Markup

    curves = {name: [tuple(point) for point in points] for name, points in content["curves"].items()}
    loss = [Series(name, curves[name]) for name in ("training loss", "validation loss") if curves.get(name)]
    scores = [Series(metric.title, curves[metric.title]) for metric in headline_metrics() if curves.get(metric.title)]
    over_steps = [Series(name, points) for name, points in scores_over_steps(content).items()]
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
            level=LEVEL,
            metrics=table_metrics(),
            corpus_metrics=shown_corpus_metrics(content),
            corpus_note=corpus_note(content),
            trend=_trend,
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
    return {
        metric.title: [(row["step"], row["scores"][metric.name]["mean"]) for row in rows] for metric in table_metrics()
    }


def _trend(metric: Metric, change: dict[str, float]) -> str:
    """The class of a difference whose interval leaves out 0: ``up`` is better, ``down`` worse; "" for any other."""
    more, less = ("up", "down") if metric.higher_is_better else ("down", "up")
    return more if change["low"] > 0 else less if change["high"] < 0 else ""


def _cards(content: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few figures one looks for first: name, value, note."""
    cards = []
    rows = [row for row in content["scores"] if row["data"] == "test rows"]
    if rows:
        best = rows[-1]
        for metric in headline_metrics():
            change = best["difference_to_base"].get(metric.name)
            note = best["model"] if change is None else f"{change['mean']:+.2f} to the base model"
            cards.append((metric.title, f"{best['scores'][metric.name]['mean']:.2f}", note))
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
