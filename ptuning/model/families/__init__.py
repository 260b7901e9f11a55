"""The families of models, and the one way to find out which one a model belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptuning.model.config import ChatGLMConfig
from ptuning.model.families.chatglm import CHATGLM
from ptuning.model.families.family import Family

FAMILIES: dict[str, Family] = {CHATGLM.name: CHATGLM}


def family_of(config: ChatGLMConfig | Mapping[str, Any]) -> Family:
    """The family of a model.

    Args:
        config: its configuration, or the values of a ``config.json``, which may describe anything: what no family claims
            is the first one's, whose ``check_config`` says what is wrong with it.
    """
    if isinstance(config, Mapping):
        return next((family for family in FAMILIES.values() if family.claims(config)), CHATGLM)
    return FAMILIES[config.family]
