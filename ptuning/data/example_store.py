"""Training examples packed in a few arrays: small in memory, quick to write to disk, and read back without copying."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.private_cache import cache_root, check_file, private_folder
from ptuning.core.reading import guarded
from ptuning.data.preprocess import IGNORE_INDEX, Example

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
FILES_KEPT = 16
_FORMAT = "1"


class PackedExamples(Sequence[Example]):
    """Examples as a sequence; an :class:`Example` is made at every access.

    Args:
        arrays: what :func:`pack` gives. ``ids`` [sum of lengths] and ``bounds`` [n + 1]; the others [n]: ``starts`` (where
            ``<sop>`` stands), ``row`` (index into ``sources``), ``full_source``, ``full_target``, ``dropped_rounds``,
            ``cut_prompt``.
        sources: ``file:line`` of every row.
    """

    def __init__(self, arrays: Arrays, sources: Sequence[str]) -> None:
        self.arrays = arrays
        self.sources = sources

    def __len__(self) -> int:
        return len(self.arrays["starts"])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The example at ``index``, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        a = self.arrays
        ids = a["ids"][a["bounds"][index] : a["bounds"][index + 1]].tolist()
        start = int(a["starts"][index])
        return Example(
            input_ids=ids,
            labels=[IGNORE_INDEX] * start + ids[start:],
            source=self.sources[int(a["row"][index])],
            full_source=int(a["full_source"][index]),
            full_target=int(a["full_target"][index]),
            dropped_rounds=int(a["dropped_rounds"][index]),
            cut_prompt=bool(a["cut_prompt"][index]),
        )

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same examples of the same rows."""
        if not isinstance(other, PackedExamples):
            return NotImplemented
        same = all(np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items())
        return same and list(self.sources) == list(other.sources)

    __hash__ = None  # type: ignore[assignment]


def pack(examples: Sequence[Example], rows: Sequence[int]) -> Arrays:
    """The arrays of some examples; ``rows`` says which row each came from."""
    starts = [sum(label < 0 for label in example.labels) for example in examples]
    lengths = [len(example.input_ids) for example in examples]
    return {
        "ids": np.fromiter((i for example in examples for i in example.input_ids), np.int32, sum(lengths)),
        "bounds": np.cumsum([0, *lengths], dtype=np.int64),
        "starts": np.array(starts, np.int32),
        "row": np.array(rows, np.int64),
        "full_source": np.array([example.full_source for example in examples], np.int32),
        "full_target": np.array([example.full_target for example in examples], np.int32),
        "dropped_rounds": np.array([example.dropped_rounds for example in examples], np.int32),
        "cut_prompt": np.array([example.cut_prompt for example in examples], np.bool_),
    }


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Several packs as one, in their order."""
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "bounds"}
    lengths = [np.diff(part["bounds"]) for part in parts]
    arrays["bounds"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    return arrays


# --- on disk


def cache_folder() -> Path | None:
    """Where prepared rows are kept: ``$PTUNING_CACHE``, or the place that the system has for caches; made where missing.

    None, with a line in the log, where it cannot be used, or where others could write to it: what lies there is learnt.
    """
    named_folder = os.environ.get("PTUNING_CACHE")
    try:
        if named_folder:
            return private_folder(Path(named_folder).expanduser().absolute())
        return private_folder(cache_root() / "ptuning" / "examples", own=2)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home for ~
        logger.warning("prepared rows cannot be kept, nor kept ones be read: %s", error)
        return None


def fingerprint(texts: Iterable[Any], settings: dict[str, Any]) -> str:
    """A name for what comes out of these texts with these settings."""
    digest = hashlib.sha256(json.dumps({"format": _FORMAT, **settings}, sort_keys=True, default=str).encode())
    for text in texts:
        digest.update(repr(text).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def read_arrays(path: Path, rows: int | None = None) -> Arrays | None:
    """The arrays in ``path``, mapped and not copied; None where there are none, the file is damaged, or it is of other
    rows than so many."""
    from safetensors import safe_open

    if not os.path.isfile(path):
        return None
    try:
        with guarded(path, "file of prepared rows"):
            check_file(path)
        # PyTorch maps the file; the NumPy reader copies it.
        with guarded(path, "file of prepared rows"), safe_open(path, framework="pt") as file:
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - not a mapping
            expected = (file.metadata() or {}).get("sha256")
    except UserError as error:
        logger.warning("the prepared rows cannot be read and are prepared again: %s", error)
        return None
    if expected != _checksum(arrays) or not _fits(arrays, rows):
        logger.warning("%s: the prepared rows are damaged; they are prepared again", path)
        return None
    os.utime(path)  # the least recently used are the first to go
    return arrays


def _fits(arrays: Arrays, row_count: int | None) -> bool:
    """Whether these are the arrays of :func:`pack`, of its types, and every index in them lies where it may."""
    expected = pack([], [])
    if set(arrays) != set(expected) or any(arrays[name].dtype != like.dtype for name, like in expected.items()):
        return False
    bounds, starts, rows = arrays["bounds"], arrays["starts"], arrays["row"]
    each = [array for name, array in arrays.items() if name not in ("ids", "bounds")]
    if any(array.ndim != 1 for array in arrays.values()) or any(len(array) != len(starts) for array in each):
        return False
    lengths = np.diff(bounds)
    whole = len(bounds) == len(starts) + 1 and bounds[0] == 0 and bounds[-1] == len(arrays["ids"])
    if not whole or (row_count is not None and (rows >= row_count).any()):
        return False
    counts = (lengths, arrays["ids"], starts, rows)
    return bool((starts <= lengths).all() and all((count >= 0).all() for count in counts))


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays to ``path``, whole or not at all, and delete what was used longest ago. A cache that cannot be
    written is mentioned, and nothing else."""
    from safetensors.numpy import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_whole(path) as temporary:
            save_file(arrays, temporary, metadata={"sha256": _checksum(arrays)})
        files = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in files[FILES_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s: the prepared rows cannot be kept (%s)", path, error)


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return digest.hexdigest()
