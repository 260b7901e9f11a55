"""GELU is torch's, to the rounding of float32, whoever computes it."""

import pytest
import torch
from torch.nn import functional as F

from ptuning.kernels import dispatch, native
from ptuning.kernels import gelu as module
from ptuning.kernels.gelu import gelu


@pytest.fixture(params=["native", "reference"], autouse=True)
def kernel(request):
    if request.param == "native" and dispatch.start("native") is None:
        pytest.skip("no C compiler here; the reason is logged")
    dispatch.configure(kernel=request.param)
    yield request.param
    dispatch.configure()


@pytest.mark.parametrize("shape", [(0, 8), (1,), (3, 5), (2, 1, 4099), (7, 4096)], ids=str)
def test_the_function(shape):
    values = 4 * torch.empty(shape).normal_(generator=torch.Generator().manual_seed(0))
    wanted = F.gelu(values.double(), approximate="tanh")
    with torch.inference_mode():
        made = gelu(values)
    assert made.shape == values.shape
    torch.testing.assert_close(made.double(), wanted, rtol=2e-6, atol=6e-7)


def test_numbers_at_the_ends():
    values = torch.tensor([0.0, 1e-30, -1e-30, 1e-42, 5.5, 100.0, 1e20, torch.inf, -20.0, -1e20, torch.nan])
    wanted = torch.tensor([0.0, 5e-31, -5e-31, 5e-43, 5.5, 100.0, 1e20, torch.inf, 0.0, 0.0, torch.nan])
    with torch.inference_mode():
        made = gelu(values)
    torch.testing.assert_close(made, wanted, equal_nan=True)


def test_what_may_be_computed_anew_with_gradients_is_torchs(kernel, monkeypatch):
    """Gradient checkpointing: without gradients first, with them later, equal to the bit."""
    asked = []
    monkeypatch.setattr(module.native, "gelu", lambda values: asked.append(values) or native.gelu(values))
    values = torch.tensor([0.5, -2.0], requires_grad=True)
    made = gelu(values)
    made.sum().backward()
    with torch.no_grad():
        assert torch.equal(gelu(values), made)
    twin = values.detach().clone().requires_grad_()
    F.gelu(twin, approximate="tanh").sum().backward()
    assert torch.equal(values.grad, twin.grad)
    assert not asked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_stay_what_they_are(dtype):
    values = torch.tensor([0.5, -2.0], dtype=dtype)
    with torch.inference_mode():
        made = gelu(values)
        assert made.dtype == dtype
        assert torch.equal(made, F.gelu(values, approximate="tanh"))
