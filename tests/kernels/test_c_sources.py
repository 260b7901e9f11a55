"""The C sources: no warning, no circle, little stack, and nothing that a sanitizer finds."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ptuning.kernels import c_library, dispatch, native

SOURCES, HEADERS = (sorted(c_library.FOLDER.glob(pattern)) for pattern in ("*.c", "*.h"))
DRIVER = Path(__file__).with_name("every_function.c")
COMPILERS = {str(Path(found).resolve()): found for found in map(shutil.which, c_library.COMPILERS) if found}
WARNINGS = (
    "-Wall", "-Wextra", "-Werror", "-Wvla", "-Wshadow", "-Wmissing-prototypes", "-Wstrict-prototypes",
    "-Wframe-larger-than=65536",
)  # fmt: skip
FLAGS = [flag for flag in c_library._FLAGS if flag != "-w"]
KINDS = {"of this processor": ("-march=native",), "of every processor": ()}
of_both_kinds = pytest.mark.parametrize("kind", KINDS)
with_compiler = pytest.mark.skipif(not COMPILERS, reason="no C compiler here")


def run(*command, **environment):
    """What a command printed, and how it ended."""
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **environment}
    )


def succeed(*command, **environment):
    done = run(*command, **environment)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def compiled(compiler, flags, folder, sources):
    """Objects of sources, several at a time."""

    def one(source):
        succeed(compiler, *flags, f"-I{c_library.FOLDER}", "-c", source, "-o", folder / f"{source.stem}.o")
        return folder / f"{source.stem}.o"

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(one, sources))


def architecture(compiler, kind, folder):
    """The flags of a kind of processor, where the compiler knows them."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    if run(compiler, *KINDS[kind], "-c", folder / "empty.c", "-o", folder / "empty.o").returncode:
        pytest.skip(f"{compiler} does not know {KINDS[kind]}")
    return KINDS[kind]


# ---- how they are written ------------------------------------------------------------------------------------------------


def included(path):
    return set(re.findall(r'#include "(.+)"', path.read_text(encoding="ascii")))


def test_headers_have_guards_and_include_each_other_without_a_circle():
    names = {path.name: included(path) for path in HEADERS}
    for path in HEADERS:
        guard = re.search(r"^#ifndef (PTUNING_\w+)\n#define \1\n", path.read_text(encoding="ascii"), re.MULTILINE)
        assert guard, f"{path.name} has no include guard"
        assert guard[1].removeprefix("PTUNING_").removesuffix("_H").lower() in (path.stem, "h")
    while names:
        free = {name for name, needed in names.items() if not needed & names.keys()}
        assert free, f"a circle: {names}"
        names = {name: needed for name, needed in names.items() if name not in free}
    for path in SOURCES:
        assert included(path) <= {header.name for header in HEADERS}, f"{path.name} includes a source"


def test_what_python_calls_is_what_the_header_says():
    if dispatch.start("native") is None:
        pytest.skip("no C compiler here; the reason is logged")
    text = (c_library.FOLDER / "ptuning.h").read_text(encoding="ascii")
    declared = dict(re.findall(r"PTUNING_EXPORT [\w ]+?(ptuning_\w+)\(([^)]*)\);", text))
    library = native._library()
    assert declared.keys() == {name for name in vars(library) if name.startswith("ptuning_")}
    for name, parameters in declared.items():
        count = 0 if parameters == "void" else parameters.count(",") + 1
        assert len(getattr(library, name).argtypes) == count, name


@pytest.mark.slow
@with_compiler
@of_both_kinds
@pytest.mark.parametrize("compiler", COMPILERS.values())
def test_every_file_compiles_alone_without_a_warning(compiler, kind, tmp_path):
    """Also not that a function takes more than 64 KB of stack."""
    flags = (*FLAGS, *WARNINGS, *architecture(compiler, kind, tmp_path))
    compiled(compiler, flags, tmp_path, SOURCES)
    for header in HEADERS:
        (tmp_path / "alone.c").write_text(f'#include "{header.name}"\n', encoding="ascii")
        succeed(compiler, *flags, f"-I{c_library.FOLDER}", "-fsyntax-only", tmp_path / "alone.c")


# ---- how they run --------------------------------------------------------------------------------------------------------


def test_a_stack_of_128_kb_will_do(tmp_path):
    """The library as it is used, in a thread with so small a stack."""
    if dispatch.start("native") is None or not os.path.exists(native._library()._name):
        pytest.skip("no C compiler here, or no folder to keep a library in")
    compiler, library = next(iter(COMPILERS.values())), native._library()._name
    program = tmp_path / "every_function"
    succeed(
        compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-std=gnu11", f"-I{c_library.FOLDER}", DRIVER, library,
        "-o", program, *c_library._LIBRARIES,
    )  # fmt: skip
    assert succeed(program, "stack") == "every function answered\n"


@pytest.mark.slow
@with_compiler
@pytest.mark.parametrize(
    ("sanitizers", "kind"), [("address,undefined", kind) for kind in KINDS] + [("thread", "of this processor")]
)
def test_sanitizers_find_nothing(sanitizers, kind, tmp_path):
    """Every function on awkward shapes, each tensor in memory of exactly its size, by three threads at once.

    Threads are the library's own, or a pool of the driver's: what OpenMP's runtime does to wait for its threads is not seen
    by the thread sanitizer, which would take every result for a race.
    """
    compiler = next(iter(COMPILERS.values()))
    flags = ("-O1", "-g", "-std=gnu11", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    arch, program = architecture(compiler, kind, tmp_path), tmp_path / "every_function"
    probe = run(compiler, *flags, tmp_path / "empty.c", "-o", program)
    if probe.returncode or run(program).returncode:
        reason = (probe.stderr or run(program).stderr).strip().splitlines()
        pytest.skip(f"{compiler} has no sanitizer {sanitizers} that runs here: {reason[:1]}")
    objects = compiled(compiler, (*flags, *arch), tmp_path, [*SOURCES, DRIVER])
    succeed(compiler, *flags, *objects, "-o", program, *c_library._LIBRARIES)
    for way in ("threads", "pool"):
        printed = succeed(program, way, ASAN_OPTIONS="detect_leaks=0", TSAN_OPTIONS="halt_on_error=1")
        assert printed == "every function answered\n"
