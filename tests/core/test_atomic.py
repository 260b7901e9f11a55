"""Files appear whole or not at all."""

import os
import subprocess
import sys

import pytest
import torch
from prefixes import save_prefix

from ptuning.checkpoint.adapter import read_adapter
from ptuning.core.atomic import replace_when_whole
from ptuning.model.prefix_encoder import PrefixConfig, PrefixEncoder


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "模型 a.json"
    for text in ("one", "two"):
        with replace_when_whole(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent
        assert path.read_text() == text
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with replace_when_whole(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_when_whole(tmp_path / "file"):
        pass
    assert not os.listdir(tmp_path)


def test_a_save_that_fails_leaves_the_old_prefix(tmp_path, monkeypatch):
    """The settings cannot go into JSON: the second of the two files fails, and neither changes."""
    old = PrefixEncoder(PrefixConfig(3, False, 2, 2, 8))
    save_prefix(tmp_path, old, {"base_model": "a"})
    with pytest.raises(TypeError):
        save_prefix(tmp_path, PrefixEncoder(PrefixConfig(5, False, 2, 2, 8)), {"base_model": object()})
    again = read_adapter(tmp_path)
    assert again.settings["base_model"] == "a"
    assert torch.equal(again.tensors["embedding.weight"], old.embedding.weight)
    assert sorted(os.listdir(tmp_path)) == ["prefix_config.json", "prefix_encoder.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="leftovers are removed on POSIX systems only")
def test_what_a_killed_process_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".file.{gone.pid}.tmp", f".file.{os.getppid()}.tmp", f".other.{gone.pid}.tmp", ".file.mine.tmp"):
        (tmp_path / name).write_text("half")
    with replace_when_whole(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    left = {".file.mine.tmp", f".file.{os.getppid()}.tmp", f".other.{gone.pid}.tmp", "file"}
    assert set(os.listdir(tmp_path)) == left
