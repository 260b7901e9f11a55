"""The checkpoints of a run on disk: which are whole, where a run starts, and how a new one appears all at once.

A checkpoint is written into a hidden folder and renamed when it is whole, so that a folder ``checkpoint-N`` is either
complete or not there, whenever the process may be killed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from ptuning.plain.errors import UserError
from ptuning.tuned.weight_files import check_whole

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Beside the trainer's own state: the settings and rows of the run, and the running mean of the loss."""

_NAME = re.compile(r"checkpoint-(\d+)")
_STAGING = ".saving"
_STATE = "trainer_state.json"


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the whole checkpoints in an output folder, by their step; half-written ones are left out."""
    return [item for item in _numbered(Path(output_dir)) if what_is_broken(item) is None]


def _numbered(folder: Path) -> list[Path]:
    found = [
        (int(match.group(1)), item)
        for item in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(item.name)) and item.is_dir()
    ]
    return [item for _, item in sorted(found)]


def what_is_broken(checkpoint: Path) -> str | None:
    """Say what keeps a folder from being a whole checkpoint; None where it is one.

    Other programs (the published trainer, a copy that was cut short) do not write by renaming, so the files are looked at:
    the state must be readable and weight files must have their full length.
    """
    state = checkpoint / _STATE
    if not state.is_file():
        return f"no {_STATE}"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return f"{_STATE} is cut short"
    for file in sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin"), *checkpoint.glob("*.pt")]):
        try:
            check_whole(file)
        except UserError as error:
            return str(error)
    return None


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
        return _resume(str(wish), folder)
    if getattr(training, "overwrite_output_dir", False) or not folder.exists():
        return None
    found = checkpoints(folder)
    if found:
        raise UserError(
            f"--output_dir {folder} already holds a run, up to {found[-1].name}: go on from there with "
            "--resume_from_checkpoint auto, start anew with --overwrite_output_dir, or name another folder"
        )
    if any(folder.iterdir()):
        raise UserError(
            f"--output_dir {folder} exists and is not empty: add --overwrite_output_dir, or name another folder"
        )
    return None


def _resume(wish: str, folder: Path) -> str | None:
    if wish.lower() in ("auto", "true"):
        for item in _numbered(folder):
            broken = what_is_broken(item)
            if broken is not None:
                logger.warning("%s is skipped: it is not whole (%s)", item, broken)
        found = checkpoints(folder)
        if not found and wish.lower() == "true":
            raise UserError(f"--resume_from_checkpoint {wish}: no whole checkpoint-N folder in {folder}")
        return str(found[-1]) if found else None
    broken = what_is_broken(Path(wish))
    if broken is not None:
        there = ", ".join(str(path) for path in checkpoints(folder)) or f"none in {folder}"
        raise UserError(
            f"--resume_from_checkpoint {wish}: not a whole checkpoint of a run ({broken}); there are: {there}; to start "
            "from the weights of a prefix alone: --init_from"
        )
    return wish


def staging_folder(output_dir: str | Path) -> Path:
    """The hidden folder in which a checkpoint grows; what a killed process left there is removed by the next save."""
    return Path(output_dir) / _STAGING


def clear_staging(output_dir: str | Path) -> None:
    """Remove what a killed process left half-written."""
    shutil.rmtree(staging_folder(output_dir), ignore_errors=True)


def reveal(staged: Path, output_dir: str | Path) -> Path:
    """Flush a staged checkpoint to disk and give it its place under the output folder, replacing an older one.

    Returns:
        the path of the checkpoint.
    """
    for file in staged.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    final = Path(output_dir) / staged.name
    if final.exists():
        replaced = staged.with_name(f"{staged.name}.old")
        final.rename(replaced)
    staged.rename(final)
    clear_staging(output_dir)
    return final


def set_aside(output_dir: str | Path) -> None:
    """Rename the checkpoints of an earlier run to ``old-checkpoint-N``: a new run in their folder must not be mistaken for
    one that goes on from them."""
    for item in _numbered(Path(output_dir)):
        aside = item.with_name(f"old-{item.name}")
        shutil.rmtree(aside, ignore_errors=True)
        item.rename(aside)
        logger.warning("%s of an earlier run is now %s (--overwrite_output_dir)", item.name, aside)


def remove_old(output_dir: str | Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond ``save_total_limit``; the newest and the best one stay.

    Args:
        output_dir: of the run.
        limit: how many may stay; None or 0: all.
        keep: the best checkpoint.
    """
    if not limit or limit < 0:
        return
    found = _numbered(Path(output_dir))
    best = Path(keep).resolve() if keep else None
    old = [item for item in found[:-1] if item.resolve() != best]
    stay = limit - 1 - (1 if best is not None and best in [item.resolve() for item in found[:-1]] else 0)
    for item in old[: max(len(old) - max(stay, 0), 0)]:
        logger.info("Deleting older checkpoint %s (--save_total_limit %d)", item, limit)
        shutil.rmtree(item, ignore_errors=True)


def read_run(checkpoint: str | Path) -> dict[str, Any]:
    """What ``run.json`` of a checkpoint says; empty where another program wrote the checkpoint."""
    path = Path(checkpoint) / RUN_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_run(checkpoint: str | Path, description: Mapping[str, Any], loss: Mapping[str, float]) -> None:
    """Write ``run.json``.

    Args:
        checkpoint: the folder.
        description: settings and rows, to be compared when the run goes on.
        loss: the sums that the next log line needs.
    """
    values = {"description": dict(description), "loss": dict(loss)}
    (Path(checkpoint) / RUN_FILE).write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def changes_since(checkpoint: str | Path, description: Mapping[str, Any]) -> list[str]:
    """What differs between the run that wrote a checkpoint and the one that goes on: ``name: before → now``."""
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
