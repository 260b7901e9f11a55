"""Writes the report of a run: what it was told, what it had, what came out, and how to do it again.

:mod:`~ptuning.evaluation.report.content` gathers everything into one mapping of plain values (``report.json``), and
:mod:`~ptuning.evaluation.report.markdown` and :mod:`~ptuning.evaluation.report.page` show that. Nothing here needs torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptuning.core.atomic import replace_when_whole
from ptuning.evaluation.report.content import report_content
from ptuning.evaluation.report.loss_curve import PICTURE_FILE, draw_loss_curve, read_log_history
from ptuning.evaluation.report.markdown import markdown_report
from ptuning.evaluation.report.page import html_report
from ptuning.evaluation.report.row_counts import CONTENT_FILE
from ptuning.evaluation.run_result import RunResult, save_comparison

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

logger = logging.getLogger(__name__)

MARKDOWN_FILE, PAGE_FILE = "report.md", "report.html"


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


def _run_folders(result: RunResult) -> list[Path]:
    """Where the trainer's log may lie: beside the checkpoint, in it, or in the output folder."""
    own = [] if result.checkpoint is None else [result.checkpoint.resolve().parent, result.checkpoint]
    return [*own, result.folder]


def _write(path: Path, text: str) -> None:
    with replace_when_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n", errors="replace")
