"""What an error message says after an unknown name: the nearest known one, or all of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``did you mean NAME?`` where a known name is similar, else ``there are NAME, NAME, ...``."""
    matches = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {matches[0]}?" if matches else f"there are {', '.join(known)}"
