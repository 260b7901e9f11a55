"""The float linear equals nn.Linear, whatever multiplies."""

import pytest
import torch

from ptuning.model.float_linear import FloatLinear


@pytest.mark.parametrize("rows", [0, 1, 4, 8, 33, 129])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_product(rows, bias, dtype):
    torch.manual_seed(0)
    linear = FloatLinear(48, 20, bias, dtype=dtype)
    inputs = torch.randn(1, rows, 48, dtype=dtype)
    with torch.no_grad():
        made, wanted = linear(inputs), torch.nn.functional.linear(inputs, linear.weight, linear.bias)
    assert made.shape == (1, rows, 20)
    torch.testing.assert_close(made, wanted)


def test_what_learns_gets_its_gradients():
    linear = FloatLinear(8, 3)
    inputs = torch.randn(5, 8, requires_grad=True)
    linear(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, linear.weight.sum(0).expand(5, 8))
    torch.testing.assert_close(linear.weight.grad, inputs.detach().sum(0).expand(3, 8))


def test_autocast_gives_its_dtype():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert FloatLinear(8, 3)(torch.randn(5, 8)).dtype == torch.bfloat16
