"""The bounds of what can be set about an answer, the same at every door: HTTP, the page, the terminal and Python.

What stands outside would not be followed, or would break a computation in which other answers take part: float32 makes 0
of 1e-50 and infinity of 1e39, and an integer tensor holds nothing above 2^63 - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from ptuning.core.errors import UserError

MAX_TOKENS = 2**31 - 1
"""For limits in tokens; what a model can hold is less."""
MAX_SEED = 2**63 - 1
MAX_CHOICES = 16
"""Answers to one question."""
MAX_ROUNDS = 4000
"""Rounds of a history; a model holds some hundreds, the others are left out."""
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
"""Stop texts of a question, and characters of one: they are looked for at every token."""


class Bounds(NamedTuple):
    """What a number may be.

    Attributes:
        minimum: the smallest value, and ``maximum`` the largest; both are allowed.
        allowed: the same in words.
        whole: only whole numbers.
        zero: 0 is allowed as well, with a meaning of its own.
    """

    minimum: float
    maximum: float
    allowed: str
    whole: bool = False
    zero: bool = False


SAMPLING = {
    "temperature": Bounds(1e-30, 100, "0 (greedy), or 1e-30 to 100", zero=True),
    "top_p": Bounds(5e-324, 1, "more than 0, up to 1"),
    "top_k": Bounds(1, 2**31 - 1, "1 to 2147483647, or 0 for all tokens", whole=True, zero=True),
    "repetition_penalty": Bounds(0.01, 100, "0.01 to 100 (1: no penalty)"),
    "no_repeat_ngram_size": Bounds(1, 100, "1 to 100, or 0 for no rule", whole=True, zero=True),
    "seed": Bounds(0, MAX_SEED, f"0 to {MAX_SEED}", whole=True),
}
"""How tokens are drawn."""
COUNTS = {
    name: Bounds(1, maximum, f"1 to {maximum}", whole=True)
    for name, maximum in (
        ("max_length", MAX_TOKENS), ("max_new_tokens", MAX_TOKENS), ("num_beams", MAX_TOKENS), ("n", MAX_CHOICES)
    )
}  # fmt: skip
"""How much is answered."""


def checked(name: str, value: Any, bounds: Bounds | None = None) -> Any:
    """A setting as a plain ``int`` or ``float``.

    Args:
        name: one of :data:`SAMPLING` or :data:`COUNTS`, unless bounds are given.
        value: what was given; numbers of other libraries are welcome, True and "5" are none.
        bounds: of another setting.

    Raises:
        UserError: anything else, with what is allowed.
    """
    limits = bounds or SAMPLING.get(name) or COUNTS[name]
    fits = isinstance(value, Integral if limits.whole else Real) and not isinstance(value, bool)
    if fits and (limits.minimum <= value <= limits.maximum or (limits.zero and value == 0)):
        return int(value) if limits.whole else float(value)
    kind = "" if fits else "a whole number, " if limits.whole else "a number, "
    raise UserError(f"{name} {shown(value)} was given; allowed is {kind}{limits.allowed}")


def checked_size(name: str, value: Any, minimum: int = 1) -> int:
    """One of the engine's sizes. 0 is a value: it is refused where it makes no sense, and never stands for the default."""
    return int(checked(name, value, Bounds(minimum, float("inf"), f"{minimum} or more", whole=True)))


def checked_stops(texts: Sequence[str]) -> tuple[str, ...]:
    """Stop texts.

    Raises:
        UserError: one that is empty, too long or no text; too many; one text where several belong.
    """
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"stop {shown(texts)} was given; allowed is a list of texts")
    if len(texts) > MAX_STOPS:
        raise UserError(f"stop has {len(texts)} texts; allowed are at most {MAX_STOPS}")
    if any(not text for text in texts):
        raise UserError("a stop text is empty; leave it out")
    if any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise UserError(f"stop: a stop text may have {MAX_STOP_CHARACTERS} characters at most")
    return tuple(texts)


def checked_history(rounds: Sequence[Any]) -> None:
    """Refuse a history of too many rounds.

    Raises:
        UserError: with how many there may be.
    """
    if len(rounds) > MAX_ROUNDS:
        raise UserError(f"history has {len(rounds)} rounds; allowed are at most {MAX_ROUNDS}: leave old ones out")


def shown(value: Any) -> str:
    """What was given, as a message can repeat it: Python refuses to write whole numbers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "(a number of more than 38 digits)"
    text = str(value) if isinstance(value, Real) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
