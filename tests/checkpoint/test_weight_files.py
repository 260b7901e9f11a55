"""Weight files: pointers, shards and damaged files are refused by name before anything is read."""

import json

import pytest
import torch
from checkpoints import POINTER, golden_state, make_checkpoint, write_json, write_weights

import ptuning
from ptuning.checkpoint.weight_files import check_whole, find_weights, read_json, read_tensors
from ptuning.core.errors import UserError

FORMS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}


def cut(path, left):
    """Keep the first bytes of a file; ``left`` below 0: all but so many."""
    path.write_bytes(path.read_bytes()[:left])


@pytest.fixture(params=["safetensors", "bin"])
def sharded(tmp_path, request):
    return make_checkpoint(tmp_path, form=request.param, shards=3), FORMS[request.param]


def refused(folder, match):
    """Both doors say it, and the tensors stay unread."""
    with pytest.raises(UserError, match=match) as caught:
        ptuning.load_model(folder, device="cpu")
    with pytest.raises(UserError, match=match):
        ptuning.ChatGLMForConditionalGeneration.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_pointer_in_place_of_a_shard_or_file(sharded, tmp_path):
    folder, _ = sharded
    shard = sorted(folder.glob("*-00002-of-00003*"))[0]
    shard.write_bytes(POINTER)
    refused(folder, rf"{shard.name} is a Git LFS pointer.*git lfs pull")
    (tmp_path / "index").mkdir()


@pytest.mark.parametrize("name", ["config.json", "ice_text.model", "tokenizer_config.json"])
def test_a_pointer_in_place_of_a_small_file(tmp_path, name):
    folder = make_checkpoint(tmp_path)
    (folder / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"{name} is a Git LFS pointer"):
        ptuning.load_model(folder, device="cpu")
    with pytest.raises(UserError, match=rf"{name} is a Git LFS pointer"):
        ptuning.load_tokenizer(folder)


def test_a_pointer_in_place_of_the_index(sharded):
    folder, name = sharded
    (folder / f"{name}.index.json").write_bytes(POINTER)
    refused(folder, r"index\.json is a Git LFS pointer")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_pointer_in_place_of_the_one_file(tmp_path, form):
    folder = make_checkpoint(tmp_path, form=form)
    (folder / FORMS[form]).write_bytes(POINTER)
    refused(folder, "Git LFS pointer")


def test_missing_shards_are_all_named(sharded):
    folder, _ = sharded
    gone = sorted(folder.glob("*-of-00003*"))[1:]
    for path in gone:
        path.unlink()
    refused(folder, rf"lists 3 shards; missing in .*{gone[0].name}, {gone[1].name}")


@pytest.mark.parametrize("left", [0, 1, 9, 500, -1, -100])
def test_short_shards(sharded, left):
    folder, _ = sharded
    shard = sorted(folder.glob("*-00003-of-00003*"))[0]
    cut(shard, left)
    refused(folder, rf"{shard.name} is incomplete or damaged")


def test_a_shard_of_another_download_is_too_short_for_the_index(sharded):
    folder, name = sharded
    index = folder / f"{name}.index.json"
    values = json.loads(index.read_text())
    values["metadata"]["total_size"] += 10**6
    write_json(index, values)
    refused(folder, "incomplete, fetch them again")


@pytest.mark.parametrize("left", [0, 7, 8, 100, 5000, -1])
@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy"])
def test_cut_files(tmp_path, form, left):
    folder = make_checkpoint(tmp_path, form=form)
    cut(folder / FORMS.get(form, "pytorch_model.bin"), left)
    refused(folder, "incomplete or damaged|cannot be read as PyTorch weights")


@pytest.mark.parametrize(
    "values",
    [{}, *({"weight_map": value} for value in (None, [], {}, {"a": 3}, {"a": "../m.bin"}, {"a": "/etc/passwd"}))],
    ids=str,
)
def test_broken_indexes(sharded, values):
    folder, name = sharded
    write_json(folder / f"{name}.index.json", values)
    refused(folder, r"index\.json")


def test_an_index_without_sizes_is_enough(sharded):
    folder, name = sharded
    index = folder / f"{name}.index.json"
    for metadata in (None, {}, {"total_size": "12"}):
        write_json(index, json.loads(index.read_text()) | {"metadata": metadata})
        assert len(find_weights(folder).paths) == 3


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b'{"a": 3}', b'{"a": {}}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"\xff\xfe"],
)
def test_odd_safetensors_headers(tmp_path, header):
    folder = make_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    refused(folder, r"model\.safetensors (is incomplete|cannot be read)|lacks")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80", b"<html>Not found</html>", b"\x80\x02}q\x00."])
def test_things_that_are_no_pytorch_file(tmp_path, content):
    folder = make_checkpoint(tmp_path, form="bin")
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, r"pytorch_model\.bin|lacks")


def test_safetensors_win_over_bin(tmp_path):
    folder = make_checkpoint(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"older")
    assert find_weights(folder).safetensors
    (folder / "model.safetensors").unlink()
    write_weights(folder, golden_state(), "bin", shards=2)
    assert len(find_weights(folder).paths) == 2


def test_read_tensors_of_some_names(tmp_path):
    state = {"a.x": torch.ones(2), "a.y": torch.zeros(1), "b": torch.ones(1)}
    for form, name in FORMS.items():
        write_weights(tmp_path, state, form)
        assert sorted(key for key, _ in read_tensors(tmp_path / name, "a.")) == ["a.x", "a.y"]
        check_whole(tmp_path / name)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"a": 1,}', "\ufeffnot json"])
def test_json_files_that_are_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    """Editors on Windows put one in front."""
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}


def test_json_in_another_encoding_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes('{"a": "中"}'.encode("gbk"))
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "config.json")
