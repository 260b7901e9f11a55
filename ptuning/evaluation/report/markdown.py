"""``report.md`` from the content of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ptuning.evaluation.intervals import LEVEL
from ptuning.evaluation.metrics.metric import Metric
from ptuning.evaluation.metrics.registry import table_metrics
from ptuning.evaluation.report.wording import SAMPLE_TITLES, corpus_note, dropped_text, shown_corpus_metrics


def markdown_report(content: dict[str, Any]) -> str:
    """The report as Markdown; texts of rows and answers are shown as they are, with Markdown's own signs escaped."""
    parts = [f"# {_text(content['title'])}: {content['kind']}", _head(content)]
    if content["scores"]:
        parts += ["## Scores", _scores(content), _score_note(content)]
    if any(content["curves"].values()):
        parts += ["## Loss", _curves(content), "![training and validation loss](training_loss.png)"]
    if content["statistics"]:
        parts += ["## Length and repetition", _statistics(content["statistics"])]
    for kind, samples in content["samples"].items():
        parts += [f"## {SAMPLE_TITLES[kind]}", *map(_sample, samples)]
    if content["data"]:
        parts += ["## Data", _data(content["data"])]
    if content["settings"]:
        rows = [[entry["name"], _text(entry["value"]), "" if entry["named"] else "default"] for entry in content["settings"]]
        parts += ["## Settings", _table(["setting", "value", ""], rows)]
    parts += ["## Do it again", f"In `{content['directory']}`:", f"```bash\n{content['command']}\n```"]
    pairs = [*content["machine"].items(), *content["versions"].items()]
    parts += ["## Machine and versions", _table(["", ""], [[name, _text(value)] for name, value in pairs])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _score_note(content: dict[str, Any]) -> str:
    note = (
        f"In brackets: {LEVEL} % bootstrap interval of the mean over rows; differences are paired, both models answer the "
        "same rows."
    )
    return f"{note} {corpus_note(content)}".rstrip()


def _head(content: dict[str, Any]) -> str:
    loss = content["train_metrics"].get("train_loss")
    words = [content["created"].replace("T", " ")]
    words += [] if loss is None else [f"mean training loss {loss:.4f}"]
    return ", ".join(words)


def _scores(content: dict[str, Any]) -> str:
    metrics, corpus = table_metrics(), shown_corpus_metrics(content)
    no_corpus_scores = [""] * len(corpus)
    rows = []
    for row in content["scores"]:
        cells = [f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" for value in _of(row["scores"], metrics)]
        cells += ["" if value is None else f"{value:.2f}" for value in _of(row["set_scores"], corpus)]
        rows.append([_text(row["model"]), row["data"], str(row["rows"]), *cells])
        if row["difference_to_base"]:
            cells = [
                f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"
                for value in _of(row["difference_to_base"], metrics)
            ]
            rows.append(["difference to the base model", "", "", *cells, *no_corpus_scores])
    published = content["published"]
    if published:
        cells = ["" if value is None else f"{value:.2f}" for value in _of(published["scores"], metrics)]
        rows.append([f"published: {published['source']}", "", "", *cells, *no_corpus_scores])
    text = _table(["model", "on", "rows", *(metric.title for metric in (*metrics, *corpus))], rows)
    return f"{text}\n\nPublished figures: {published['note']}." if published and published["note"] else text


def _of(scores: dict[str, Any], metrics: Sequence[Metric]) -> list[Any]:
    """The scores of these metrics; None where there is none."""
    return [scores.get(metric.name) for metric in metrics]


def _curves(content: dict[str, Any]) -> str:
    """First, lowest and last value of each curve."""
    rows = []
    for name, points in content["curves"].items():
        if points:
            values = [value for _, value in points]
            rows.append([name, str(len(points)), *(f"{value:.4f}" for value in (values[0], min(values), values[-1]))])
    return _table(["", "points", "first", "lowest", "last"], rows)


def _statistics(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("model", "data")))
    cells = [[_text(row["model"]), row["data"], *(_number(row.get(name)) for name in names)] for row in rows]
    return _table(["model", "on", *names], cells)


def _data(rows: list[dict[str, Any]]) -> str:
    return _table(["", "file", "rows", "used", "dropped"], [[
        row["name"], _text(row["file"] or ""), str(row["rows"]), str(row["used"]), dropped_text(row["dropped"]),
    ] for row in rows])


def _sample(sample: dict[str, Any]) -> str:
    values = sample["scores"]
    scores = ", ".join(f"{metric.title} {values[metric.name]:.1f}" for metric in table_metrics() if metric.name in values)
    lines = [f"**{_text(sample['source'])}** ({scores}{', truncated' if sample['finish_reason'] == 'length' else ''})", ""]
    turns = [("earlier", f"{query} → {reply}") for query, reply in sample["history"]]
    texts = [*turns, ("prompt", sample["prompt"]), ("reference", sample["reference"])]
    texts += [] if sample["base"] is None else [("base", sample["base"])]
    texts.append(("answer", sample["answer"]))
    return "\n".join([*lines, *(f"- {name}: {_text(text) or '(empty)'}" for name, text in texts)])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}".removesuffix(".00")


def _text(value: Any) -> str:
    """A value on one line in which nothing is Markdown or HTML."""
    line = " ⏎ ".join(str(value).splitlines()).strip()
    return re.sub(r"([\\`*_\[\]<>|#&~!])", r"\\\1", line)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
