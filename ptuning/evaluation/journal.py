"""Answers on disk as they are made, so that a killed evaluation resumes where it was.

During a run ``generated_predictions.jsonl`` grows by one line an answer, in the order in which they are made. In
the end it is written again in the order of the rows, with ``generated_predictions.txt`` beside it.
``generated_predictions.settings.json`` says what the answers depend on; answers of other settings, rows or weights are
never continued.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ptuning.core.atomic import LineFile, replace_when_whole, writing
from ptuning.core.errors import OutputError, UserError
from ptuning.core.reading import guarded, open_regular, parse_json, read_json, read_lines
from ptuning.evaluation.answers import ANSWERS_FILE, PREDICTIONS_FILE, ScoredAnswer, parse_answer, published_text

logger = logging.getLogger(__name__)

SETTINGS_FILE = "generated_predictions.settings.json"
PREVIOUS_FILE = "generated_predictions.previous.jsonl"
_REMEDY = "check its permissions and the disk, or name another --output_dir"


class AnswerJournal:
    """The answers of one evaluation, kept in a folder.

    Args:
        folder: made where missing.
        fingerprint: what the answers depend on, by names a user knows; must go into JSON.
        rows: how many answers there will be.
        start_over: leave out what an earlier run wrote, even where it could be continued.

    Attributes:
        answers: by row; those that an earlier run left are in it from the start.

    Raises:
        UserError: the folder cannot be written.
        OutputError: nor can it any more; what was answered before is kept.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], rows: int, *, start_over: bool = False) -> None:
        self.folder, self.rows = folder, rows
        self.path = folder / ANSWERS_FILE
        self.answers: dict[int, ScoredAnswer] = {}
        self._file: LineFile | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink():
                logger.warning("%s was a link to another file; the answers of this run take its place", self.path)
                self.path.unlink()
            if not start_over and self.path.is_file() and self._is_ours(dict(fingerprint)):
                self._read()
            else:
                self._start(dict(fingerprint), keep=not start_over)
            self._file = LineFile(self.path)
        except OutputError:
            raise
        except OSError as error:
            raise UserError(f"--output_dir: cannot write {error.filename or folder}: {error.strerror}") from None
        if self.answers:
            logger.info("%s: resuming with %d of %d rows answered", self.path, len(self.answers), rows)

    def _is_ours(self, fingerprint: dict[str, Any]) -> bool:
        """Whether the answers there are of the same settings; says what differs where they are not."""
        before = self._settings()
        if before is None:
            logger.warning("%s: nothing beside it says how it was made; starting over", self.path)
            return False
        now = json.loads(json.dumps(fingerprint))
        names = [*now, *(name for name in before if name not in now)]
        changed = [_change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]
        if changed:
            logger.warning("%s: made with other settings (%s); starting over", self.path, ", ".join(changed))
        return not changed

    def _settings(self) -> dict[str, Any] | None:
        """What the answers there were made with; None if unknown."""
        try:
            return read_json(self.folder / SETTINGS_FILE)
        except UserError:
            return None

    def _read(self) -> None:
        """Take over the answers of a run that was interrupted, and drop a line that it did not finish."""
        whole = 0
        with guarded(self.path, remedy=_REMEDY), open_regular(self.path) as file:
            for line in read_lines(file, self.path):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    answer = parse_answer(parse_json(line))
                except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                    logger.warning("%s: a damaged line is left out; its row will be answered again", self.path)
                    continue
                if 0 <= answer.index < self.rows:
                    self.answers[answer.index] = answer
        with writing(self.path):
            os.truncate(self.path, whole)

    def _start(self, fingerprint: dict[str, Any], *, keep: bool) -> None:
        """An empty journal. One that was not finished, or is not ours, is put aside: it may have taken hours."""
        if self.path.is_file():
            if keep and self._is_unfinished():
                self.path.replace(self.folder / PREVIOUS_FILE)
                logger.warning("the answers that were there are now in %s", self.folder / PREVIOUS_FILE)
            else:
                self.path.unlink()
        (self.folder / PREDICTIONS_FILE).unlink(missing_ok=True)
        # After the old answers are gone: new settings never stand beside old answers.
        _write(self.folder / SETTINGS_FILE, json.dumps(fingerprint, ensure_ascii=False, indent=2) + "\n")

    def _is_unfinished(self) -> bool:
        settings = self._settings()
        if settings is None or not isinstance(settings.get("rows"), int):
            return True
        with open_regular(self.path) as file:
            return sum(1 for _ in read_lines(file, self.path)) < settings["rows"]

    def append(self, answers: Iterable[ScoredAnswer]) -> None:
        """Keep further answers; they are in the operating system's hands when this returns."""
        if self._file is None:
            raise ValueError("the journal is closed")
        for answer in answers:
            self._file.append(answer.line())
            self.answers[answer.index] = answer

    def close(self) -> None:
        """Write ``generated_predictions.txt`` from the answers there are, in the order of the rows; where every row is
        answered, the .jsonl in the same order as well."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        if len(self.answers) < self.rows:
            logger.warning(
                "%s: %d of %d rows are answered; the same command resumes from there",
                self.path, len(self.answers), self.rows,
            )
        ordered = [self.answers[index] for index in sorted(self.answers)]
        if len(ordered) == self.rows:
            _write(self.path, "".join(answer.line() for answer in ordered))
        _write(self.folder / PREDICTIONS_FILE, published_text(ordered))

    def __enter__(self) -> AnswerJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and issubclass(kind, OutputError) and self._file is not None:
            self._file.close()  # where nothing can be written, what follows the answers cannot be, either
            self._file = None
        self.close()


def _write(path: Path, text: str) -> None:
    with replace_when_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _change(name: str, before: Any, now: Any) -> str:
    short = all(not isinstance(value, str) or len(value) < 40 for value in (before, now))
    return f"{name} {before} → {now}" if short and not isinstance(before, dict) else name
