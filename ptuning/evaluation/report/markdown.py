"""``report.md`` from the content of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ptuning.evaluation.metrics import SCORE_NAMES, SET_SCORE_NAMES

TITLES = {
    "bleu-4": "BLEU-4", "rouge-1": "ROUGE-1", "rouge-2": "ROUGE-2", "rouge-l": "ROUGE-L", "chrf": "chrF",
    "sacrebleu-zh": "BLEU (zh)",
}
SHOWN_SCORES = ("bleu-4", *(name for name in SCORE_NAMES if name != "bleu-4"))
SAMPLE_TITLES = {"best": "Best answers", "worst": "Worst answers", "random": "Random answers"}


def markdown_report(content: dict[str, Any]) -> str:
    """The report as Markdown; texts of rows and answers are shown as they are, with Markdown's own signs escaped."""
    parts = [f"# {_text(content['title'])}: {content['kind']}", _head(content)]
    if content["scores"]:
        parts += ["## Scores", _scores(content), _SCORE_NOTE]
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
        parts += ["## Settings", table(["setting", "value", ""], rows)]
    parts += ["## Do it again", f"In `{content['directory']}`:", f"```bash\n{content['command']}\n```"]
    pairs = [*content["machine"].items(), *content["versions"].items()]
    parts += ["## Machine and versions", table(["", ""], [[name, _text(value)] for name, value in pairs])]
    return "\n\n".join(part for part in parts if part) + "\n"


_SCORE_NOTE = (
    "In brackets: 95 % interval of the mean (bootstrap over rows); differences are paired, both models answer the "
    "same rows. chrF and BLEU (zh) are sacrebleu's, over the whole set."
)


def _head(content: dict[str, Any]) -> str:
    loss = content["train_metrics"].get("train_loss")
    words = [content["created"].replace("T", " ")]
    words += [] if loss is None else [f"mean training loss {loss:.4f}"]
    return ", ".join(words)


def _scores(content: dict[str, Any]) -> str:
    names = [name for name in SET_SCORE_NAMES if any(name in row["set_scores"] for row in content["scores"])]
    rows = []
    for row in content["scores"]:
        cells = [f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" for value in _ordered(row["scores"])]
        cells += [f"{row['set_scores'][name]:.2f}" if name in row["set_scores"] else "" for name in names]
        rows.append([_text(row["model"]), row["data"], str(row["rows"]), *cells])
        if row["difference_to_base"]:
            cells = [
                f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"
                for value in _ordered(row["difference_to_base"])
            ]
            rows.append(["difference to the base model", "", "", *cells, *[""] * len(names)])
    published = content["published"]
    if published:
        cells = [f"{published['scores'][name]:.2f}" for name in SHOWN_SCORES]
        rows.append([f"published: {published['source']}", "", "", *cells, *[""] * len(names)])
    text = table(["model", "on", "rows", *(TITLES[name] for name in (*SHOWN_SCORES, *names))], rows)
    return f"{text}\n\nPublished figures: {published['note']}." if published and published["note"] else text


def _ordered(scores: dict[str, Any]) -> list[Any]:
    return [scores[name] for name in SHOWN_SCORES]


def _curves(content: dict[str, Any]) -> str:
    """First, lowest and last value of each curve."""
    rows = []
    for name, points in content["curves"].items():
        if points:
            values = [value for _, value in points]
            rows.append([name, str(len(points)), *(f"{value:.4f}" for value in (values[0], min(values), values[-1]))])
    return table(["", "points", "first", "lowest", "last"], rows)


def _statistics(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("model", "data")))
    cells = [[_text(row["model"]), row["data"], *(_number(row.get(name)) for name in names)] for row in rows]
    return table(["model", "on", *names], cells)


def _data(rows: list[dict[str, Any]]) -> str:
    return table(["", "file", "rows", "used", "dropped"], [[
        row["name"], _text(row["file"] or ""), str(row["rows"]), str(row["used"]), dropped_text(row["dropped"]),
    ] for row in rows])


def dropped_text(dropped: dict[str, int]) -> str:
    """``12: 10 empty summary, 2 …``, or 0."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"{sum(dropped.values())}: {reasons}" if dropped else "0"


def _sample(sample: dict[str, Any]) -> str:
    scores = ", ".join(f"{TITLES[name]} {sample['scores'][name]:.1f}" for name in SHOWN_SCORES if name in sample["scores"])
    lines = [f"**{_text(sample['source'])}** ({scores}{', cut off' if sample['finish_reason'] == 'length' else ''})", ""]
    turns = [("earlier", f"{query} → {reply}") for query, reply in sample["history"]]
    texts = [*turns, ("prompt", sample["prompt"]), ("wanted", sample["reference"])]
    texts += [] if sample["base"] is None else [("base", sample["base"])]
    texts.append(("answer", sample["answer"]))
    return "\n".join([*lines, *(f"- {name}: {_text(text) or '(empty)'}" for name, text in texts)])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}".removesuffix(".00")


def _text(value: Any) -> str:
    """A value on one line in which nothing is Markdown or HTML."""
    line = " ⏎ ".join(str(value).splitlines()).strip()
    return re.sub(r"([\\`*_\[\]<>|#&~!])", r"\\\1", line)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
