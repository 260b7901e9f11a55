"""The one error class for mistakes that a user can mend."""


class UserError(ValueError):
    """Input that cannot be used as given: a file, a flag, a checkpoint, a setting.

    The message says what was given, what is allowed, where it stands (``file:line``, flag or key) and what to do
    about it. The command line prints it as one line and exits with code 2; Python callers can catch it as an
    ordinary :class:`ValueError`.
    """


class GenerationError(RuntimeError):
    """An answer that cannot be given: the model's scores are NaN or infinite.

    The published code turned such scores into one fixed token, so a broken model answered in blanks.
    """
