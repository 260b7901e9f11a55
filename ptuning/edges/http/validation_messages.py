"""What is wrong with a body, in words for whoever wrote it: nothing of how the server looks inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {
    "missing": "is needed",
    "string_type": "must be a text",
    "string_unicode": "must be a text",
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
    "json_invalid": "is no JSON",
}
_LIMITS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "{} or less"),
    "less_than": ("lt", "less than {}"),
}
_OUR_OWN = {
    "object_type", "unknown_parameter", "unsupported_parameter", "number_type", "whole_number", "number_size", "round_type",
    "content_type", "part_type", "stop_type", "text_size",
}  # fmt: skip
_MAX_SHOWN = 40  # characters of a value


def validation_message(error: Mapping[str, Any]) -> tuple[str, str]:
    """The field of one of pydantic's errors, and what is wrong with it.

    Args:
        error: of ``ValidationError.errors()``.

    Returns:
        the field with its place (``messages.0.role``; empty: the body itself), and a sentence's end.
    """
    context = error.get("ctx") or {}
    place = [str(part) for part in error["loc"] if part != "body"]
    if "field" in context:
        place.append(str(context["field"]))
    return ".".join(place), _sentence(error, context)


def _sentence(error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    kind = str(error["type"])
    if kind in _OUR_OWN:
        return str(error["msg"])
    if kind in _LIMITS:
        name, allowed = _LIMITS[kind]
        return f"{_shown(error.get('input'))} was given; allowed is {allowed.format(context[name])}"
    if kind == "literal_error":
        return f"{_shown(error.get('input'))} was given; allowed is {context['expected']}"
    if kind == "too_long":
        return f"has {context.get('actual_length') or 'more'} entries; allowed are at most {context['max_length']}"
    if kind == "too_short":
        return f"has {context['actual_length']} entries; needed is {context['min_length']} at least"
    return _KINDS.get(kind, "cannot be used")


def _shown(value: Any) -> str:
    """A value as it would stand in JSON, if it is short enough to be shown."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MAX_SHOWN:
        return "a number that is far too large"  # Python would not even write it
    text = {True: "true", False: "false", None: "null"}.get(value) if value is None or isinstance(value, bool) else None
    text = text or (repr(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
