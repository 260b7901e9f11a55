"""Our C sources as a library of this machine: compiled once, kept in the user's cache folder, loaded by ctypes.

A machine without a compiler never needs this: the ``cpu`` kernel, made of torch's operators, does the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ptuning.core.private_cache import cache_root, check_file, private_folder

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "c"
"""Where the sources are; every ``.c`` file there compiles alone. ``ptuning.h`` says what is in which."""

COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-w")
_ARCHITECTURES = (("-march=native",), ("-mcpu=native",), ())  # the second is what some compilers for ARM know
_LIBRARIES = ("-lpthread", "-lm")
_TIME_LIMIT = 120.0  # seconds


def load_library() -> ctypes.CDLL:
    """The compiled source; compiled first where the cache folder does not hold it for this compiler and processor.

    The name of a kept library bears the checksum of what is in it, because one that was cut short would end the process
    that loads it. What others could have changed is not loaded: it is compiled again, in a folder of this process alone
    where the cache folder is open to others.

    Raises:
        RuntimeError: no compiler, or one that fails.
        OSError: what it made cannot be loaded, or there is no folder that others cannot write to.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise RuntimeError(f"no C compiler on PATH ({', '.join(COMPILERS)})")
    name = f"packed-{_key(compiler)}"
    try:
        folder = private_folder(cache_root() / "ptuning" / "kernels", own=2)
    except OSError as error:
        logger.warning("the native kernel is not kept, but compiled at every start (%s)", error)
        with tempfile.TemporaryDirectory(prefix="ptuning-") as temporary:  # the file may go once it is loaded
            return ctypes.CDLL(str(_compile(compiler, private_folder(Path(temporary).absolute(), own=1), name)))
    for kept in sorted(folder.glob(f"{name}-*.so")):
        try:
            check_file(kept)
            if kept.name == _named(name, kept):
                return ctypes.CDLL(str(kept))
            reason = f"{kept}: not what was compiled"
        except OSError as error:
            reason = str(error)
        logger.warning("the native kernel is compiled again (%s)", reason)
        with contextlib.suppress(OSError):
            kept.unlink()
    return ctypes.CDLL(str(_compile(compiler, folder, name)))


def _named(name: str, library: Path) -> str:
    """The name under which a library is kept: with the SHA-256 of its bytes."""
    with library.open("rb") as file:
        return f"{name}-{hashlib.file_digest(file, 'sha256').hexdigest()}.so"


def _key(compiler: str) -> str:
    """What the library depends on: sources, flags, compiler, processor."""
    parts = [text for file in sorted(FOLDER.glob("*.[ch]")) for text in (file.name, file.read_text(encoding="ascii"))]
    parts += [repr((_FLAGS, _ARCHITECTURES, _LIBRARIES)), compiler]
    parts += [_run([compiler, "--version"]), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """Name and abilities of the processor, which ``-march=native`` compiles for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _compile(compiler: str, folder: Path, name: str) -> Path:
    """Compile in a folder below ``folder`` and rename into it: another process finds the library whole or not at all."""
    failures = []
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        for architecture in _ARCHITECTURES:
            try:
                library = _compiled(compiler, architecture, Path(inside))
            except RuntimeError as error:
                failures.append(str(error))
                continue
            library.chmod(0o700)
            with library.open("rb") as file:
                os.fsync(file.fileno())  # a library cut short by a power failure would have to be compiled again
            target = folder / _named(name, library)
            library.replace(target)
            return target
    raise RuntimeError(failures[0])


def _compiled(compiler: str, architecture: tuple[str, ...], folder: Path) -> Path:
    """Compile every source, as many at a time as there are cores, and link them in ``folder``."""

    def compiled(source: Path) -> str:
        object_file = str(folder / f"{source.stem}.o")
        _run([compiler, *_FLAGS, *architecture, "-c", str(source), "-o", object_file], TMPDIR=str(folder))
        return object_file

    sources = sorted(FOLDER.glob("*.c"), key=lambda source: -source.stat().st_size)  # the longest first
    with ThreadPoolExecutor(os.cpu_count() or 1) as workers:
        objects = list(workers.map(compiled, sources))
    library = folder / "linked.so"
    _run([compiler, *_FLAGS, "-shared", *objects, "-o", str(library), *_LIBRARIES], TMPDIR=str(folder))
    return library


def _run(command: list[str], **environment: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C", **environment},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1] if lines else "nothing said")
        raise RuntimeError(f"{command[0]} failed: {reason.strip()}")
    return done.stdout
