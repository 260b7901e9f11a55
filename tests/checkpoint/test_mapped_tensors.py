"""Reading a checkpoint takes no memory for the mapped file, and what the published file holds once is held once."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

import ptuning
from ptuning.checkpoint.weight_files import open_tensors, read_tensors

HEAD, EMBEDDING = "lm_head.weight", "transformer.word_embeddings.weight"
MEGABYTE = 1 << 20
COUNTING = """
import json, sys
from pathlib import Path
from ptuning.checkpoint.weight_files import read_tensors
def resident():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(("RssFile", "RssAnon"))) * 1024
before, most, total = resident(), 0, 0
for _, tensor in read_tensors(Path(sys.argv[1])):
    total += int(tensor.sum())
    most = max(most, resident() - before)
print(json.dumps([most, total]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_one_tensor_of_a_mapped_file_is_resident_at_a_time(tmp_path, form):
    if not sys.platform.startswith("linux"):
        pytest.skip("pages are let go on Linux only")
    state = {f"tensor{index}": torch.full((16 * MEGABYTE,), index, dtype=torch.int8) for index in range(12)}
    path = tmp_path / f"model.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    done = subprocess.run([sys.executable, "-c", COUNTING, str(path)], capture_output=True, text=True, check=True)
    most, total = json.loads(done.stdout)
    assert total == 16 * MEGABYTE * sum(range(12))
    assert most < 64 * MEGABYTE  # of 192


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_forgotten_tensor_keeps_its_values(tmp_path, form):
    state = {"one": torch.arange(MEGABYTE), "other": torch.arange(7)}
    path = tmp_path / f"model.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    read = dict(read_tensors(path))  # every one was forgotten when the next was read
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_memory_outside_the_file_is_left_alone(tmp_path):
    """A tensor that does not lie where the processor needs it is a copy."""
    header = b'{"a": {"dtype": "F32", "shape": [%d], "data_offsets": [0, %d]}} ' % (MEGABYTE, 4 * MEGABYTE)
    assert len(header) % 4
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.ones(MEGABYTE).numpy().tobytes())
    opened = open_tensors(path)
    tensor = opened.tensor("a")
    opened.forget("a")
    assert tensor.sum() == MEGABYTE


def test_the_hash_of_a_mapped_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(2 * MEGABYTE)}, path)
    assert open_tensors(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32",
    "uint64", "float8_e4m3fn", "float8_e5m2", "complex64",
)], ids=str)
def test_every_dtype_is_read_as_the_library_reads_it(tmp_path, dtype):
    torch.manual_seed(1)
    numbers = torch.randint(0, 2, (3, 5, 2)).to(dtype)
    path = tmp_path / "model.safetensors"
    save_file({"odd": torch.zeros(3, dtype=torch.int8), "a": numbers, "b": numbers[0, 0, 0].clone(), "c": numbers[:0]}, path)
    theirs = load_file(path)
    ours = dict(open_tensors(path).tensors())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


@pytest.fixture
def published_int4(golden, tmp_path):
    """The golden model in the layout of the published INT4 file: embedding and head are one float16 storage."""
    model = ptuning.load_model(golden / "model", quantization_bit=4, device="cpu", dtype="float16")
    state = model.state_dict()
    state[HEAD] = state[EMBEDDING]
    return make_checkpoint(
        tmp_path / "int4", form="bin", state=state, dtype=torch.float16, config={"quantization_bit": 4}
    )


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_one_storage_on_file_is_one_storage_in_memory(published_int4, dtype):
    model = ptuning.load_model(published_int4, device="cpu", dtype=dtype)
    head, embedding = model.lm_head.weight, model.transformer.word_embeddings.weight
    assert head.data_ptr() == embedding.data_ptr()
    stored = torch.load(published_int4 / "pytorch_model.bin", weights_only=True)[HEAD]
    # Float tables of a quantised model stay as stored where the model is wider, and are widened where they are read.
    assert head.dtype == (stored.dtype if model.dtype == torch.float32 else model.dtype)
    assert torch.equal(head, stored.to(head.dtype))


def test_a_shared_head_is_saved_under_its_own_name(published_int4, tmp_path):
    model = ptuning.load_model(published_int4, device="cpu", dtype="float16")
    model.save_pretrained(tmp_path / "saved")
    again = ptuning.load_model(tmp_path / "saved", device="cpu", dtype="float16")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_of_a_float_model_and_different_weights_stay_separate(golden, tmp_path):
    model = ptuning.load_model(golden / "model", device="cpu", dtype="float16")
    state = model.state_dict()
    state[HEAD] = state[EMBEDDING]
    shared = ptuning.load_model(make_checkpoint(tmp_path / "a", form="bin", state=state, dtype=torch.float16), device="cpu")
    assert shared.lm_head.weight.data_ptr() != shared.transformer.word_embeddings.weight.data_ptr()
    quantised = ptuning.load_model(golden / "model", quantization_bit=4, device="cpu")
    assert not torch.equal(quantised.lm_head.weight, quantised.transformer.word_embeddings.weight)
