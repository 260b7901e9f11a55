"""The Triton kernels (CUDA): a fused unpack-and-multiply for few rows, and an unpack that feeds cuBLAS for many.

Imported only when it is asked for: Triton need not be there. Under ``TRITON_INTERPRET=1`` the same kernels run on the CPU,
which is how they are tested without a GPU (the interpreter multiplies no bfloat16, so there everything is float32).

Legend: M rows of activations, O output rows, I input columns, W bytes in a row of the packed weight (I or I/2).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptuning.kernels import reference
from ptuning.kernels.packed import PackedWeight

FEW_ROWS = 16  # the smallest tile of tensor cores: up to here reading the weight is all that costs
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _product_kernel(
    inputs, weight, scale, bias, result,
    row_count, output_count, width, inputs_step, weight_step, result_step,
    FOUR_BITS: tl.constexpr, HAS_BIAS: tl.constexpr, IN_FLOAT32: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """ROWS x OUTPUTS of ``inputs @ dequantised.T + bias``; a program walks along the bytes of its rows of the weight."""
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    kind = tl.float32 if IN_FLOAT32 else inputs.dtype.element_ty
    for start in range(0, width, BYTES):
        byte = start + tl.arange(0, BYTES)
        there = (byte[:, None] < width) & (output[None, :] < output_count)
        place = output[None, :].to(tl.int64) * weight_step + byte[:, None]
        packed = tl.load(weight + place, mask=there, other=0).to(tl.int32)
        seen = (row[:, None] < row_count) & (byte[None, :] < width)
        if FOUR_BITS:
            from_even = inputs + row[:, None] * inputs_step + 2 * byte[None, :]
            even = tl.load(from_even, mask=seen, other=0.0).to(kind)
            odd = tl.load(from_even + 1, mask=seen, other=0.0).to(kind)
            high = (packed >> 4).to(tl.float32).to(kind)
            low = ((packed << 28) >> 28).to(tl.float32).to(kind)
            total = tl.dot(even, high, total, input_precision="ieee")
            total = tl.dot(odd, low, total, input_precision="ieee")
        else:
            values = tl.load(inputs + row[:, None] * inputs_step + byte[None, :], mask=seen, other=0.0)
            total = tl.dot(values.to(kind), packed.to(tl.float32).to(kind), total, input_precision="ieee")
    total *= tl.load(scale + output, mask=output < output_count, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + output, mask=output < output_count, other=0.0).to(tl.float32)[None, :]
    target = result + row[:, None] * result_step + output[None, :]
    tl.store(target, total.to(result.dtype.element_ty), mask=(row[:, None] < row_count) & (output[None, :] < output_count))


@triton.jit
def _unpack_kernel(
    weight, scale, result,
    output_count, width, weight_step,
    FOUR_BITS: tl.constexpr, OUTPUTS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A tile of the dequantised weight; both columns of a byte are stored side by side."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    there = (output[:, None] < output_count) & (byte[None, :] < width)
    row = output[:, None].to(tl.int64)
    packed = tl.load(weight + row * weight_step + byte[None, :], mask=there, other=0).to(tl.int32)
    step = tl.load(scale + output, mask=output < output_count, other=0.0).to(tl.float32)[:, None]
    kind = result.dtype.element_ty
    if FOUR_BITS:
        high = ((packed >> 4).to(tl.float32) * step).to(kind)
        low = (((packed << 28) >> 28).to(tl.float32) * step).to(kind)
        column = tl.program_id(1) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
        target = result + row * (2 * width) + column[None, :]
        tl.store(target, tl.interleave(high, low), mask=(output[:, None] < output_count) & (column[None, :] < 2 * width))
    else:
        tl.store(result + row * width + byte[None, :], (packed.to(tl.float32) * step).to(kind), mask=there)


def start() -> tuple[str, torch.dtype]:
    """Nothing to prepare: Triton compiles when it is called. Gives device and dtype of what to try first."""
    return ("cpu", torch.float32) if _is_interpreted() else ("cuda", torch.float16)


def product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``inputs @ dequantised.T + bias`` as :func:`ptuning.kernels.reference.product`."""
    if 0 < inputs.shape[0] <= FEW_ROWS:
        return _few_rows(inputs, weight, bias)
    return reference.product(inputs, weight, bias, unpack)


def input_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    """``gradient @ dequantised`` as :func:`ptuning.kernels.reference.input_gradient`."""
    return reference.input_gradient(gradient, weight, unpack)


def refuse(weight: PackedWeight, inputs: Tensor) -> str | None:
    """Why this kernel cannot multiply these; None where it can."""
    places = ("cpu",) if _is_interpreted() else ("cuda",)
    if inputs.device.type not in places or weight.data.device != inputs.device or weight.lanes:
        return f"Triton works on CUDA tensors; weight on {weight.data.device}, activations on {inputs.device}"
    if inputs.dtype not in _DTYPES:
        return f"the Triton kernels work in float16, bfloat16 and float32, not in {inputs.dtype}"
    return None


def unpack(data: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The float weight as :func:`ptuning.kernels.packed.dequantize_weight` makes it, in one pass over memory."""
    rows, width = data.shape
    unpacked = torch.empty(rows, width * 8 // bits, dtype=dtype, device=data.device)
    grid = (triton.cdiv(rows, 16), triton.cdiv(width, 128))
    with _on(data):
        _unpack_kernel[grid](
            data, scale, unpacked, rows, width, data.stride(0), FOUR_BITS=bits == 4, OUTPUTS=16, BYTES=128
        )
    return unpacked


def _few_rows(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    inputs = inputs.contiguous()
    result = inputs.new_empty(inputs.shape[0], weight.rows)
    outputs = 16 if weight.rows <= 8192 else 32
    with _on(inputs):
        _product_kernel[(triton.cdiv(weight.rows, outputs),)](
            inputs, weight.data, weight.scale, result if bias is None else bias, result,
            inputs.shape[0], weight.rows, weight.data.shape[1],
            inputs.stride(0), weight.data.stride(0), result.stride(0),
            FOUR_BITS=weight.bits == 4, HAS_BIAS=bias is not None, IN_FLOAT32=_is_interpreted(),
            ROWS=16, OUTPUTS=outputs, BYTES=128,
        )  # fmt: skip
    return result


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _is_interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)
