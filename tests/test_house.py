"""House rules that a test can hold: sizes, docstrings, names, and nothing that belongs to one machine."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import PACKAGE_FILES, ROOT, SCRIPT_FILES, nodes, parsed, short

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
ALL_FILES = [*PACKAGE_FILES, *SCRIPT_FILES]
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
# The one statement in the package that does something when it is imported: see ptuning/auto_classes.py.
RUNS_AT_IMPORT = {("ptuning/__init__.py", "register_when_imported()")}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_things(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Classes, functions and methods without a leading underscore; functions inside functions are nobody's API."""
    places: list[ast.Module | ast.ClassDef] = [tree]
    while places:
        for node in places.pop().body:
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    places.append(node)


def place(path: Path, node: ast.AST) -> str:
    """``file:line`` of a node."""
    return f"{short(path)}:{node.lineno}"


def refuse(faults: Iterator[str]) -> None:
    """Fail with every fault on a line of its own."""
    listed = list(faults)
    assert not listed, "\n".join(listed)


def test_there_are_files_to_look_at():
    assert len(PACKAGE_FILES) > 150
    assert SCRIPT_FILES


def test_files_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES}
    refuse(f"{short(path)} has {lines} lines" for path, lines in lengths.items() if lines > LONGEST_FILE)


def test_functions_are_short():
    refuse(
        f"{place(path, node)} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in ALL_FILES
        for node in nodes(path)
        if isinstance(node, Function) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    )


def test_files_and_public_things_say_what_they_are():
    refuse(f"{short(path)}: the file has no docstring" for path in ALL_FILES if not ast.get_docstring(parsed(path)))
    refuse(
        f"{place(path, node)} {node.name} has no docstring"
        for path in ALL_FILES
        for node in public_things(parsed(path))
        if not ast.get_docstring(node)
    )


def test_no_name_that_could_mean_anything():
    refuse(f"{short(path)}: name it after what it holds" for path in ALL_FILES if path.stem in FORBIDDEN_NAMES)


def test_no_bare_except():
    refuse(
        f"{place(path, node)}: name the exceptions"
        for path in ALL_FILES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    )


def test_input_is_never_checked_by_assert():
    refuse(
        f"{place(path, node)}: raise UserError (assert goes with -O)"
        for path in PACKAGE_FILES
        for node in nodes(path)
        if isinstance(node, ast.Assert)
    )


def test_only_the_edges_print():
    refuse(
        f"{place(path, node)}: log it, or return it to the edge"
        for path in PACKAGE_FILES
        if "edges" not in path.parts
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def printing_faults(path: Path) -> Iterator[str]:
    """What a file prints by another way than ptuning/edges/output.py."""
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "print":
            yield f"{place(path, node)}: use print_line or print_error (ptuning/edges/output.py)"
        for stream in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"):
            if called.startswith((f"{stream}.write", f"{stream}.buffer")):
                yield f"{place(path, node)}: {called}"
        title = next((word.value for word in node.keywords if word.arg == "desc"), None)
        titled = called == "tqdm" and title is not None and not isinstance(title, ast.Constant)
        if titled and not ast.unparse(title).startswith("inline("):
            yield f"{place(path, node)}: inline(...) a bar's title"


def test_the_edges_print_in_one_place():
    """What is printed anywhere else could drive the terminal, or end the command in an encoding that lacks a character."""
    others = (path for path in PACKAGE_FILES if short(path) != "ptuning/edges/output.py")
    refuse(fault for path in others for fault in printing_faults(path))


def runs_at_import(path: Path) -> Iterator[ast.stmt]:
    """The statements of a file that do something when it is imported."""
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in parsed(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, *definitions)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.If) and any(word in ast.unparse(node.test) for word in ("TYPE_CHECKING", "__name__")):
            continue
        yield node


def test_nothing_happens_at_import():
    refuse(
        f"{place(path, node)} runs at import: {ast.unparse(node).splitlines()[0]}"
        for path in PACKAGE_FILES
        for node in runs_at_import(path)
        if (short(path), ast.unparse(node)) not in RUNS_AT_IMPORT
    )


def test_every_test_has_a_time_limit(pytestconfig):
    assert 0 < float(pytestconfig.getini("timeout")) <= 120


def tracked_files() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_place_on_one_machine():
    places = [f"/{top}/{rest}" for top, rest in (("work", "main"), ("work", "dev"), ("work", "shared"), ("root", ""))]
    places += ["/" + "home/", "/" + "Users/"]
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            found += [f"{short(path)}: {place}" for place in places if place.encode() in data]
    assert not found, "\n".join(found)


def test_no_tracked_file_is_huge():
    """The embedded model may have 12 MB (its own test); everything else that is large belongs somewhere else."""
    large = [path for path in tracked_files() if path.stat().st_size > 2_000_000]
    assert not [short(path) for path in large if not {"assets", "golden"} & set(path.parts)]
