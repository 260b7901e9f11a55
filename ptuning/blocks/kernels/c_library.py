"""Our C source as a library of this machine: compiled once, kept in the user's cache folder, loaded by ctypes.

A machine without a compiler never needs this: the ``cpu`` kernel, made of torch's operators, does the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("packed.c")
_INCLUDED = tuple(
    SOURCE.with_name(f"{name}.h")
    for name in ("integers", "integer_gradient", "screening", "elementwise", "decode_attention")
)
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC", "-w")
_ARCHITECTURES = (("-march=native",), ("-mcpu=native",), ())  # the second is what some compilers for ARM know
_LIBRARIES = ("-lpthread", "-lm")
_TIME_LIMIT = 120.0  # seconds


def load_library() -> ctypes.CDLL:
    """The compiled source; compiled first where the cache folder does not hold it for this compiler and processor.

    Raises:
        RuntimeError: no compiler, or one that fails.
        OSError: what it made cannot be loaded.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise RuntimeError(f"no C compiler on PATH ({', '.join(COMPILERS)})")
    name = f"packed-{_key(compiler)}.so"
    folder = _cache_folder()
    if folder is None:  # nowhere to keep it: the file may go once it is loaded
        with tempfile.TemporaryDirectory(prefix="ptuning-") as temporary:
            return ctypes.CDLL(str(_compile(compiler, Path(temporary) / name)))
    kept = folder / name
    if kept.is_file():
        with contextlib.suppress(OSError):  # damaged: made anew
            return ctypes.CDLL(str(kept))
    return ctypes.CDLL(str(_compile(compiler, kept)))


def _cache_folder() -> Path | None:
    """A folder that nobody else can write to, as what lies there is executed; None where there is none."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
        folder = root / "ptuning" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink()):
            return None
        if found.st_mode & 0o077:
            folder.chmod(0o700)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


def _key(compiler: str) -> str:
    """What the library depends on: source, flags, compiler, processor."""
    parts = [file.read_text(encoding="ascii") for file in (SOURCE, *_INCLUDED)]
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


def _compile(compiler: str, target: Path) -> Path:
    """Compile to a temporary name beside ``target`` and rename: another process finds it whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(descriptor)
    failures = []
    try:
        for architecture in _ARCHITECTURES:
            try:
                _run([compiler, *_FLAGS, *architecture, str(SOURCE), "-o", temporary, *_LIBRARIES])
            except RuntimeError as error:
                failures.append(str(error))
                continue
            os.chmod(temporary, 0o700)
            with open(temporary, "rb") as made:
                os.fsync(made.fileno())  # a library cut short by a power failure would end the process that loads it
            os.replace(temporary, target)
            return target
    finally:
        Path(temporary).unlink(missing_ok=True)
    raise RuntimeError(failures[0])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "nothing said")
        raise RuntimeError(f"{command[0]} failed: {said.strip()}")
    return done.stdout
