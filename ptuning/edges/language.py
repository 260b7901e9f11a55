"""The language of a chat's own texts: Chinese or English."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

Language = Literal["zh", "en"]
LanguageChoice = Literal["auto", "zh", "en"]


def language_of(name: str | None) -> Language:
    """The language for a locale (``zh_CN.UTF-8``) or an ``Accept-Language`` header (``de-DE,en;q=0.7``).

    Without a locale, and with ``C`` or ``POSIX``, it is Chinese, the language of the published chat.
    """
    first = (name or "").replace("_", "-").split(",")[0].split(".")[0].split(";")[0].strip().lower()
    return "zh" if first in ("", "c", "posix", "*") or first.split("-")[0] == "zh" else "en"


def language_of_environment(environment: Mapping[str, str] | None = None) -> Language:
    """The language for the first of ``LC_ALL``, ``LC_MESSAGES`` and ``LANG`` that is set."""
    values = os.environ if environment is None else environment
    return language_of(next((values[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if values.get(name)), None))
