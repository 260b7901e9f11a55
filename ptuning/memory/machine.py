"""The machine a run took place on, and the versions that took part."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from ptuning.core.version import __version__

_PACKAGES = ("torch", "transformers", "accelerate", "jieba", "rouge_chinese", "nltk", "sacrebleu")


def versions() -> dict[str, str]:
    """Python and the packages that decide results, those that are installed."""
    versions_by_name = {"python": platform.python_version(), "ptuning": __version__}
    for name in _PACKAGES:
        try:
            versions_by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions_by_name


def machine() -> dict[str, str]:
    """System, processor, memory and, where torch is in use already, the GPUs. No host name, no user name."""
    facts = {"system": f"{platform.system()} {platform.release()}", "processor": _processor()}
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            facts["GPU"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return facts


def _processor() -> str:
    """The processor's name and how many logical cores there are."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
