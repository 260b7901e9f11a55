"""Values that a user can choose among, written once: settings, messages and the code that acts on them import these."""

from typing import Literal

FAMILIES = ("chatglm",)
"""Generations of models that run here; ``model/families`` has what each is."""

Truncation = Literal["smart", "published"]
"""What goes where a prompt is too long; see the setting of this name."""
