"""Paths as a user reads and types them: where relative ones begin, and how one stands in a command."""

import os
import shlex


def working_directory() -> str:
    """The working directory, for messages; it may have been deleted while the process runs."""
    return "deleted: relative paths lead nowhere" if working_directory_is_gone() else os.getcwd()


def working_directory_is_gone() -> bool:
    """Whether the working directory was deleted."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def path_argument(path: str | os.PathLike[str]) -> str:
    """A path as an argument of a command: one that begins like a flag (``-``) or like a home folder (``~``) is none."""
    text = os.fspath(path)
    if text.startswith("-"):
        return os.path.join(os.curdir, text)
    return os.path.abspath(text) if text.startswith("~") else text


def pasted(path: str | os.PathLike[str]) -> str:
    """The same with quotes where a shell needs them."""
    return quoted(path_argument(path))


def quoted(word: str) -> str:
    """A word for a shell; control characters by number, in bash's ``$'...'``: as they are they could not be shown."""
    if word.isprintable():
        return shlex.quote(word)
    marks = {"'": "\\'", "\\": "\\\\"}
    return f"$'{''.join(marks.get(char, char) if char.isprintable() else _by_number(char) for char in word)}'"


def _by_number(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
