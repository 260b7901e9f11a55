"""PyTorch's files: the same tensors as torch.load gives, mapped where they lie, and nothing else is taken for one."""

import pickle

import pytest
import torch
from hostile_files import claimed, legacy_of
from torch import nn

from ptuning.checkpoint.weight_files import open_tensors, read_tensors
from ptuning.core.errors import UserError

BASE = torch.arange(24, dtype=torch.float32)
DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16,
)  # fmt: skip
STATES = {
    "dtypes": {str(dtype): torch.ones(3, 2).to(dtype) for dtype in DTYPES},
    "views": {"part": BASE[4:10], "turned": BASE.view(4, 6).T, "whole": BASE, "steps": BASE[::5], "scalar": BASE[3]},
    "shapes": {"none": torch.empty(0), "no rows": torch.empty(0, 7), "scalar": torch.tensor(2.5)},
    "parameters": dict(nn.Linear(3, 2).named_parameters()) | {"frozen": nn.Parameter(torch.ones(2), requires_grad=False)},
    "a module's": nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).state_dict(),
    "one storage, two names": {"embedding": BASE, "head": BASE},
    "other things beside": {"w": BASE, "epoch": 3, "note": "text", "sizes": torch.Size([2]), "more": [1e-3, (2, None)]},
    "wants gradients": {"w": torch.ones(3, requires_grad=True)},
}  # fmt: skip


def read(path):
    return dict(read_tensors(path))


def numbers(tensor):
    """Its values as bytes; not every dtype can be compared."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", STATES)
def test_the_tensors_are_those_of_torch(tmp_path, name, legacy):
    path = tmp_path / "pytorch_model.bin"
    state = STATES[name]
    if legacy:  # there are no storages of these before
        state = {key: value for key, value in state.items() if key not in ("torch.float8_e4m3fn", "torch.uint16")}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    expected = {k: v for k, v in torch.load(path, weights_only=True).items() if isinstance(v, torch.Tensor)}
    found = read(path)
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (expected[key].dtype, expected[key].shape)
        assert numbers(tensor) == numbers(expected[key])
        assert not tensor.requires_grad
    facts = open_tensors(path).facts()
    assert {key: (fact.shape, fact.dtype) for key, fact in facts.items()} == {
        key: (tuple(tensor.shape), tensor.dtype) for key, tensor in expected.items()
    }


def test_a_storage_with_two_names_stays_one(tmp_path):
    torch.save(STATES["one storage, two names"], tmp_path / "a.bin")
    found = read(tmp_path / "a.bin")
    assert found["embedding"].data_ptr() == found["head"].data_ptr()


def test_a_tensor_outlives_its_file(tmp_path):
    torch.save({"w": BASE}, tmp_path / "a.bin")
    tensor = read(tmp_path / "a.bin")["w"]
    (tmp_path / "a.bin").unlink()
    assert torch.equal(tensor, BASE)


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path):
    torch.save({"w": BASE}, tmp_path / "a.bin")
    read(tmp_path / "a.bin")["w"].zero_()
    assert torch.equal(read(tmp_path / "a.bin")["w"], BASE)


def test_claims_that_fit_are_believed(tmp_path):
    """The helpers of the hostile files make files that are read where their claims are true."""
    (tmp_path / "a.bin").write_bytes(claimed(2, (3, 2), (2, 1), 16))
    (tmp_path / "b.bin").write_bytes(legacy_of(2, (3, 2), (2, 1), 16))
    for name in ("a.bin", "b.bin"):
        assert torch.equal(read(tmp_path / name)["w"], torch.zeros(3, 2))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_is_refused_in_our_words_in_every_protocol(tmp_path, protocol):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sign"), "w"))

    torch.save({"w": Trap()}, tmp_path / "a.bin", pickle_protocol=max(protocol, 2))
    (tmp_path / "b.bin").write_bytes(pickle.dumps({"w": Trap()}, protocol=protocol))
    for name in ("a.bin", "b.bin"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as PyTorch weights: refused") as caught:
            read(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "sign").exists()
