"""Print what the running Python lacks for ptuning, one requirement a line; nothing when it lacks nothing.

A package of another version than requirements.txt pins is left alone as long as pyproject.toml allows it; one that stands
there for another system (``; platform_system == "Linux"``) is not wanted. The last line
is ``ptuning`` itself where that is not installed from this checkout. Standard library only, because it runs before
anything is installed. The test tools, which stand under ``# tests`` in requirements.txt, count when the first argument
is ``tests``.
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
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(root: Path = ROOT, *, tests: bool = False) -> list[str]:
    """Return the pinned requirements that are absent or older than the project allows, then ``ptuning`` if need be."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    least = {canonical(name): numbers(low) for name, low in (item.split(">=") for item in wanted)}
    lacking = []
    pins = (root / "requirements.txt").read_text(encoding="utf-8")
    for line in (pins if tests else pins.partition("\n# tests\n")[0]).splitlines():
        pin, _, system = (part.strip() for part in line.split("#")[0].partition(";"))
        if not pin or (system and system != f'platform_system == "{platform.system()}"'):
            continue
        name = canonical(pin.split("==")[0])
        try:
            found = numbers(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            found = ()
        if not found or found < least.get(name, ()):
            lacking.append(pin)
    spec = importlib.util.find_spec("ptuning")
    if spec is None or spec.origin is None or not Path(spec.origin).resolve().is_relative_to(root):
        lacking.append("ptuning")
    return lacking


if __name__ == "__main__":
    print("\n".join(missing(tests=sys.argv[1:2] == ["tests"])))
