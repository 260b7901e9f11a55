"""The functions of the page as a client may call them: how many values each takes, and of which kind.

Whatever a body holds is checked here before gradio sees it. All inputs of the page are texts, numbers, switches or choices
out of a few, so anything that has parts of its own is refused: gradio would take it for a file and fetch what it names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    "textbox": "a text", "dropdown": "a text", "radio": "a text", "number": "a number", "slider": "a number",
    "checkbox": "true or false",
}  # fmt: skip
"""Of gradio's components, those whose values have no parts."""

_FILE_NAMES = frozenset({"path", "url", "meta", "_type", "orig_name", "mime_type", "is_stream"})
"""What gradio knows a file by."""


class RefusedError(Exception):
    """A request that goes no further.

    Args:
        status: of HTTP.
        message: for the client: what is wrong, and what would be right.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Input:
    """One value that a function takes; None is always allowed, and means that a field is empty.

    Attributes:
        name: for messages.
        kind: one of the values of :data:`KINDS`.
        choices: the only values there are; empty: all.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Refuse what is not of the kind.

        Raises:
            RefusedError: with what was given and what is allowed.
        """
        if value is None:
            return
        if isinstance(value, bool):
            fine = self.kind == "true or false"
        elif isinstance(value, int | float):
            fine = self.kind == "a number"
        else:
            fine = isinstance(value, str) and self.kind == "a text"
        if not fine:
            raise RefusedError(400, f"{self.name}: {_kind_of(value)} was given; allowed is {self.kind}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RefusedError(400, f"{self.name}: {value} was given; allowed are finite numbers")
        if self.choices and value not in self.choices:
            allowed = ", ".join(self.choices)
            raise RefusedError(400, f"{self.name}: {json.dumps(value[:40])} was given; allowed are {allowed}")


@dataclass(frozen=True)
class Function:
    """What a press on the page calls.

    Attributes:
        number: of gradio's.
        name: the public one, or None.
        streams: whether it answers in pieces, through the queue.
        inputs: its values, in their order.
    """

    number: int
    name: str | None
    streams: bool
    inputs: tuple[Input, ...]

    def checked(self, data: Any, max_characters: int) -> list[Any]:
        """The values, each of its kind.

        A text that is longer than any the page accepts is cut to one character more than that: it is still too long for
        whoever reads it, and nothing larger is carried around for that.

        Args:
            data: of the body.
            max_characters: of a text.

        Raises:
            RefusedError: with the value that is wrong.
        """
        if not isinstance(data, list):
            raise RefusedError(400, f"data: {_kind_of(data)} was given; allowed is a list")
        if len(data) != len(self.inputs):
            names = ", ".join(one.name for one in self.inputs) or "none"
            raise RefusedError(400, f"data: {len(data)} values were given; needed are {len(self.inputs)} ({names})")
        for one, value in zip(self.inputs, data, strict=True):
            one.check(value)
        return [value[: max_characters + 1] if isinstance(value, str) else value for value in data]


def functions_of(blocks: Any) -> dict[int, Function]:
    """What a client may call, by gradio's numbers. What happens when a page is left is not among it: only its connection
    tells that.

    Args:
        blocks: gradio's, with the page laid out.

    Raises:
        KeyError: a component whose values have parts: nothing here knows how to check those.
    """
    found = {}
    for number, one in blocks.fns.items():
        if any(event == "unload" for _, event in one.targets):
            continue
        name = one.api_name if one.api_visibility == "public" else None
        inputs = tuple(_input_of(block) for block in one.inputs)
        found[number] = Function(number, name or None, bool(one.queue), inputs)
    return found


def _input_of(block: Any) -> Input:
    kind = block.get_block_name()
    choices = tuple(value for _, value in block.choices) if kind == "radio" else ()
    return Input(block.elem_id, KINDS[kind], choices)


def refuse_files(body: Mapping[str, Any]) -> None:
    """Refuse a body that holds a file or a path wherever it may stand, also where it would not be read.

    Raises:
        RefusedError: it does.
    """
    waiting: list[Any] = [body]
    while waiting:  # no recursion: the body decides how deep it is
        value = waiting.pop()
        if isinstance(value, dict):
            if value is not body and _FILE_NAMES & value.keys():
                raise RefusedError(400, "the body holds a file or a path; no function of the page takes one")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
