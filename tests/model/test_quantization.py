"""Quantised weights: the published bytes, the contract of a frozen linear, and what cannot be quantised."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ptuning.core.errors import UserError
from ptuning.model.quantization import (
    QuantizedEmbedding,
    QuantizedLinear,
    dequantize_weight,
    pack_int4,
    quantize_weight,
    unpack_int4,
)

bits_of_both = pytest.mark.parametrize("bits", [4, 8])


def made(bits, rows=24, columns=64, dtype=torch.float32, bias=True):
    """A quantised linear and the float linear that has its dequantised weight."""
    torch.manual_seed(rows + columns)
    dense = nn.Linear(columns, rows, bias=bias)
    packed = QuantizedLinear.from_linear(dense, bits).to(dtype)
    with torch.no_grad():
        dense.weight.copy_(dequantize_weight(packed.weight, packed.weight_scale, bits))
    return packed, dense.to(dtype)


# ---- the storage -------------------------------------------------------------------------------------------------------


@bits_of_both
def test_bytes_scales_and_values_are_the_published_ones(golden_tensors, bits):
    packed, scale = quantize_weight(golden_tensors["quant.weight"], bits)
    assert packed.dtype == torch.int8
    assert scale.dtype == torch.float16
    assert torch.equal(packed, golden_tensors[f"quant.int{bits}.packed"])
    assert torch.equal(scale, golden_tensors[f"quant.int{bits}.scale"])
    assert torch.equal(dequantize_weight(packed, scale, bits), golden_tensors[f"quant.int{bits}.dequantised"])


def test_every_pair_of_values_survives_packing():
    values = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    packed = pack_int4(values)
    assert packed.shape == (256, 1)
    assert torch.equal(unpack_int4(packed), values)
    assert packed[(values[:, 0] == 1) & (values[:, 1] == -1)].item() == 0x1F  # even column high, odd column low


@bits_of_both
@pytest.mark.parametrize("shape", [(1, 2), (7, 6), (1, 64), (0, 4), (3, 0)])
def test_odd_row_counts_one_row_and_no_row(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed, scale = quantize_weight(weight, bits)
    assert packed.shape == (shape[0], shape[1] * bits // 8)
    back = dequantize_weight(packed, scale, bits)
    assert back.shape == weight.shape
    if weight.numel():
        assert ((back - weight).abs() <= scale.float()[:, None] * 0.51).all()


@bits_of_both
def test_rows_of_zeros_stay_zero(bits):
    weight = torch.zeros(3, 4)
    weight[1] = torch.tensor([0.0, -3.0, 1.0, 3.0])
    packed, scale = quantize_weight(weight, bits)
    assert scale[0] == scale[2] == 0
    back = dequantize_weight(packed, scale, bits)
    assert torch.equal(back[[0, 2]], torch.zeros(2, 4))
    assert back.isfinite().all()


@bits_of_both
@pytest.mark.parametrize("size", [1e-12, 1e-7, 3e-6, 1e-4, 1.0, 1e5])
def test_rows_of_any_size_keep_finite_values_in_range(bits, size):
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(2)) * size
    packed, scale = quantize_weight(weight, bits)
    back = dequantize_weight(packed, scale, bits)
    assert back.isfinite().all()
    assert back.abs().max() <= weight.abs().max() * 1.5


@bits_of_both
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e10])
def test_values_that_have_no_scale_are_refused(bits, value):
    weight = torch.ones(4, 4)
    weight[2, 1] = value
    with pytest.raises(UserError, match="damaged"):
        quantize_weight(weight, bits)


def test_an_odd_number_of_columns_is_refused_at_four_bits():
    with pytest.raises(UserError, match="5 columns, an odd number"):
        quantize_weight(torch.ones(3, 5), 4)
    with pytest.raises(UserError, match="5 input columns, an odd number"):
        QuantizedLinear(5, 3, bits=4)
    assert quantize_weight(torch.ones(3, 5), 8)[0].shape == (3, 5)


@pytest.mark.parametrize("bits", [0, 2, 16])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(UserError, match="allowed are 4 and 8"):
        quantize_weight(torch.ones(2, 2), bits)


# ---- the linear ---------------------------------------------------------------------------------------------------------


@bits_of_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 5, 64), (0, 64)], ids=str)
def test_product_and_input_gradient_are_those_of_the_dense_linear(bits, dtype, shape):
    packed, dense = made(bits, dtype=dtype)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    out, expected = packed(ours), dense(theirs)
    assert (out.dtype, out.shape) == (dtype, expected.shape)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(out, expected, **close)
    with torch.no_grad():
        torch.testing.assert_close(packed(inputs), expected, **close)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    out.backward(grad)
    expected.backward(grad)
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad, **close)


@bits_of_both
def test_nothing_but_the_packed_weight_is_kept_for_backward_and_nothing_gets_a_gradient(bits):
    packed, _ = made(bits, rows=48, columns=64)
    packed.requires_grad_(False)
    held = []
    inputs = torch.randn(5, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor) or tensor, lambda tensor: tensor):
        out = packed(inputs)
    assert held
    own = {packed.weight.data_ptr(), packed.weight_scale.data_ptr()}
    assert {tensor.untyped_storage().data_ptr() for tensor in held} <= own
    out.sum().backward()
    assert [parameter.grad for parameter in packed.parameters()] == [None] * 3
    assert not any(parameter.requires_grad for parameter in packed.parameters())


@bits_of_both
def test_moves_between_dtypes_leave_the_stored_values_alone(bits):
    packed, _ = made(bits)
    stored = packed.weight.clone(), packed.weight_scale.clone()
    for move in ("half", "float", "bfloat16", "double", "cpu", "eval", "train", "half"):
        getattr(packed, move)()
        assert packed.weight_scale.dtype == torch.float16
        assert torch.equal(packed.weight, stored[0])
        assert torch.equal(packed.weight_scale, stored[1])
    assert packed.bias.dtype == torch.float16


@bits_of_both
def test_files_copies_and_state_dicts(bits):
    packed, _ = made(bits)
    inputs = torch.randn(3, 64)
    with torch.no_grad():
        expected = packed(inputs)
        buffer = io.BytesIO()
        torch.save(packed, buffer)
        buffer.seek(0)
        fresh = QuantizedLinear(64, 24, bits=bits)
        fresh.load_state_dict(packed.state_dict())
        for other in (torch.load(buffer, weights_only=False), copy.deepcopy(packed), fresh):
            assert list(other.state_dict()) == ["weight", "weight_scale", "bias"]
            assert torch.equal(other(inputs), expected)
    meta = QuantizedLinear(64, 24, bits=bits, device="meta")
    assert meta.weight.shape == packed.weight.shape


@bits_of_both
def test_autocast_gives_its_own_dtype(bits):
    packed, dense = made(bits)
    inputs = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = packed(inputs), dense(inputs)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.03, atol=0.03)
    out.float().sum().backward()
    assert inputs.grad.dtype == torch.float32


@bits_of_both
def test_gradient_checkpointing_gives_equal_gradients(bits):
    first, second = made(bits, 64, 64)[0], made(bits, 32, 64)[0]
    whole = nn.Sequential(first, nn.GELU(), second)
    grads = []
    for reentrant in (None, False, True):
        inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(5)).requires_grad_()
        out = whole(inputs) if reentrant is None else checkpoint(whole, inputs, use_reentrant=reentrant)
        out.square().sum().backward()
        grads.append(inputs.grad)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@bits_of_both
def test_a_linear_without_bias_and_print(bits):
    packed, dense = made(bits, bias=False)
    assert packed.bias is None
    torch.testing.assert_close(packed(torch.ones(1, 64)), dense(torch.ones(1, 64)))
    assert f"bits={bits}" in repr(packed)


# ---- the embedding -------------------------------------------------------------------------------------------------------


@bits_of_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_embedding_rows_follow_the_models_dtype(bits, dtype):
    weight = torch.randn(11, 8, generator=torch.Generator().manual_seed(6))
    packed = QuantizedEmbedding.from_embedding(weight, bits).to(dtype)
    ids = torch.tensor([[0, 10, 3], [3, 3, 1]])
    rows = packed(ids)
    assert (rows.dtype, rows.shape) == (dtype, (2, 3, 8))
    expected = dequantize_weight(*quantize_weight(weight, bits), bits, dtype)
    assert torch.equal(rows, expected[ids])
    assert packed.weight_scale.dtype == torch.float16
    assert list(packed.state_dict()) == ["weight", "weight_scale"]
    with pytest.raises(IndexError):
        packed(torch.tensor([11]))
