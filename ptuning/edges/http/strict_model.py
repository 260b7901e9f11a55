"""The base class of request schemas: fields that it does not know are rejected by name, unless they change nothing.

A setting that is accepted and then ignored would be worse than an error: the answer would look as if it had been followed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ptuning.core.characters import whole_characters
from ptuning.edges.suggestions import did_you_mean

IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prediction", "parallel_tool_calls",
    }
)  # fmt: skip
"""Fields that no answer depends on: who asks, what is logged, how fast the answer should come."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "logprobs": (False, 0), "top_logprobs": (0,),
    "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "min_p": (0,), "top_a": (0,),
    "typical_p": (1,), "num_beams": (1,), "num_return_sequences": (1,), "best_of": (1,), "length_penalty": (1,),
    "early_stopping": (False,),
    "min_length": (0,), "min_tokens": (0,), "min_new_tokens": (0,), "ignore_eos": (False,), "echo": (False,),
    "suffix": ("",), "reasoning_effort": ("none",), "verbosity": ("medium",),
}  # fmt: skip
"""Settings of other servers that this model does not have, with the values at which they change nothing."""

_MAX_NAME_SHOWN = 60  # characters


class StrictModel(BaseModel):
    """A JSON object that rejects unknown fields. A field that is null counts as missing.

    Attributes:
        ignored: further fields that are accepted with any value.
        neutral: further fields that are accepted with one of these values.
    """

    model_config = ConfigDict(protected_namespaces=(), extra="ignore")
    ignored: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("object_type", "must be an object")
        if value.keys() <= cls.model_fields.keys():
            return value
        for name in value:
            if name not in cls.model_fields and value[name] is not None and name not in cls.ignored:
                cls._reject_field(name, value[name])
        return value

    @classmethod
    def _reject_field(cls, name: str, value: Any) -> None:
        """Raise for a field that is none of the schema's own, unless its value is neutral."""
        if name in cls.neutral:
            if any(value == ok and isinstance(value, bool) == isinstance(ok, bool) for ok in cls.neutral[name]):
                return
            hint = "; repetition_penalty is there" if name.endswith("_penalty") else ""
            raise PydanticCustomError(
                "unsupported_parameter", "not supported by this model{hint}; leave it out", {"field": name, "hint": hint}
            )
        shown = whole_characters(name)[:_MAX_NAME_SHOWN]
        text = f"no such field; {did_you_mean(shown, cls.model_fields)}"
        raise PydanticCustomError("unknown_parameter", "{text}", {"field": shown, "text": text})


def setting_in_query(names: Iterable[str], known: Collection[str]) -> str | None:
    """The first query parameter that is a setting of the body, or None."""
    return next((name for name in names if name in known or name in NEUTRAL), None)
