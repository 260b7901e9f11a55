"""Devices and dtypes as users write them."""

import pytest
import torch

from ptuning.checkpoint.placement import one_device, parse_dtype, pick_device
from ptuning.core.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("float32", torch.float32), ("fp32", torch.float32), ("float", torch.float32), (torch.float32, torch.float32),
        ("half", torch.float16), ("fp16", torch.float16), ("torch.float16", torch.float16), (torch.half, torch.float16),
        ("bf16", torch.bfloat16), ("bfloat16", torch.bfloat16), ("auto", None), (None, None),
    ],
)
def test_dtypes(given, dtype):
    assert parse_dtype(given) is dtype


@pytest.mark.parametrize("given", ["float64", torch.float64, torch.int8, "int4", "", 16, "torch.nn", "__name__", False])
def test_other_dtypes_are_refused(given):
    with pytest.raises(UserError, match="allowed are float32, float16, bfloat16 and auto"):
        parse_dtype(given)


def test_the_first_dtype_counts():
    assert parse_dtype(None, "bf16") is torch.bfloat16
    assert parse_dtype("fp16", "bf16") is torch.float16


@pytest.mark.parametrize("given", ["gpu", "cuda0", "cpu:x", "disk", "meta", "", 3.5, object()])
def test_other_devices_are_refused(given):
    with pytest.raises(UserError, match="allowed are auto, cpu, cuda, cuda:N and mps"):
        pick_device(given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("given", ["cuda", "cuda:3", 0])
def test_devices_that_are_not_there(given):
    with pytest.raises(UserError, match="sees no CUDA device; use --device auto"):
        pick_device(given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_number_beyond_the_devices():
    assert pick_device("cuda:0").index == 0
    with pytest.raises(UserError, match="CUDA devices"):
        pick_device(f"cuda:{torch.cuda.device_count()}")


def test_automatic_choice():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    for given in ("auto", None):
        assert pick_device(given).type == best
    assert one_device(None, "auto").type == best


def test_device_maps_name_one_device():
    assert one_device(None, None) == CPU
    assert one_device(None, "cpu") == CPU
    assert one_device(None, {"": "cpu"}) == CPU
    assert one_device(None, {"transformer": "cpu", "lm_head": "cpu"}) == CPU
    assert one_device("cpu", "auto") == CPU
    for several in ({"transformer": "cpu", "lm_head": "cuda"}, {}):
        with pytest.raises(UserError, match="device_map names"):
            one_device(None, several)
