"""``train_results.json``, ``eval_results.json``, ``predict_results.json`` and ``all_results.json`` of a run's folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.reading import read_json

logger = logging.getLogger(__name__)


def save_metrics(folder: Path, split: str, metrics: dict[str, Any]) -> Path:
    """Write ``{split}_results.json`` and add the same to ``all_results.json``.

    Args:
        folder: made where missing.
        split: ``predict``, ``eval`` or ``train``; names get it in front where they lack it, as published.
        metrics: numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = (f"{split}_", "epoch", "total_flos")
    named = {(name if name.startswith(plain) else f"{split}_{name}"): value for name, value in metrics.items()}
    path, together = folder / f"{split}_results.json", folder / "all_results.json"
    for target, values in ((path, named), (together, _earlier(together) | named)):
        with replace_when_whole(target) as temporary:
            text = json.dumps(values, ensure_ascii=False, indent=4, sort_keys=True)
            temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _earlier(path: Path) -> dict[str, Any]:
    """The results of earlier parts of a run; none where the file is damaged, for a run must not fail at its end."""
    try:
        return read_json(path, "it was truncated") if path.is_file() else {}
    except UserError as error:
        logger.warning("%s; it is written again, with what this run gave alone", error)
        return {}
