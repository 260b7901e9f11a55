"""The caches that decide what runs: nobody else can plant, change or cut short what is loaded from them."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ptuning.core.private_cache import UntrustedPathError, cache_root, check_file, keep_compiled_code_private, private_folder

ROOT = Path(__file__).resolve().parents[2]
STRANGER = 12345
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to other users")
with_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes")
with_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    (folder / ".cache").mkdir(parents=True, mode=0o755)
    return folder


def kernels(home):
    return private_folder(home / ".cache" / "ptuning" / "kernels", own=2)


# ---- the folder ----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_made_for_this_user_alone(home):
    folder = kernels(home)
    assert folder == home / ".cache" / "ptuning" / "kernels"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, folder.parent)] == [0o700, 0o700]


@with_owners
def test_what_is_ours_is_closed_to_others(home):
    folder = kernels(home)
    for one in (folder, folder.parent):
        one.chmod(0o777)
    assert kernels(home) == folder
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, folder.parent)] == [0o700, 0o700]


@with_owners
@pytest.mark.parametrize("above", ["home", "home/.cache"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o722])
def test_a_folder_above_that_others_can_write_to_is_refused(home, above, mode):
    kernels(home)
    (home.parent / above).chmod(mode)
    with pytest.raises(UntrustedPathError, match=rf"{above}: other users can write to it \(mode 0{mode:o}"):
        kernels(home)
    (home.parent / above).chmod(0o1777)  # as /tmp: nobody can rename what is ours
    assert kernels(home).is_dir()


@as_root
@pytest.mark.parametrize("above", ["home", "home/.cache", "home/.cache/ptuning", "home/.cache/ptuning/kernels"])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_of_another_user_is_refused(home, above, mode):
    kernels(home)
    (home.parent / above).chmod(mode)
    os.chown(home.parent / above, STRANGER, STRANGER)
    with pytest.raises(UntrustedPathError, match=f"{above}: belongs to .*{STRANGER}"):
        kernels(home)


@with_owners
@pytest.mark.parametrize("name", ["ptuning", "ptuning/kernels"])
def test_a_link_in_place_of_our_own_folder_is_refused(home, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kernels").mkdir(parents=True, mode=0o700)
    place = home / ".cache" / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(elsewhere)
    with pytest.raises(UntrustedPathError, match=f"{name}: a link, not a folder"):
        kernels(home)


@with_owners
def test_links_above_are_followed_and_looked_at(home, tmp_path):
    real = tmp_path / "disk" / "caches"
    real.mkdir(parents=True, mode=0o755)
    (home / ".cache").rmdir()
    (home / ".cache").symlink_to(Path("..", "disk", "caches"))
    assert kernels(home) == real / "ptuning" / "kernels"
    (tmp_path / "disk").chmod(0o777)
    with pytest.raises(UntrustedPathError, match="disk: other users can write"):
        kernels(home)


@as_root
def test_a_link_that_another_user_made_is_refused(home, tmp_path):
    open_to_all = tmp_path / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    (open_to_all / "cache").symlink_to(home)
    os.chown(open_to_all / "cache", STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(UntrustedPathError, match=f"cache: belongs to another user .{STRANGER}"):
        private_folder(open_to_all / "cache" / "ptuning", own=1)


@with_owners
def test_a_folder_that_the_user_named_is_taken_as_it_is_or_refused(tmp_path):
    named = tmp_path / "named"
    assert stat.S_IMODE(private_folder(named).stat().st_mode) == 0o700
    named.chmod(0o755)
    (tmp_path / "link").symlink_to(named)
    assert private_folder(tmp_path / "link") == named
    for mode in (0o755, 0o775, 0o1777):
        named.chmod(mode)
        if mode != 0o755:
            with pytest.raises(UntrustedPathError, match="named: other users can write to it"):
                private_folder(named)
        assert stat.S_IMODE(named.stat().st_mode) == mode & 0o1777


@with_owners
def test_links_that_go_in_circles_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        private_folder(tmp_path / "a" / "x", own=1)


def test_a_file_in_the_way_is_named(home):
    (home / ".cache" / "ptuning").write_text("in the way", encoding="ascii")
    with pytest.raises(OSError, match="ptuning"):
        kernels(home)


@with_owners
def test_only_an_absolute_path_is_a_place_for_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in ((str(tmp_path / "x"), tmp_path / "x"), ("relative", None), ("", None)):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        usual = tmp_path / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        assert cache_root() == (expected or usual)
    monkeypatch.delenv("XDG_CACHE_HOME")
    for home in ("relative", "."):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(UntrustedPathError, match="no absolute path"):
            cache_root()


# ---- the file ------------------------------------------------------------------------------------------------------------


@with_owners
def test_a_file_that_others_can_change_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    file.chmod(0o644)
    check_file(file)
    for mode in (0o664, 0o646):
        file.chmod(mode)
        with pytest.raises(UntrustedPathError, match="other users can write to it"):
            check_file(file)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(UntrustedPathError, match="no regular file"):
            check_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "none")


@with_owners
def test_what_libraries_compile_is_kept_where_nobody_else_writes(home, monkeypatch, caplog):
    """torch's compiler runs what lies in its folder, /tmp/torchinductor_USER unless the environment names one."""
    torch_folder = pytest.importorskip("torch._inductor.runtime.cache_dir_utils").cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    keep_compiled_code_private("TORCHINDUCTOR_CACHE_DIR", "inductor")
    assert torch_folder() == str(home / ".cache" / "ptuning" / "inductor")
    keep_compiled_code_private("TORCHINDUCTOR_CACHE_DIR", "other")
    assert torch_folder() == str(home / ".cache" / "ptuning" / "inductor"), "what is set stays"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    home.chmod(0o777)
    keep_compiled_code_private("TORCHINDUCTOR_CACHE_DIR", "inductor")
    assert home not in Path(torch_folder()).parents
    assert stat.S_IMODE(os.stat(torch_folder()).st_mode) == 0o700
    assert "home: other users can write to it" in caplog.text


# ---- the native kernel ---------------------------------------------------------------------------------------------------

PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void planted(void) { puts("PLANTED CODE RAN"); fflush(stdout); }
"""
LOAD = """
import logging
logging.basicConfig(format="%(message)s")
from ptuning.kernels.c_library import load_library
load_library()
print("loaded")
"""


@pytest.fixture(scope="module")
def compilers(quick_compiler):
    """A compiler that does not take long, and a library that tells when it is loaded."""
    (quick_compiler / "planted.c").write_text(PLANTED, encoding="ascii")
    command = [quick_compiler / "cc", "-shared", "-fPIC", quick_compiler / "planted.c", "-o", quick_compiler / "planted.so"]
    subprocess.run(command, check=True, env=os.environ | {"TMPDIR": "/nowhere"})
    return quick_compiler


def start(compilers, home, **changes):
    """Load the kernel in a process of its own; what it printed and what it complained about."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"},
        "PATH": f"{compilers}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "PYTHONPATH": str(ROOT), **changes,
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout == "loaded\n"
    return done.stderr


def plant(compilers, home, source="planted.so"):
    """Another library under the name that it would have if it were ours."""
    (kept,) = kernels(home).iterdir()
    made = (compilers / source).read_bytes()
    stem = kept.name.rpartition("-")[0]
    other = kept.with_name(f"{stem}-{hashlib.sha256(made).hexdigest()}.so")
    kept.unlink()
    other.write_bytes(made)
    other.chmod(0o700)
    return other


@pytest.mark.slow
@with_compiler
@with_owners
def test_a_library_is_loaded_as_it_was_compiled_or_not_at_all(compilers, home):
    assert start(compilers, home) == ""
    (kept,) = kernels(home).iterdir()
    whole = kept.read_bytes()
    assert kept.stem.endswith(hashlib.sha256(whole).hexdigest())
    assert start(compilers, home) == ""
    for damaged in (whole[: len(whole) // 2], whole[:-1] + b"\1"):
        kept.write_bytes(damaged)
        assert start(compilers, home) == f"the native kernel is compiled again ({kept}: not what was compiled)\n"
        assert kept.read_bytes() == whole
    kept.chmod(0o722)
    assert "other users can write to it (mode 0722)" in start(compilers, home)
    elsewhere = home / "elsewhere.so"
    kept.rename(elsewhere)
    kept.symlink_to(elsewhere)
    assert "no regular file" in start(compilers, home)
    assert kept.read_bytes() == whole
    assert not kept.is_symlink()


@pytest.mark.slow
@with_compiler
@as_root
def test_a_library_of_another_user_never_runs(compilers, home):
    start(compilers, home)
    planted = plant(compilers, home)
    os.chown(planted, STRANGER, STRANGER)
    assert f"{planted}: belongs to another user ({STRANGER})" in start(compilers, home)
    assert not planted.exists()
    # The planted one would have been run had it been ours: the attempt above is a real one.
    plant(compilers, home)
    with pytest.raises(AssertionError, match="PLANTED CODE RAN"):
        start(compilers, home)


@pytest.mark.slow
@with_compiler
@with_owners
def test_nothing_is_loaded_from_a_folder_below_one_that_others_can_write_to(compilers, home):
    start(compilers, home)
    plant(compilers, home)
    for place, mode in ((home, 0o777), (home / ".cache", 0o775)):
        place.chmod(mode)
        said = start(compilers, home)
        assert said.startswith("the native kernel is not kept, but compiled at every start (")
        assert f"{place}: other users can write to it (mode 0{mode:o}" in said
        assert len(said.splitlines()) == 1
        place.chmod(0o755)


@pytest.mark.slow
@with_compiler
@with_owners
@pytest.mark.parametrize("changes", [{"HOME": "relative"}, {"XDG_CACHE_HOME": "/dev/null/x"}], ids=str)
def test_a_machine_without_a_folder_for_caches_compiles_every_time(compilers, home, changes):
    said = start(compilers, home, **changes)
    assert said.startswith("the native kernel is not kept, but compiled at every start (")
    assert len(said.splitlines()) == 1


@pytest.mark.slow
@with_compiler
@as_root
def test_nothing_is_compiled_in_a_temporary_folder_that_others_can_rename(compilers, home, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    home.chmod(0o777)
    with pytest.raises(AssertionError, match="shared: other users can write to it"):
        start(compilers, home, TMPDIR=str(shared))
