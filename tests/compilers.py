"""A C compiler for tests of everything around compiling: it does not optimise, and does the same work only once."""

import shutil
from pathlib import Path

# TMPDIR is the folder in which the caller compiles; all else of a command line is the same every time.
SCRIPT = """#!/bin/sh
case "$*" in *--version*) exec {compiler} "$@" ;; esac
target= previous=
for word in "$@"; do if [ "$previous" = -o ]; then target=$word; fi; previous=$word; done
kept="$0.$(echo "$*" | sed "s|$TMPDIR||g" | cksum | tr ' ' -)"
if [ ! -f "$kept" ]; then {compiler} "$@" -O0 -o "$kept.$$" && mv "$kept.$$" "$kept" || exit 1; fi
exec cp "$kept" "$target"
"""


def write_quick_compiler(folder: Path) -> Path:
    """Write it as ``cc`` into a folder, which it returns: for the front of PATH."""
    script = folder / "cc"
    script.write_text(SCRIPT.format(compiler=shutil.which("cc")), encoding="ascii")
    script.chmod(0o755)
    return folder
