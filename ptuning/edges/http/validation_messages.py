"""pydantic's validation errors as messages for the client, without anything about how the server works inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MESSAGES = {  # by pydantic's type of the error
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "json_invalid": "is not valid JSON",
}
_LIMITS = {  # pydantic's type of the error: its name for the limit, and what is allowed
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "{} or less"),
    "less_than": ("lt", "less than {}"),
}
_OWN_TYPES = {  # of the errors that our schemas raise; their messages are written for clients already
    "object_type", "unknown_parameter", "unsupported_parameter", "number_type", "whole_number", "number_size", "round_type",
    "content_type", "part_type", "stop_type", "text_size",
}  # fmt: skip
_MAX_VALUE_SHOWN = 40  # characters


def validation_message(error: Mapping[str, Any]) -> tuple[str, str]:
    """The field that one of pydantic's errors is about, and what is wrong with it.

    Args:
        error: an item of ``ValidationError.errors()``.

    Returns:
        the path of the field (``messages.0.role``; empty: the body itself), and a phrase that follows it in a message.
    """
    context = error.get("ctx") or {}
    path = [str(part) for part in error["loc"] if part != "body"]
    if "field" in context:
        path.append(str(context["field"]))
    return ".".join(path), _phrase(error, context)


def _phrase(error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    error_type = str(error["type"])
    if error_type in _OWN_TYPES:
        return str(error["msg"])
    if error_type in _LIMITS:
        name, allowed = _LIMITS[error_type]
        return f"{_shown(error.get('input'))} was given; allowed is {allowed.format(context[name])}"
    if error_type == "literal_error":
        return f"{_shown(error.get('input'))} was given; allowed is {context['expected']}"
    if error_type == "too_long":
        return f"has {context.get('actual_length') or 'more'} entries; allowed are at most {context['max_length']}"
    if error_type == "too_short":
        return f"has {context['actual_length']} entries; at least {context['min_length']} is needed"
    return _MESSAGES.get(error_type, "cannot be used")


def _shown(value: Any) -> str:
    """A value as JSON writes it, cut to a length that fits a message."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MAX_VALUE_SHOWN:
        return "a number that is far too large"  # Python may refuse to write it
    text = {True: "true", False: "false", None: "null"}.get(value) if value is None or isinstance(value, bool) else None
    text = text or (repr(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}")
    return text if len(text) <= _MAX_VALUE_SHOWN else f"{text[:_MAX_VALUE_SHOWN]}…"
