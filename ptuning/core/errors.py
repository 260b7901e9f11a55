"""The error classes: a mistake that a user can mend, and what ends an answer or a run."""

import errno
import os


class UserError(ValueError):
    """Input that cannot be used as given: a file, a flag, a checkpoint, a setting.

    The message says what was given, what is allowed, where it stands (``file:line``, flag or key) and what to do
    about it. It is one line, whatever names and texts from outside stand in it. The command line prints it and exits
    with code 2; Python callers can catch it as an ordinary :class:`ValueError`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))


class QuestionTooLongError(UserError):
    """A question that alone leaves no room for an answer.

    Args:
        message: what to do about it.
        tokens: of the question.
        limit: of prompt and answer together, in tokens.
    """

    def __init__(self, message: str, tokens: int, limit: int) -> None:
        super().__init__(message)
        self.tokens, self.limit = tokens, limit


class GenerationError(RuntimeError):
    """An answer that cannot be given: the model's scores are NaN or infinite.

    The published code turned such scores into one fixed token, so a broken model answered in blanks.
    """


class TrainingError(RuntimeError):
    """Training that cannot continue: a loss or a gradient that is not a number, or memory that does not suffice.

    What was saved stays as it is; the message says where it lies and what to change.
    """


class OutputError(OSError):
    """A file that cannot be written, or an output folder that went away while a run was writing to it.

    What was written before stays whole. It is an :class:`OSError` with the usual ``errno``, ``strerror`` and
    ``filename``; as text it is one line for the user.

    Args:
        path: the file or folder.
        number: of the system's error.
        more: what is left, what to do; None: what usually helps against this error.
        what: what went wrong; None: the system's words.
    """

    def __init__(self, path: object, number: int, more: str | None = None, what: str | None = None) -> None:
        super().__init__(number, os.strerror(number), str(path))
        self.what = what or f"cannot be written ({self.strerror})"
        self.more = _REMEDIES.get(number, "") if more is None else more

    def __str__(self) -> str:
        return f"{self.filename}: {self.what}" + (f"; {self.more}" if self.more else "")


_REMEDIES = {
    errno.ENOSPC: "make room on this disk, or name a folder on another one",
    errno.EDQUOT: "make room on this disk, or name a folder on another one",
    errno.EFBIG: "files may not grow larger here (ulimit -f): raise that limit, or name a folder on another disk",
    errno.ENOENT: "its folder is not there any more",
    errno.ENOTDIR: "its folder is not there any more",
    errno.ELOOP: "it is a symbolic link, and nothing is written through links: remove it",
    errno.EROFS: "name another folder",
    errno.EACCES: "name another folder",
    errno.EPERM: "name another folder",
    errno.ENAMETOOLONG: "give it a shorter name",
}


class StoppedError(RuntimeError):
    """A run that a signal ended, after its state was saved.

    Args:
        message: where the run stopped and how to resume it.
        exit_code: of the process, 128 + number of the signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's, torch's on an accelerator, or torch's on the CPU.

    torch is not imported for it; its own class is a RuntimeError of that name.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
