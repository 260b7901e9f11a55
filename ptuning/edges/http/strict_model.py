"""Names of fields beside those that a route knows: what changes no answer is let through, all else is refused by name.

A setting that is taken and not followed would be worse than an error: the answer looks as if it had been.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ptuning.core.characters import whole_characters

IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prediction", "parallel_tool_calls",
    }
)  # fmt: skip
"""What no answer depends on: who asks, what is kept of it, how fast it should come."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "logprobs": (False, 0), "top_logprobs": (0,),
    "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "min_p": (0,), "top_a": (0,),
    "typical_p": (1,), "num_beams": (1,), "num_return_sequences": (1,), "best_of": (1,), "length_penalty": (1,),
    "early_stopping": (False,),
    "min_length": (0,), "min_tokens": (0,), "min_new_tokens": (0,), "ignore_eos": (False,), "echo": (False,),
    "suffix": ("",), "reasoning_effort": ("none",), "verbosity": ("medium",),
}  # fmt: skip
"""Settings of others that this model does not have, with the values at which they change nothing."""

_MAX_SHOWN = 60  # characters of a name


class StrictModel(BaseModel):
    """An object of a body: its own fields, and others where they change nothing. null is as if a field were missing.

    Attributes:
        ignored: other names that may have any value.
        neutral: other names, with the values that they may have.
    """

    model_config = ConfigDict(protected_namespaces=(), extra="ignore")
    ignored: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("object_type", "must be an object")
        if value.keys() <= cls.model_fields.keys():
            return value
        for name in value:
            if name not in cls.model_fields and value[name] is not None and name not in cls.ignored:
                cls._refuse(name, value[name])
        return value

    @classmethod
    def _refuse(cls, name: str, value: Any) -> None:
        if name in cls.neutral:
            if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in cls.neutral[name]):
                return
            hint = "; repetition_penalty is there" if name.endswith("_penalty") else ""
            raise PydanticCustomError(
                "unsupported_parameter", "not supported by this model{hint}; leave it out", {"field": name, "hint": hint}
            )
        shown = whole_characters(name)[:_MAX_SHOWN]
        raise PydanticCustomError("unknown_parameter", "{text}", {"field": shown, "text": unknown(shown, cls.model_fields)})


def unknown(name: str, known: Collection[str]) -> str:
    """What is said of a name that is not known."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"no such field; did you mean {near[0]}?" if near else f"no such field; there are {', '.join(known)}"


def settings_in_query(names: Iterable[str], known: Collection[str]) -> str | None:
    """The first parameter of a query that would be a setting in the body, if there is one."""
    return next((name for name in names if name in known or name in NEUTRAL), None)
