"""The house's one law: a file imports only from its own room, without going in circles, and from rooms before its own."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import sources
from sources import PACKAGE, PACKAGE_FILES, ROOT

ORDER = (
    {"core"},
    {"settings", "kernels", "data"},
    {"model"},
    {"methods"},
    {"checkpoint"},
    {"engine", "memory"},
    {"quantize", "training", "evaluation", "serving"},
    {"edges"},
)
"""Rooms of one place do not know each other."""
ROOMS = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
TOP = len(ORDER) - 1  # files that lie directly in the package
HEAVY = {"datasets", "jieba", "matplotlib", "nltk", "numba", "pandas", "pyarrow", "rouge_chinese", "sacrebleu", "scipy"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE_FILES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def may_import(module: str, other: str) -> bool:
    """Whether the order of the rooms lets a module import another."""
    room, target = room_of(module), room_of(other)
    if not room:
        return True
    return room == target or ROOMS.get(target, TOP) < ROOMS[room] or (room == "edges" and not target)


def imports_in(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module named by an import statement under a node, with its line."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from ((alias.name, item.lineno) for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"relative import in line {item.lineno}: write the whole name"
            for alias in item.names:
                whole = f"{item.module}.{alias.name}"
                yield (whole if whole in MODULES else str(item.module)), item.lineno


def named_in_strings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules that a string names and nothing else: what is imported by its name later."""
    for item in ast.walk(tree):
        if isinstance(item, ast.Constant) and isinstance(item.value, str) and re.fullmatch(r"ptuning(\.\w+)+", item.value):
            yield item.value, item.lineno


def imports_when_loaded(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The imports that run when the file itself is imported: those outside functions and TYPE_CHECKING."""
    for statement in tree.body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports_in(statement)


def parsed(module: str) -> ast.Module:
    return sources.parsed(MODULES[module])


def own(names: Iterator[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(name, line) for name, line in names if name.split(".")[0] == "ptuning"]


def test_every_folder_is_a_room():
    # Empty folders are what a checkout of another commit left behind.
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders == set(ROOMS)


def test_tests_mirror_the_rooms():
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - {"."} <= {path.parent.relative_to(PACKAGE).as_posix() for path in MODULES.values()}


def test_imports_go_down():
    wrong = []
    for module in MODULES:
        tree = parsed(module)
        imported = own(imports_in(tree))
        wrong += [f"{module}:{line} imports {name}, which does not exist" for name, line in imported if name not in MODULES]
        for name, line in [*imported, *own(named_in_strings(tree))]:
            if name in MODULES and not may_import(module, name):
                wrong.append(f"{module}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_law_sees_imports_by_string():
    tree = ast.parse('NAMES = {"a": "ptuning.engine.engine"}\nimport_module("ptuning.edges.cli")\n"see ptuning.core"')
    assert [name for name, _ in named_in_strings(tree)] == ["ptuning.engine.engine", "ptuning.edges.cli"]
    assert not may_import("ptuning.kernels.dispatch", "ptuning.data.rows")  # of one place
    assert not may_import("ptuning.training.run", "ptuning.evaluation.run")
    assert may_import("ptuning.training.run", "ptuning.checkpoint.load")


def test_training_and_engine_do_not_know_each_other():
    for module in MODULES:
        if room_of(module) == "training":
            names = {name for name, _ in own(iter([*imports_in(parsed(module)), *named_in_strings(parsed(module))]))}
            assert not {name for name in names if room_of(name) == "engine"}


def test_no_circles():
    graph = {module: {name for name, _ in own(imports_in(parsed(module)))} - {module} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "imports go in a circle: " + " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for name in graph.get(module, ()):
                # The top file names others for its lazy API only; it is imported by everything below by force.
                if name != "ptuning":
                    visit(name, (*trail, module))
            done.add(module)

    for module in MODULES:
        if module != "ptuning":
            visit(module, ())


def test_core_is_plain_python():
    standard = sys.stdlib_module_names | {"ptuning"}
    wrong = []
    for module in (module for module in MODULES if room_of(module) == "core"):
        tree = parsed(module)
        for name, line in imports_when_loaded(tree):
            if name.split(".")[0] not in standard:
                wrong.append(f"{module}:{line} imports {name} when loaded")
        for name, line in imports_in(tree):
            if name.split(".")[0] not in standard:
                wrong.append(f"{module}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = [
        f"{module}:{line} imports {name} when loaded"
        for module in MODULES
        for name, line in imports_when_loaded(parsed(module))
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_does_not_lean_on_scripts_or_tests():
    wrong = [
        f"{module}:{line} imports {name}"
        for module in MODULES
        for name, line in imports_in(parsed(module))
        if name.split(".")[0] in {"scripts", "tests"}
    ]
    assert not wrong, "\n".join(wrong)
