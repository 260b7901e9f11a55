"""The output folder of a run: not that of its own inputs, and nobody else's during the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from ptuning.core.errors import UserError
from ptuning.core.output_folder import OutputFolder, claimed

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

WRITTEN = (
    "generated_predictions.*", "*_results.json", "arguments.json", "trainer_state.json", "trainer_log.jsonl", "report.*",
    "comparison.json", "training_loss.png",
)
"""Names of the files that runs write into their output folder and the folders below it."""

_ROWS = ("train_file", "validation_file", "test_file", "general_file")


@contextmanager
def claimed_output(arguments: Arguments) -> Iterator[OutputFolder | None]:
    """Claim the output folder for this run during the block; one of several processes does so for all (the others
    get None).

    Raises:
        UserError: the folder cannot be made or written, another run is writing there, or the run would write over the
            model or the rows that it reads.
    """
    folder = str(arguments.training.output_dir)
    _refuse_own_inputs(arguments, folder)
    if arguments.training.process_index > 0:
        yield None
        return
    with claimed(folder) as place:
        yield place


def _refuse_own_inputs(arguments: Arguments, folder: str) -> None:
    for name in ("model_name_or_path", "tokenizer_name"):
        path = getattr(arguments.model, name)
        if path and os.path.isdir(path) and os.path.isdir(folder) and os.path.samefile(path, folder):
            raise UserError(f"--output_dir {folder}: this is the folder of the model (--{name}); name another folder")
    files = {name: getattr(arguments.data, name) for name in _ROWS}
    if arguments.data.mix is not None:
        files["mix_file"] = arguments.data.mix[0]
    for name, file in files.items():
        if file is not None and _would_be_written(Path(file), Path(folder)):
            raise UserError(f"--{name} {file}: this run would write over it; name another --output_dir than {folder}")


def _would_be_written(file: Path, folder: Path) -> bool:
    """Whether a file lies where a run writes one of its own."""
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a path that cannot be: refused where the file is read, or the folder made
        return False
    return inside and any(fnmatch(file.name, pattern) for pattern in WRITTEN)
