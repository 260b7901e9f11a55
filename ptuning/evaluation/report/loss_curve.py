"""The loss over the steps, read from ``trainer_state.json``, and ``training_loss.png``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.reading import read_json

logger = logging.getLogger(__name__)

_MAX_STATE = 256 * 2**20  # bytes; every logging step adds 150
STATE_FILE, PICTURE_FILE = "trainer_state.json", "training_loss.png"
# Fonts with Chinese glyphs by the name matplotlib knows, the usual ones of each system first.
_CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "PingFang HK", "Hiragino Sans GB",
    "Heiti TC", "Microsoft YaHei", "SimHei", "SimSun", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Arial Unicode MS", "Droid Sans Fallback",
)

Points = list[tuple[float, float]]


def read_log_history(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The trainer's log entries from the first folder that has a readable ``trainer_state.json``; empty without one."""
    for folder in folders:
        try:
            history = read_json(folder / STATE_FILE, max_bytes=_MAX_STATE).get("log_history")
        except UserError:
            continue
        if isinstance(history, list):
            return [entry for entry in history if isinstance(entry, dict)]
    return []


def points_of(log_history: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of every finite value of that name, in the order of the steps; the last one of a step counts."""
    values = {}
    for entry in log_history:
        step, value = entry.get("step"), entry.get(name)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            values[float(step)] = float(value)
    return sorted(values.items())


def draw_loss_curve(log_history: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> Path | None:
    """Write a picture of the training and the validation loss.

    Args:
        log_history: the trainer's log entries (``step`` with ``loss`` or ``eval_loss``).
        path: a .png file.
        title: above the picture; left out where no installed font has its characters (never boxes).

    Returns:
        the path; None where there is nothing to draw, or matplotlib is not installed (one log line says so).
    """
    train, validation = points_of(log_history, "loss"), points_of(log_history, "eval_loss")
    if not train and not validation:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("%s is not drawn: matplotlib is not installed (pip install matplotlib)", path)
        return None
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for points, label, colour in ((train, "training", "#2563eb"), (validation, "validation", "#d97706")):
        if points:
            marker = "o" if len(points) <= 40 else None
            axes.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.8, marker=marker, markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    font = _font_for(title) if title else None
    if font is not None:
        axes.set_title(title, fontproperties=font, parse_math=False)
    with replace_when_whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _font_for(text: str) -> Any:
    """A font that has every character of a text, matplotlib's own if it does; None where there is none."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    own = font_manager.findfont(font_manager.FontProperties())
    rest = [name for name in installed if any(sign in name for sign in ("CJK", "Han", "Hei", "Song", "Ming", "Kai", "Fang"))]
    for file in [own, *[installed[name] for name in (*_CHINESE_FONTS, *sorted(rest)) if name in installed]]:
        try:
            font = FT2Font(file)
        except (OSError, RuntimeError):
            continue
        if all(font.get_char_index(ord(character)) for character in text):
            return font_manager.FontProperties(fname=file)
    return None
