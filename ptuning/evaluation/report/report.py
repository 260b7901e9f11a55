"""``report.md`` and ``report.html``: what a run was told, what it had, what came out, and how to do it again.

:func:`write_report` gathers everything into one mapping of plain values (``report.json``), and both pages are written from
that. Nothing here needs torch.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.paths import path_argument, quoted, working_directory
from ptuning.core.reading import is_regular, read_json
from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.metrics import SCORE_NAMES
from ptuning.evaluation.report.loss_curve import PICTURE_FILE, draw_loss_curve, points_of, read_log_history
from ptuning.evaluation.report.markdown import markdown_report
from ptuning.evaluation.report.page import html_report
from ptuning.evaluation.report.published_figures import published_figures
from ptuning.evaluation.run_result import Evaluation, RunResult, ScoredModel, save_comparison
from ptuning.memory.machine import machine, versions

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

logger = logging.getLogger(__name__)

MARKDOWN_FILE, PAGE_FILE, CONTENT_FILE = "report.md", "report.html", "report.json"
BEST, WORST, RANDOM = 3, 3, 4
"""How many samples of each kind are shown."""
_MAX_CONTENT = 256 * 2**20  # bytes of an earlier report's values

_SHOWN_STATISTICS = {
    "characters_mean": "characters, mean",
    "characters_p95": "characters, p95",
    "reference_characters_mean": "reference, mean",
    "tokens_mean": "tokens, mean",
    "tokens_max": "tokens, longest",
    "empty_percent": "empty, %",
    "at_limit_percent": "at the limit, %",
    "repeated_4grams": "repeated 4-grams, %",
    "repetitive_percent": "mostly repetition, %",
}


def write_report(
    arguments: Arguments | None,
    result: RunResult,
    data: Mapping[str, Sequence[Any]],
    *,
    command: str | None = None,
) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json``, ``comparison.json`` (where several models or sets were
    scored) and ``training_loss.png`` (where there is a loss) into a run's folder.

    Args:
        arguments: of the run; None for scores of a file.
        result: what the run gave.
        data: rows by what they are for (training, validation, test, general), as read: their counts are shown. Counts of
            an earlier report in the same folder are kept for those that are not given here.
        command: what repeats the run; None makes it from the arguments.

    Returns:
        the page.
    """
    folder = result.folder
    folder.mkdir(parents=True, exist_ok=True)
    history = read_log_history(_run_folders(result))
    content = report_content(arguments, result, data, history, command)
    _write(folder / CONTENT_FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    _write(folder / MARKDOWN_FILE, markdown_report(content))
    _write(folder / PAGE_FILE, html_report(content))
    if len(result.table) > 1:
        save_comparison(folder, result.table)
    draw_loss_curve(history, folder / PICTURE_FILE, content["title"])
    logger.info("report: %s", folder / PAGE_FILE)
    return folder / PAGE_FILE


def report_content(
    arguments: Arguments | None,
    result: RunResult,
    data: Mapping[str, Sequence[Any]],
    log_history: Sequence[Mapping[str, Any]],
    command: str | None = None,
) -> dict[str, Any]:
    """Everything a report shows, as values for JSON."""
    training = arguments is not None and arguments.training.do_train
    table = result.table
    last = result.models[-1] if result.models else None
    base = next((model for model in result.models if model.is_base), None)
    return {
        "title": result.folder.resolve().name,
        "kind": "tuning run" if training else "evaluation",
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command or (command_of(arguments) if arguments is not None else ""),
        "directory": working_directory(),
        "settings": settings_shown(arguments) if arguments is not None else [],
        "data": _data_counts(arguments, data, result.folder),
        "curves": {
            name: points_of(log_history, key)
            for name, key in (
                ("training loss", "loss"), ("validation loss", "eval_loss"),
                ("BLEU-4", "eval_bleu-4"), ("ROUGE-L", "eval_rouge-l"),
            )
        },
        "train_metrics": {name: value for name, value in result.train_metrics.items() if isinstance(value, int | float)},
        "scores": [row.values() for row in table],
        "published": published_figures(arguments, result.rows) if arguments is not None else {},
        "statistics": [
            {"model": row.model.name, "data": row.data} | _statistics(row.evaluation) for row in table
        ],
        "samples": _samples(last, base if base is not last else None),
        "machine": machine(),
        "versions": versions(),
    }


def _run_folders(result: RunResult) -> list[Path]:
    """Where the trainer's log may lie: beside the checkpoint, in it, or in the output folder."""
    own = [] if result.checkpoint is None else [result.checkpoint.resolve().parent, result.checkpoint]
    return [*own, result.folder]


def _statistics(evaluation: Evaluation) -> dict[str, float]:
    return {shown: evaluation.metrics[name] for name, shown in _SHOWN_STATISTICS.items() if name in evaluation.metrics}


def _samples(model: ScoredModel | None, base: ScoredModel | None) -> dict[str, list[dict[str, Any]]]:
    """Best, worst and random answers on the test rows, each row once."""
    if model is None or model.task is None:
        return {}
    answers = model.task.answers
    others = base.task.answers if base is not None and base.task is not None else None
    # Ties by place, so that the same answers give the same page.
    ranked = sorted(answers, key=lambda answer: (-_mean(answer), answer.index))
    best = _varied(ranked, BEST)
    worst = _varied([answer for answer in reversed(ranked) if answer not in best], WORST)
    rest = [answer for answer in answers if answer not in best and answer not in worst]
    drawn = random.Random(0).sample(rest, min(RANDOM, len(rest)))
    return {
        kind: [_sample(answer, None if others is None else others[answer.index]) for answer in chosen]
        for kind, chosen in (("best", best), ("worst", worst), ("random", sorted(drawn, key=lambda a: a.index)))
        if chosen
    }


def _varied(ranked: Sequence[ScoredAnswer], count: int) -> list[ScoredAnswer]:
    """The first answers of a ranking, the same text once: of twenty blank ones a reader wants to see one."""
    found: dict[str, ScoredAnswer] = {}
    for answer in ranked:
        if len(found) < count:
            found.setdefault(answer.answer.strip(), answer)
    return list(found.values())


def _mean(answer: ScoredAnswer) -> float:
    return sum(answer.scores.values()) / max(1, len(answer.scores))


def _sample(answer: ScoredAnswer, base: ScoredAnswer | None) -> dict[str, Any]:
    return {
        "source": answer.source,
        "prompt": answer.prompt,
        "history": answer.history,
        "reference": answer.reference,
        "answer": answer.answer,
        "base": None if base is None else base.answer,
        "finish_reason": answer.finish_reason,
        "scores": {name: answer.scores[name] for name in SCORE_NAMES if name in answer.scores},
    }


def _data_counts(
    arguments: Arguments | None, data: Mapping[str, Sequence[Any]], folder: Path
) -> list[dict[str, Any]]:
    """How many rows each file had, how many are used, and why others are not."""
    found: dict[str, dict[str, Any]] = {}
    try:
        if is_regular(folder / CONTENT_FILE):
            earlier = read_json(folder / CONTENT_FILE, max_bytes=_MAX_CONTENT).get("data")
            found = {entry["name"]: entry for entry in earlier or () if _is_count(entry)}
    except UserError as error:
        logger.warning("%s; its counts of rows are left out", error)
    flags = {"training": "train_file", "validation": "validation_file", "test": "test_file", "general": "general_file"}
    for name, rows in data.items():
        if rows:
            file = getattr(arguments.data, flags[name], None) if arguments is not None and name in flags else None
            dropped = dict(getattr(rows, "dropped", {}))
            total = max(int(getattr(rows, "total", 0)), len(rows))
            found[name] = {"name": name, "file": file, "rows": total, "used": len(rows), "dropped": dropped}
    order = [*flags, *(name for name in found if name not in flags)]
    return [found[name] for name in order if name in found]


def _is_count(entry: Any) -> bool:
    """Whether an entry of an earlier report is one that both pages can show."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and all(isinstance(entry.get(name), int) for name in ("rows", "used"))
        and isinstance(entry.get("file"), str | None)
        and isinstance(entry.get("dropped"), dict)
    )


_EFFECTIVE = {
    "model": ("quantization_bit", "dtype"),
    "data": ("max_source_length", "max_target_length", "val_max_target_length", "generation", "num_beams"),
    "training": (
        "learning_rate", "lr_scheduler_type", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "per_device_eval_batch_size", "seed",
    ),
}
_SECRET = ("token", "hub_token", "use_auth_token")


def settings_shown(arguments: Arguments) -> list[dict[str, Any]]:
    """The settings that decide a run, and all others that were named: name, value, whether it was named."""
    from ptuning.methods.registry import METHODS  # here: scores of a file need no torch

    tuned = METHODS[arguments.method].model_settings
    training_only = {"learning_rate", "lr_scheduler_type", "max_steps", "gradient_accumulation_steps"}
    training_only |= {"per_device_train_batch_size", *tuned}
    effective = _EFFECTIVE | {"model": ("model_name_or_path", "ptuning_checkpoint", *tuned, *_EFFECTIVE["model"])}
    shown: dict[str, Any] = {}
    for group in ("model", "data", "training"):
        for name in effective[group]:
            if arguments.training.do_train or name not in training_only or name in arguments.given:
                shown[name] = getattr(getattr(arguments, group), name)
    shown |= {name: value for name, value in arguments.given.items() if name not in shown and not _is_secret(name)}
    return [
        {"name": name, "value": _plain(value), "named": name in arguments.given}
        for name, value in shown.items()
        if value is not None
    ]


def _is_secret(name: str) -> bool:
    return name in _SECRET or name.endswith("_token")


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # of an enum
    return value if isinstance(value, int | float | str | bool | list) else str(value)


def command_of(arguments: Arguments) -> str:
    """The command that repeats a run: every setting that was named, by its flag, so that no settings file is needed.
    Access tokens are left out."""
    verb = "train" if arguments.training.do_train else "evaluate"
    words = ["ptuning", verb]
    left_out = {"resume_from_checkpoint", "overwrite_predictions"}
    if verb == "evaluate":
        words += [path_argument(path) for path in arguments.checkpoints]
        left_out |= {"do_train", "all_checkpoints"} | ({"ptuning_checkpoint"} if arguments.checkpoints else set())
    for name, value in arguments.given.items():
        if value is None or name in left_out or _is_secret(name):
            continue
        value = getattr(value, "value", value)
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return " ".join(map(quoted, words))


def _write(path: Path, text: str) -> None:
    with replace_when_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n", errors="replace")
