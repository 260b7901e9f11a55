"""Print the requirements of ptuning that the running Python lacks, one per line.

A package in another version than requirements.txt pins is accepted if pyproject.toml allows that version; a requirement for
another system (``; platform_system == "Linux"``) is skipped. The last line is ``ptuning`` itself if that is not installed
from this checkout. The test tools, below ``# tests`` in requirements.txt, are included if the first argument is ``tests``.
Standard library only, because this runs before anything is installed.
"""

import importlib.metadata
import importlib.util
import platform
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` → (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version).group().split(".") if part)  # type: ignore[union-attr]


def canonical(name: str) -> str:
    """A package's name in the form in which package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(root: Path = ROOT, *, tests: bool = False) -> list[str]:
    """The pinned requirements that are missing or older than the project allows; last ``ptuning``, if it is missing."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    min_versions = {canonical(name): numbers(low) for name, low in (item.split(">=") for item in requirements)}
    lacking = []
    pins = (root / "requirements.txt").read_text(encoding="utf-8")
    for line in (pins if tests else pins.partition("\n# tests\n")[0]).splitlines():
        pin, _, system = (part.strip() for part in line.split("#")[0].partition(";"))
        if not pin or (system and system != f'platform_system == "{platform.system()}"'):
            continue
        name = canonical(pin.split("==")[0])
        try:
            installed = numbers(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            installed = ()
        if not installed or installed < min_versions.get(name, ()):
            lacking.append(pin)
    spec = importlib.util.find_spec("ptuning")
    if spec is None or spec.origin is None or not Path(spec.origin).resolve().is_relative_to(root):
        lacking.append("ptuning")
    return lacking


if __name__ == "__main__":
    print("\n".join(missing(tests=sys.argv[1:2] == ["tests"])))
