"""Values that a user can choose among, written once: settings, messages and the code that acts on them import these."""

from typing import Literal

Truncation = Literal["smart", "published"]
"""What goes where a prompt is too long; see the setting of this name."""

MethodName = Literal["prefix"]
"""Tuning methods; the objects behind the names are those of :data:`ptuning.methods.registry.METHODS`."""

DEFAULT_METHOD: MethodName = "prefix"
"""How a run tunes that does not say."""
