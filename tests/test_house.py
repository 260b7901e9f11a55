"""House rules that a test can hold: sizes, docstrings, names, and nothing that belongs to one machine."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
PACKAGE_FILES = [path for path in sorted((ROOT / "ptuning").rglob("*.py")) if "assets" not in path.parts]
SCRIPT_FILES = sorted((ROOT / "scripts").rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
# The one statement in the package that does something when it is imported: see ptuning/auto_classes.py.
RUNS_AT_IMPORT = {("ptuning/__init__.py", "register_when_imported()")}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_things(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Classes, functions and methods without a leading underscore; functions inside functions are nobody's API."""
    places: list[ast.Module | ast.ClassDef] = [tree]
    while places:
        for node in places.pop().body:
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    places.append(node)


over_package = pytest.mark.parametrize("path", PACKAGE_FILES, ids=short)
over_all = pytest.mark.parametrize("path", [*PACKAGE_FILES, *SCRIPT_FILES], ids=short)


@over_all
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{short(path)} has {lines} lines"


@over_all
def test_functions_are_short(path):
    long = [
        f"{short(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions(parsed(path))
        if node.end_lineno and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long, "\n".join(long)


@over_all
def test_files_and_public_things_say_what_they_are(path):
    tree = parsed(path)
    assert ast.get_docstring(tree), f"{short(path)}: the file has no docstring"
    silent = [f"{short(path)}:{node.lineno} {node.name}" for node in public_things(tree) if not ast.get_docstring(node)]
    assert not silent, "no docstring: " + ", ".join(silent)


@over_all
def test_no_name_that_could_mean_anything(path):
    assert path.stem not in FORBIDDEN_NAMES, f"{short(path)}: name it after what it holds"


@over_all
def test_no_bare_except(path):
    for node in ast.walk(parsed(path)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{short(path)}:{node.lineno}"


@over_package
def test_input_is_never_checked_by_assert(path):
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, ast.Assert), f"{short(path)}:{node.lineno}: raise UserError (assert goes with -O)"


@over_package
def test_only_the_edges_print(path):
    if "edges" in path.parts:
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{short(path)}:{node.lineno}: log it, or return it to the edge"


@over_package
def test_the_edges_print_in_one_place(path):
    """What is printed anywhere else could drive the terminal, or end the command in an encoding that lacks a character."""
    if short(path) == "ptuning/edges/output.py":
        return
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called != "print", f"{short(path)}:{node.lineno}: say or tell it (ptuning/edges/output.py)"
        for stream in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"):
            assert not called.startswith((f"{stream}.write", f"{stream}.buffer")), f"{short(path)}:{node.lineno}: {called}"
        title = next((word.value for word in node.keywords if word.arg == "desc"), None)
        if called == "tqdm" and title is not None and not isinstance(title, ast.Constant):
            assert ast.unparse(title).startswith("inline("), f"{short(path)}:{node.lineno}: inline(...) a bar's title"


@over_package
def test_nothing_happens_at_import(path):
    harmless = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for node in parsed(path).body:
        if isinstance(node, (*harmless, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = ast.unparse(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.If) and (
            "TYPE_CHECKING" in ast.unparse(node.test) or "__name__" in ast.unparse(node.test)
        ):
            continue
        assert (short(path), text) in RUNS_AT_IMPORT, (
            f"{short(path)}:{node.lineno} runs at import: {text.splitlines()[0]}"
        )


def test_every_test_has_a_time_limit(pytestconfig):
    assert 0 < float(pytestconfig.getini("timeout")) <= 300


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
