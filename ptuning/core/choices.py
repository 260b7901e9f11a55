"""Values that a user can choose among, written once: settings, messages and the code that acts on them import these."""

FAMILIES = ("chatglm",)
"""Generations of models that run here; ``model/families`` has what each is."""
