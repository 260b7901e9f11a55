"""Write the JSON lines of benchmarks into the tables of docs/performance.md, and draw their pictures.

A table of the benchmark NAME stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``, headed by command, commit and machine;
text outside of such marks stays as it is. Marks of benchmarks that the file does not speak of keep what they hold.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import cell, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
Line = Mapping[str, Any]


def main(arguments: list[str]) -> int:
    """Rewrite the page; 1 where it has no place for a benchmark that was measured."""
    parser = argparse.ArgumentParser(prog="benchmark.sh record", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", default=["benchmarks.jsonl"], help="files of JSON lines (default: %(default)s)")
    parser.add_argument("--page", default=str(PAGE))
    parser.add_argument("--pictures", help="folder of the pictures (default: pictures beside the page)")
    options = parser.parse_args(arguments)
    page = Path(options.page)
    pictures = Path(options.pictures) if options.pictures else page.parent / "pictures"
    lines: dict[str, list[Line]] = {}
    for file in options.files:
        for text in Path(file).read_text(encoding="utf-8").splitlines():
            if text.startswith("{"):
                line = json.loads(text)
                lines.setdefault(line["benchmark"], []).append(line)
    sections = {name: "\n\n".join(section(line, pictures) for line in some) for name, some in lines.items()}
    text, missing = filled(page.read_text(encoding="utf-8"), sections)
    page.write_text(text, encoding="utf-8")
    print(f"written into {page}: {', '.join(name for name in sections if name not in missing) or 'nothing'}")
    if missing:
        print(f"no place for: {', '.join(missing)} (add <!-- {missing[0]} --> and <!-- /{missing[0]} -->)")
    return 1 if missing else 0


def filled(text: str, sections: Mapping[str, str]) -> tuple[str, list[str]]:
    """A page with its marked places filled, and the sections for which it has none."""
    missing = []
    for name, section_text in sections.items():
        marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
        if not marked.search(text):
            missing.append(name)
        text = marked.sub(lambda match, new=section_text: f"{match[1]}{new}\n{match[2]}", text)  # type: ignore[misc]
    return text, missing


def section(line: Line, pictures: Path) -> str:
    """Heading, table, remarks and picture of one line."""
    results = line["results"]
    rows = results if isinstance(results, list) else results.get("ways") or results["rows"]
    parts = [heading(line), table_of(line["benchmark"], rows), *remarks(line)]
    picture = draw(line, pictures)
    if picture is not None:
        parts.append(f"![{line['benchmark']}]({picture.parent.name}/{picture.name})")
    return "\n\n".join(parts)


def heading(line: Line) -> str:
    """What was run where, on one line."""
    machine = line["machine"]
    words = shlex.split(line.get("command") or line["benchmark"])
    # A place on the machine that measured means nothing to a reader.
    named = [Path(word).name if os.path.isabs(word) else word for word in words]
    parts = [machine.get("gpu"), machine["cpu"], machine["capability"], f"{machine['threads']} threads"]
    parts += [f"torch {machine['torch']}", f"load {machine['load']} at the end", f"commit {line['commit']}"]
    return f"`bash scripts/benchmark.sh {shlex.join(named)}` ({', '.join(str(part) for part in parts if part)})"


def table_of(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The benchmark's own columns; without such, every key with a plain value."""
    module = importlib.import_module(f"benchmarks.{name}")
    every = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list | dict))
    heads = [head for head in getattr(module, "HEADS", every) if any(row.get(head) not in (None, "") for row in rows)]
    return table(heads, [[_shown(row.get(head)) for head in heads] for row in rows])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:.0f}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else cell(value)


def remarks(line: Line) -> list[str]:
    """What a benchmark says beside its table."""
    name, settings, results = line["benchmark"], line["settings"], line["results"]
    sentences = []
    if "ceiling GB/s" in settings:
        sentences.append(f"Memory read at {settings['ceiling GB/s']} GB/s.")
    if name == "train":
        sentences += [
            f"{check['what']}: losses apart by at most {check['loss']:.1e}, prefix gradients by {check['gradient']:.1e} of "
            "the largest." for check in results["checks"]
        ]
        if settings.get("peft"):
            sentences.append("peft runs transformers' GLM, another model of the same size, so its loss is another number.")
    if name == "serving":
        sentences.append(f"Answers of a full batch equal to generate's: {results['equal answers']:.0%}.")
    if name == "startup":
        sentences += [f"Imports of the training: {row['imports s']:.2f} s." for row in results if "imports s" in row]
    if name == "growth":
        sentences += [
            f"Exponents over the whole range, {axis}: reading {fit['reading']:.2f}, decoding {fit['decoding']:.2f}."
            for axis, fit in results["fits"].items()
        ]
        sentences.append(f"Worse than linear: {'; '.join(results['flags']) or 'nothing'}.")
    return [" ".join(sentences)] if sentences else []


def draw(line: Line, folder: Path) -> Path | None:
    """The picture of a benchmark that has one."""
    from benchmarks.plots import draw_growth, draw_half_loss

    if line["benchmark"] == "growth":
        return draw_growth(line["results"]["rows"], folder)
    return draw_half_loss(line["results"], folder) if line["benchmark"] == "half_loss" else None
