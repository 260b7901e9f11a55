"""The checkpoints of a run on disk: which are whole, where a run starts, and how a new one appears all at once.

A checkpoint is written into a hidden folder and renamed when it is whole, so that a folder ``checkpoint-N`` is either
complete or not there, whenever the process may be killed. The list of its files (:mod:`ptuning.checkpoint.file_list`) is
written last; a run resumes only from a checkpoint that agrees with its list.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from ptuning.checkpoint.file_list import LIST_FILE, what_disagrees, write_file_list
from ptuning.checkpoint.run_state import STATE_FILE, warn_of_other_processes, what_is_missing, what_is_unreadable
from ptuning.checkpoint.weight_files import check_whole
from ptuning.core.atomic import remove_tree, replace_when_whole
from ptuning.core.errors import OutputError, UserError
from ptuning.core.output_folder import LOCK_FILE
from ptuning.core.reading import read_json

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Beside the trainer's own state: the settings and rows of the run, and the running mean of the loss."""

_NAME = re.compile(r"checkpoint-(\d+)")
_STAGING = ".saving"


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the whole checkpoints in an output folder, by their step; half-written ones are left out."""
    return [item for item in _numbered(Path(output_dir)) if what_is_broken(item) is None]


def _numbered(folder: Path) -> list[Path]:
    numbered = [
        (int(match.group(1)), item)
        for item in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(item.name)) and item.is_dir()
    ]
    return [item for _, item in sorted(numbered)]


def what_is_broken(checkpoint: Path) -> str | None:
    """Say what keeps a folder from being a whole checkpoint; None where it is one.

    Cheap: names, sizes, headers. Other programs (the published trainer, a copy that was cut short) do not write by
    renaming, so the files are checked: the state must be readable and weight files must have their full length.
    """
    if not (checkpoint / STATE_FILE).is_file():
        return f"no {STATE_FILE}"
    try:
        read_json(checkpoint / STATE_FILE, "it is cut short or damaged")
        read_run(checkpoint)
        for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth"):
            for file in sorted(checkpoint.glob(pattern)):
                if not file.is_file():
                    return f"{file.name} is no file"
                check_whole(file)
    except (UserError, OSError) as error:
        return str(error)
    return what_disagrees(checkpoint, contents=False)


def why_not_resumable(checkpoint: Path) -> str | None:
    """Say what keeps a run from resuming exactly where a checkpoint was written; None if nothing does.

    Reads every file that the checkpoint's list names, about a second for each GB or two. A checkpoint of another program
    has no list; of those the state files must be there and readable.
    """
    return (
        what_is_broken(checkpoint)
        or _lost_list(checkpoint)
        or what_disagrees(checkpoint)
        or what_is_missing(checkpoint)
        or what_is_unreadable(checkpoint)
    )


def _lost_list(checkpoint: Path) -> str | None:
    """Say that a checkpoint was written with a list of its files, and has none now."""
    lost = read_run(checkpoint).get("file_list") and not (checkpoint / LIST_FILE).is_file()
    return f"{LIST_FILE} is missing: nothing tells whether its files are as they were written" if lost else None


def starting_point(training: Seq2SeqTrainingArguments) -> str | None:
    """Return the checkpoint to resume from, or None to train from step 0.

    ``--resume_from_checkpoint`` takes a folder, ``auto`` (the last whole checkpoint; from the start where there is
    none) or ``true`` (the last one; there must be one).

    Raises:
        UserError: the output folder holds something and neither overwriting nor resuming was asked for, or the
            checkpoint to resume from is not there.
    """
    wish = training.resume_from_checkpoint
    folder = Path(str(training.output_dir))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: this is a file; name a folder")
    if wish and str(wish).lower() not in ("false", "no"):
        checkpoint = _resume(str(wish), folder)
        if checkpoint is not None and training.process_index == 0:
            warn_of_other_processes(Path(checkpoint), training.world_size)
        return checkpoint
    if getattr(training, "overwrite_output_dir", False) or not folder.exists():
        return None
    whole = checkpoints(folder)
    if whole:
        raise UserError(
            f"--output_dir {folder} already holds a run, up to {whole[-1].name}: resume from there with "
            "--resume_from_checkpoint auto, start from scratch with --overwrite_output_dir, or name another folder"
        )
    if any(item.name != LOCK_FILE for item in folder.iterdir()):
        raise UserError(
            f"--output_dir {folder} exists and is not empty: add --overwrite_output_dir, or name another folder"
        )
    return None


def _resume(wish: str, folder: Path) -> str | None:
    if wish.lower() in ("auto", "true"):
        skipped = 0
        for item in reversed(_numbered(folder)):
            reason = why_not_resumable(item)
            if reason is None:
                return str(item)
            logger.warning("%s is skipped: it is not whole (%s)", item, reason)
            skipped += 1
        if wish.lower() == "true":
            raise UserError(f"--resume_from_checkpoint {wish}: no whole checkpoint-N folder in {folder}")
        if skipped:
            logger.warning("%s: there is no checkpoint to resume from, so training starts at step 0", folder)
        return None
    reason = why_not_resumable(Path(wish))
    if reason is not None:
        others = [path for path in checkpoints(folder) if path.resolve() != Path(wish).resolve()]
        there = ", ".join(map(str, others)) or f"no others in {folder}"
        raise UserError(
            f"--resume_from_checkpoint {wish}: not a whole checkpoint of a run ({reason}); there are: {there}; to start "
            "from the weights of a prefix alone: --init_from"
        )
    return wish


def staging_folder(output_dir: str | Path) -> Path:
    """The hidden folder in which a checkpoint is written; leftovers of a killed process are removed by the next save."""
    return Path(output_dir) / _STAGING


def clear_staging(output_dir: str | Path) -> None:
    """Remove what a killed process left half-written."""
    remove_tree(staging_folder(output_dir))


def reveal(staged: Path, output_dir: str | Path) -> Path:
    """List the files of a staged checkpoint, flush them to disk and give it its place under the output folder, replacing
    an older one.

    Returns:
        the path of the checkpoint.
    """
    write_file_list(staged)
    for file in sorted(staged.rglob("*")):
        if file.is_file():
            _flush(file)
    _flush(staged)
    final = Path(output_dir) / staged.name
    replaced = staged.with_name(f"{staged.name}.old")
    if final.exists():
        final.rename(replaced)
    try:
        staged.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    _flush(final.parent)
    clear_staging(output_dir)
    return final


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if path.is_dir():
        with suppress(OSError):  # some systems cannot do this for folders
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def not_saved(error: OutputError, staged: Path, output_dir: str | Path) -> OutputError:
    """Remove a checkpoint that could not be written; return the error that names it and what is kept.

    Args:
        error: it may name the whole checkpoint: PyTorch does not say which file it was writing.
        staged: the checkpoint.
        output_dir: of the run.
    """
    written = [file for file in staged.rglob("*") if file.is_file()]
    last = max(written, key=lambda file: file.stat().st_mtime_ns, default=staged)
    file = last if error.filename == str(staged) else Path(str(error.filename))
    clear_staging(output_dir)
    saved = checkpoints(output_dir)
    kept = f"{saved[-1].name} is whole and kept" if saved else "nothing was saved before"
    how = "--resume_from_checkpoint auto" if saved else "--overwrite_output_dir"
    what = f"{staged.name} is not saved: {file.name} cannot be written ({error.strerror})"
    more = [kept, *([error.more] if error.more else []), f"then resume with the same command and {how}"]
    return OutputError(output_dir, error.errno or 0, "; ".join(more), what)


def set_aside(output_dir: str | Path) -> None:
    """Rename the checkpoints of an earlier run to ``old-checkpoint-N``: a new run in their folder must not be mistaken for
    one that resumes from them."""
    for item in _numbered(Path(output_dir)):
        aside = item.with_name(f"old-{item.name}")
        remove_tree(aside)
        item.rename(aside)
        logger.warning("%s of an earlier run is now %s: this one starts at step 0", item.name, aside)


def remove_old(output_dir: str | Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond ``save_total_limit``; the newest and the best one stay.

    Args:
        output_dir: of the run.
        limit: how many may stay; None or 0: all.
        keep: the best checkpoint.
    """
    if not limit or limit < 0:
        return
    numbered = _numbered(Path(output_dir))
    best = Path(keep).resolve() if keep else None
    old = [item for item in numbered[:-1] if item.resolve() != best]
    stay = limit - 1 - (1 if best is not None and best in [item.resolve() for item in numbered[:-1]] else 0)
    for item in old[: max(len(old) - max(stay, 0), 0)]:
        logger.info("Deleting older checkpoint %s (--save_total_limit %d)", item, limit)
        remove_tree(item)


def read_run(checkpoint: str | Path) -> dict[str, Any]:
    """What ``run.json`` of a checkpoint says; empty where another program wrote the checkpoint.

    Raises:
        UserError: it is damaged.
    """
    path = Path(checkpoint) / RUN_FILE
    values = read_json(path, "it is cut short or damaged") if path.is_file() else {}
    loss, description = values.get("loss") or {}, values.get("description") or {}
    numbers = isinstance(loss, dict) and all(type(value) in (int, float) for value in loss.values())
    if not numbers or not isinstance(description, dict):
        raise UserError(f"{path}: not what a run writes (description and loss); take another checkpoint")
    return values


def write_run(checkpoint: str | Path, description: Mapping[str, Any], loss: Mapping[str, float]) -> None:
    """Write ``run.json``.

    Args:
        checkpoint: the folder.
        description: settings and rows, to be compared when the run is resumed.
        loss: the sums that the next log line needs.
    """
    values = {"description": dict(description), "loss": dict(loss), "file_list": LIST_FILE}
    with replace_when_whole(Path(checkpoint) / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def changes_since(checkpoint: str | Path, description: Mapping[str, Any]) -> list[str]:
    """What differs between the run that wrote a checkpoint and the one that resumes: ``name: before → now``."""
    before = read_run(checkpoint).get("description") or {}
    now = json.loads(json.dumps(dict(description)))
    return [
        f"{name}: {_short(before.get(name))} → {_short(now.get(name))}"
        for name in dict.fromkeys((*before, *now))
        if before and before.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = "(not set)" if value is None else str(value)
    return text if len(text) < 60 else text[:57] + "…"


def barrier() -> None:
    """Wait for the other processes of a run, where there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
