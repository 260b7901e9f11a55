"""The tuning methods there are, and which one a model answers with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning.methods.method import TuningMethod
from ptuning.methods.prefix import PREFIX

if TYPE_CHECKING:
    from ptuning.model.answering import PrefixedModel

METHODS: dict[str, TuningMethod] = {PREFIX.name: PREFIX}
"""By the names of :data:`ptuning.core.choices.MethodName`."""


def active_method(model: PrefixedModel) -> TuningMethod | None:
    """The method whose numbers a model answers with now; None: it is the base model, or is made to answer as one."""
    return next((method for method in METHODS.values() if method.is_active(model)), None)
