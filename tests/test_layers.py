"""The house's one law: a file imports only from layers below its own, or from its own without going in circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ptuning"
LAYERS = {"plain": 0, "blocks": 1, "backbone": 2, "tuned": 3, "loops": 4, "uses": 5, "edges": 6}
TOP = 6  # files that lie directly in the package
# What layer 0 may use besides the standard library, and only inside the function that needs it.
PLAIN_MAY_USE = {"jieba", "nltk", "rouge_chinese", "sacrebleu", "yaml"}
HEAVY = {"datasets", "jieba", "matplotlib", "nltk", "numba", "pandas", "pyarrow", "rouge_chinese", "sacrebleu", "scipy"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "assets" not in path.parts}


def layer_of(module: str) -> int:
    parts = module.split(".")
    return LAYERS.get(parts[1], TOP) if len(parts) > 1 else TOP


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


def imports_when_loaded(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The imports that run when the file itself is imported: those outside functions and TYPE_CHECKING."""
    for statement in tree.body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports_in(statement)


def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def own(names: Iterator[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(name, line) for name, line in names if name.split(".")[0] == "ptuning"]


def test_every_folder_has_a_layer():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__", "assets"}
    assert folders == set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    wrong = []
    for name, line in own(imports_in(parsed(module))):
        assert name in MODULES, f"{module}:{line} imports {name}, which does not exist"
        if layer_of(name) > layer_of(module):
            wrong.append(f"{module}:{line} (layer {layer_of(module)}) imports {name} (layer {layer_of(name)})")
    assert not wrong, "\n".join(wrong)


def test_nothing_below_imports_the_edges_or_the_top():
    allowed = {"ptuning.__main__"}
    for module in MODULES:
        for name, line in own(imports_in(parsed(module))):
            if name.startswith("ptuning.edges"):
                assert module in allowed or module.startswith("ptuning.edges"), f"{module}:{line} imports {name}"


def test_training_and_generation_do_not_know_each_other():
    pairs = (("ptuning.loops.training", "ptuning.loops.generation"),)
    for one, other in (*pairs, *((b, a) for a, b in pairs)):
        if one in MODULES:
            assert other not in {name for name, _ in imports_in(parsed(one))}


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


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m) == 0])
def test_layer_zero_is_plain_python(module):
    import sys

    standard = sys.stdlib_module_names | {"ptuning"}
    tree = parsed(module)
    for name, line in imports_when_loaded(tree):
        assert name.split(".")[0] in standard, f"{module}:{line} imports {name} when loaded"
    for name, line in imports_in(tree):
        assert name.split(".")[0] in standard | PLAIN_MAY_USE, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_are_used(module):
    for name, line in imports_when_loaded(parsed(module)):
        assert name.split(".")[0] not in HEAVY, f"{module}:{line} imports {name} when loaded"


@pytest.mark.parametrize("module", MODULES)
def test_the_package_does_not_lean_on_scripts_or_tests(module):
    assert not {name.split(".")[0] for name, _ in imports_in(parsed(module))} & {"scripts", "tests"}
