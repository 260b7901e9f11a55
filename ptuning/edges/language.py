"""The language of what a chat says about itself: Chinese or English."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

Language = Literal["zh", "en"]
LanguageChoice = Literal["auto", "zh", "en"]


def language_of(name: str | None) -> Language:
    """The nearer of the two for a locale (``zh_CN.UTF-8``) or a browser's list (``de-DE,en;q=0.7``).

    No locale, ``C`` and ``POSIX`` say nothing about anybody: they mean Chinese, the language of the published chat.
    """
    first = (name or "").replace("_", "-").split(",")[0].split(".")[0].split(";")[0].strip().lower()
    return "zh" if first in ("", "c", "posix", "*") or first.split("-")[0] == "zh" else "en"


def language_of_environment(environment: Mapping[str, str] | None = None) -> Language:
    """By ``LC_ALL``, ``LC_MESSAGES`` and ``LANG``, the first that is set."""
    values = os.environ if environment is None else environment
    return language_of(next((values[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if values.get(name)), None))
