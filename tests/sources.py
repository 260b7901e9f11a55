"""The project's Python files as syntax trees, each parsed once for all the tests that look into them."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ptuning"
PACKAGE_FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "assets" not in path.parts]
SCRIPT_FILES = sorted((ROOT / "scripts").rglob("*.py"))


def short(path: Path) -> str:
    """A file's path from the project's root."""
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of that tree."""
    return tuple(ast.walk(parsed(path)))
