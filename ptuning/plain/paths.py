"""Paths as a user reads and types them: where relative ones begin, and how one stands in a command."""

import os
import shlex


def working_directory() -> str:
    """The working directory, for messages; it may have been deleted while the process runs."""
    try:
        return os.getcwd()
    except OSError:
        return "deleted: relative paths lead nowhere"


def path_argument(path: str | os.PathLike[str]) -> str:
    """A path as an argument of a command: one that begins like a flag, or like a home folder, is none."""
    text = os.fspath(path)
    return os.path.join(os.curdir, text) if text.startswith(("-", "~")) else text


def pasted(path: str | os.PathLike[str]) -> str:
    """The same with quotes where a shell needs them."""
    return shlex.quote(path_argument(path))
