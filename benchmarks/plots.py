"""Curves as SVG files that are the same bytes for the same numbers: no date, no random ids, text as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STYLE: Any = {
    "svg.hashsalt": "ptuning", "svg.fonttype": "none", "font.size": 9.0, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False,
}


def draw_growth(rows: Sequence[dict[str, Any]], folder: str | Path) -> Path:
    """Four panels, one for each thing that grows: milliseconds over its size, both by powers, and what linear would be."""
    names = list(dict.fromkeys(row["what grows"] for row in rows))

    def fill(figure: Any) -> None:
        for place, name in enumerate(names):
            some = [row for row in rows if row["what grows"] == name]
            axes = figure.add_subplot(2, 2, place + 1)
            sizes = [row["size"] for row in some]
            axes.plot(sizes, [row["prompt ms"] for row in some], "o-", color="C0", markersize=3, label="reading the prompts")
            if "attention ms" in some[0]:
                axes.plot(sizes, [row["attention ms"] for row in some], "^:", color="C2", markersize=3, label="attention")
            axes.plot(sizes, [row["step ms"] for row in some], "s-", color="C1", markersize=3, label="one decode step")
            smallest = some[0]["prompt ms"]
            axes.plot(sizes, [smallest * size / sizes[0] for size in sizes], "--", color="0.6", linewidth=1, label="linear")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel(name)
            axes.set_ylabel("milliseconds")
            axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
            low = min(min(row["prompt ms"], row["step ms"]) for row in some)
            axes.set_ylim(0.5 * low, 3 * max(max(row["prompt ms"], row["step ms"]) for row in some))
            axes.legend(fontsize=7, frameon=False)

    return _drawn(Path(folder) / "growth.svg", (9.0, 6.5), fill)


def draw_half_loss(results: Sequence[dict[str, Any]], folder: str | Path) -> Path:
    """Two panels: the losses of both formats over the steps, and their difference."""

    def fill(figure: Any) -> None:
        whole, half = (row["losses"] for row in results)
        steps = range(1, len(whole) + 1)
        axes = figure.add_subplot(1, 2, 1)
        axes.plot(steps, whole, label="float32 frozen weights", linewidth=1.5)
        axes.plot(steps, half, label="bfloat16 frozen weights", linewidth=0.8)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.legend(fontsize=7, frameon=False)
        axes = figure.add_subplot(1, 2, 2)
        axes.plot(steps, [low - full for low, full in zip(half, whole, strict=True)], linewidth=0.8, color="C3")
        axes.set_xlabel("step")
        axes.set_ylabel("bfloat16 less float32")

    return _drawn(Path(folder) / "half_loss.svg", (9.0, 3.2), fill)


def _drawn(path: Path, inches: tuple[float, float], fill: Any) -> Path:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        from matplotlib.figure import Figure  # no pyplot: nothing is shown, and no state is kept

        figure = Figure(figsize=inches, layout="constrained")
        fill(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": "ptuning"})
    return path
