"""Lists of turns (ShareGPT's from/value, OpenAI's and ChatGLM3's role/content) as questions and replies."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptuning.core.characters import is_blank
from ptuning.core.errors import UserError
from ptuning.core.reading import listed, shortened
from ptuning.data.row_values import UnusableRow, kind_of, list_value

_ROLES = {
    **dict.fromkeys(("user", "human"), "question"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "chatglm", "bot", "model"), "reply"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation"), "tool"
    ),
}
_KEYS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True)
class Rounds:
    """A dialogue: its (question, reply) pairs, the system text before them, and whether a last question was left out
    because nobody replied to it."""

    pairs: list[tuple[str, str]]
    system: str
    question_left: bool


def rounds_of(record: dict[str, Any], column: str, source: str) -> Rounds:
    """The rounds of the turns in ``column``, oldest first.

    Raises :class:`UserError` with the place and the number of the turn where it is malformed, and :class:`UnusableRow`
    for a dialogue that ChatGLM-6B's prompt has no form for.
    """
    turns = list_value(
        record.get(column), column, source, 'turns like {"role": "user", "content": "…"}', "correct that row"
    )
    if not turns:
        raise UnusableRow("empty dialogue")
    system: list[str] = []
    pairs: list[tuple[str, str]] = []
    question: str | None = None
    for part, text in _parts(turns, column, source):
        if part == "tool":
            raise UnusableRow("tool or function turns")
        if part == "system":
            if pairs or question is not None:
                raise UnusableRow("system text after the first question")
            system.append(text)
        elif part == "question":
            if question is not None:
                raise UnusableRow("two questions in a row")
            question = text
        elif question is None:
            raise UnusableRow("two replies in a row" if pairs else "starts with a reply")
        else:
            pairs.append((question, text))
            question = None
    if not pairs:
        raise UnusableRow("no reply")
    return Rounds(pairs, "\n".join(text for text in system if not is_blank(text)), question is not None)


def _parts(turns: list[Any], column: str, source: str) -> Iterator[tuple[str, str]]:
    """(question, reply, system or tool; text) of every turn."""
    for number, turn in enumerate(turns, 1):
        place = f"{source}: turn {number} of {column!r}"
        if not isinstance(turn, dict):
            raise UserError(
                f'{place} must be an object like {{"role": "user", "content": "…"}}, but is {kind_of(turn)}; correct it'
            )
        keys = next((keys for keys in _KEYS if keys[0] in turn), None)
        if keys is None:
            raise UserError(
                f"{place} has no role (has: {listed(turn) or 'nothing'}); a turn is "
                '{"role": "user", "content": "…"} or {"from": "human", "value": "…"}'
            )
        role = turn[keys[0]]
        part = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if part is None:
            near = difflib.get_close_matches(shortened(role, 60).lower(), _ROLES, n=1)
            raise UserError(
                f"{place} has the role {shortened(repr(role), 60)}; allowed are user (human), assistant (gpt) and system"
                + (f"; did you mean {near[0]!r}?" if near else "; correct it")
            )
        if part == "tool" or turn.get("tool_calls") or turn.get("function_call"):
            yield "tool", ""
        else:
            yield part, _text(turn, keys[1], place)


def _text(turn: dict[str, Any], key: str, place: str) -> str:
    """The text of a turn: a text, null (""), or OpenAI's list of text parts."""
    if key not in turn:
        raise UserError(f"{place} has no {key!r} (has: {listed(turn)}); correct it")
    value = turn[key]
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if any(isinstance(part, dict) and part.get("type", "text") != "text" for part in value):
            raise UnusableRow("images or other parts that are not text")
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise UserError(f"{place}: {key!r} must be a text, but holds {kind_of(value)}; write it in quotes")
