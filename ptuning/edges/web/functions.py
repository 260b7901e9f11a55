"""The page's functions that clients may call: the number and the types of their arguments.

Every body is checked here before gradio sees it. All inputs of the page are strings, numbers, switches or choices of a few,
so that any object or list is rejected: gradio might take it for a file and fetch what it names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    "textbox": "a string", "dropdown": "a string", "radio": "a string", "number": "a number", "slider": "a number",
    "checkbox": "true or false",
}  # fmt: skip
"""gradio's components with scalar values, and the type of these in messages."""

_FILE_KEYS = frozenset({"path", "url", "meta", "_type", "orig_name", "mime_type", "is_stream"})
"""Keys by which gradio recognizes a file."""


class RefusedError(Exception):
    """A request that is not passed on to gradio.

    Args:
        status: HTTP status.
        message: for the client: what is wrong, and what is allowed.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Input:
    """One argument of a function; None is always allowed and means an empty field.

    Attributes:
        name: for messages.
        kind: one of the values of :data:`KINDS`.
        choices: the allowed values; empty: all.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Check the type and the choices of a value.

        Raises:
            RefusedError: with what was given and what is allowed.
        """
        if value is None:
            return
        if isinstance(value, bool):
            is_of_kind = self.kind == "true or false"
        elif isinstance(value, int | float):
            is_of_kind = self.kind == "a number"
        else:
            is_of_kind = isinstance(value, str) and self.kind == "a string"
        if not is_of_kind:
            raise RefusedError(400, f"{self.name}: {_kind_of(value)} was given; allowed is {self.kind}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RefusedError(400, f"{self.name}: {value} was given; allowed are finite numbers")
        if self.choices and value not in self.choices:
            allowed = ", ".join(self.choices)
            raise RefusedError(400, f"{self.name}: {json.dumps(value[:40])} was given; allowed are {allowed}")


@dataclass(frozen=True)
class Function:
    """A function that the page calls when a button is pressed.

    Attributes:
        number: gradio's ``fn_index``.
        name: the public name, or None.
        streams: whether it answers in pieces, through gradio's queue.
        inputs: its arguments, in their order.
    """

    number: int
    name: str | None
    streams: bool
    inputs: tuple[Input, ...]

    def checked(self, data: Any, max_characters: int) -> list[Any]:
        """The arguments, each checked.

        A string that is longer than the page accepts is cut to one character above that limit: the function still rejects
        it, and nothing larger is passed on.

        Args:
            data: the body's list of arguments.
            max_characters: the limit of a string.

        Raises:
            RefusedError: with the argument that is wrong.
        """
        if not isinstance(data, list):
            raise RefusedError(400, f"data: {_kind_of(data)} was given; allowed is a list")
        if len(data) != len(self.inputs):
            names = ", ".join(argument.name for argument in self.inputs) or "none"
            raise RefusedError(400, f"data: {len(data)} values were given; needed are {len(self.inputs)} ({names})")
        for argument, value in zip(self.inputs, data, strict=True):
            argument.check(value)
        return [value[: max_characters + 1] if isinstance(value, str) else value for value in data]


def functions_of(blocks: Any) -> dict[int, Function]:
    """The functions that a client may call, by gradio's numbers. The one for a closed page is not among them: gradio calls
    it itself when the page's connection ends.

    Args:
        blocks: gradio's, with the page built.

    Raises:
        KeyError: a component whose values are not scalars; they could not be checked here.
    """
    functions = {}
    for number, block_function in blocks.fns.items():
        if any(event == "unload" for _, event in block_function.targets):
            continue
        name = block_function.api_name if block_function.api_visibility == "public" else None
        inputs = tuple(_input_of(block) for block in block_function.inputs)
        functions[number] = Function(number, name or None, bool(block_function.queue), inputs)
    return functions


def _input_of(block: Any) -> Input:
    kind = block.get_block_name()
    choices = tuple(value for _, value in block.choices) if kind == "radio" else ()
    return Input(block.elem_id, KINDS[kind], choices)


def refuse_files(body: Mapping[str, Any]) -> None:
    """Reject a body with a file or path anywhere in it, even where nobody would read it.

    Raises:
        RefusedError: it has one.
    """
    unchecked: list[Any] = [body]
    while unchecked:  # no recursion: the client decides how deeply a body is nested
        value = unchecked.pop()
        if isinstance(value, dict):
            if value is not body and _FILE_KEYS & value.keys():
                raise RefusedError(400, "the body holds a file or a path; no function of the page takes one")
            unchecked += value.values()
        elif isinstance(value, list):
            unchecked += value


def _kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
