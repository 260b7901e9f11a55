"""Scored answers and the files they stand in: ours, the published trainer's, and LLaMA-Factory's.

``generated_predictions.jsonl`` is ours, one answer with all that is known about it a line; ``generated_predictions.txt`` has
the published ``{"labels": …, "predict": …}`` lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptuning.core.characters import whole_characters
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import guarded, is_regular, listed, open_regular, parse_json, read_lines

PREDICTIONS_FILE = "generated_predictions.txt"
ANSWERS_FILE = "generated_predictions.jsonl"
# reference and answer by the names that each tool gives them
_FORMS = (("reference", "answer"), ("labels", "predict"), ("label", "predict"))


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer.

    Attributes:
        index: place of its row in the file, from 0.
        reference: the reference reply in the form in which it is compared.
        answer: the reply, as a chat would show it.
        prompt: the question; "" where a file does not tell.
        history: earlier rounds.
        source: ``file:line`` of the row.
        finish_reason: ``stop`` (the model ended it) or ``length`` (the limit did); "" where a file does not tell.
        tokens: how many were generated, without the end token; None where a file does not tell.
        scores: of the pair, see :func:`ptuning.evaluation.metrics.scoring.score_pair`.
    """

    index: int
    reference: str
    answer: str
    prompt: str = ""
    history: list[list[str]] = field(default_factory=list)
    source: str = ""
    finish_reason: str = ""
    tokens: int | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """One line of ``generated_predictions.jsonl``, with its newline."""
        values: dict[str, Any] = {"index": self.index, "prompt": self.prompt}
        if self.history:
            values["history"] = self.history
        values |= {
            "reference": self.reference,
            "answer": self.answer,
            "scores": self.scores,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
            "source": self.source,
        }
        return _json_line(values)

    def published_line(self) -> str:
        """One line of ``generated_predictions.txt``, with its newline."""
        return _json_line({"labels": self.reference, "predict": self.answer})


def _json_line(values: dict[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        text = json.dumps(values)
    return text + "\n"


def parse_answer(record: dict[str, Any]) -> ScoredAnswer:
    """The answer that a line of our own file holds.

    Raises:
        KeyError, TypeError: it is not such a line.
    """
    index = record["index"]
    if isinstance(index, bool) or not isinstance(index, int) or not all(isinstance(record[name], str) for name in _FORMS[0]):
        raise TypeError("index, reference or answer is of another type")
    return ScoredAnswer(
        index=index,
        reference=record["reference"],
        answer=record["answer"],
        prompt=str(record.get("prompt", "")),
        history=[[whole_characters(str(text)) for text in turn] for turn in record.get("history") or ()],
        source=str(record.get("source", "")),
        finish_reason=str(record.get("finish_reason", "")),
        tokens=None if record.get("tokens") is None else int(record["tokens"]),
        scores={str(name): float(value) for name, value in (record.get("scores") or {}).items()},
    )


def read_answers(path: Path) -> list[ScoredAnswer]:
    """Read a predictions file in any of the forms, in the order of its rows; the scores in it are left out. A half of a
    character (a lone surrogate), which nothing can score or show, is U+FFFD.

    Each line is an object with ``labels`` and ``predict`` (the published trainer), ``prompt``, ``predict`` and ``label``
    (LLaMA-Factory), or ``reference`` and ``answer`` (ours; of an unfinished run the rows that are there, each once).

    Raises:
        UserError: no such file, nothing in it, or a line that is none of these, as ``file:line``.
    """
    if os.path.isdir(path) or not is_regular(path):
        what = "is a folder: name the file in it" if os.path.isdir(path) else "no such file"
        raise UserError(f"--metrics-only {path}: {what} (current directory: {working_directory()})")
    answers: dict[int, ScoredAnswer] = {}
    with guarded(path, "predictions file", "check its permissions and the disk"), open_regular(path) as file:
        for number, whole_line in enumerate(read_lines(file, path), start=1):
            line = whole_line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").removesuffix(b"\n")
            if line.strip():
                answer = _answer_of(line, f"{path}:{number}", len(answers))
                answers[answer.index] = answer
    if not answers:
        raise UserError(f"{path}: no predictions in this file; {_EXPECTED}")
    return [answers[index] for index in sorted(answers)]


_EXPECTED = 'a line is an object like {"labels": "…", "predict": "…"}'


def _answer_of(line: bytes, where: str, index: int) -> ScoredAnswer:
    try:
        record = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.colno}: not valid JSON: {error.msg}; {_EXPECTED}") from None
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}; {_EXPECTED}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: {_kind(record)} instead of an object; {_EXPECTED}")
    record = {name: whole_characters(value) if isinstance(value, str) else value for name, value in record.items()}
    names = next((form for form in _FORMS if set(form) <= set(record)), None)
    if names is None:
        has = listed(record) or "nothing"
        expected = " or ".join(" and ".join(form) for form in _FORMS)
        raise UserError(f"{where}: needs {expected} (has: {has})")
    for name in names:
        if not isinstance(record[name], str):
            raise UserError(f"{where}: {name} must be a text, but holds {_kind(record[name])}")
    ours = {name: record[name] for name in ("index", "tokens", "finish_reason", "source", "history") if name in record}
    values = {"index": index} | ours | {"reference": record[names[0]], "answer": record[names[1]]}
    values |= {"prompt": record.get("prompt") or "", "source": str(record.get("source") or where)}
    try:
        return parse_answer(values)
    except (TypeError, ValueError, OverflowError) as error:
        reason = error if "of another type" in str(error) else "tokens or history is of another type"
        raise UserError(f"{where}: {reason}; {_EXPECTED}") from None


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def published_text(answers: Sequence[ScoredAnswer]) -> str:
    """The text of ``generated_predictions.txt``."""
    return "".join(answer.published_line() for answer in answers)
