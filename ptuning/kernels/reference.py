"""The reference kernel: any device, any dtype, dequantised piece by piece. What the other kernels are held against.

Legend: M rows of activations, O output rows, I input columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.core import limits
from ptuning.kernels.packed import PackedWeight, dequantize_weight, untile_int4

Unpack = Callable[[Tensor, Tensor, int, torch.dtype], Tensor]
"""(packed [O, I*bits/8], possibly a part of a larger one; scale [O]; bits; dtype) to the float weight [O, I]."""


def product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None, unpack: Unpack = dequantize_weight) -> Tensor:
    """``inputs @ dequantised.T + bias``.

    Args:
        inputs: [M, I].
        weight: the packed weight.
        bias: [O] or None.
        unpack: what makes a piece of the weight float.

    Returns:
        [M, O] in the dtype of ``inputs``.
    """
    dtype, step = inputs.dtype, _step(weight.columns, inputs)
    data, bias = _published(weight), None if bias is None else bias.to(dtype)
    if step >= weight.rows:
        return F.linear(inputs, unpack(data, weight.scale, weight.bits, dtype), bias)
    result = inputs.new_empty(inputs.shape[0], weight.rows)
    for start in range(0, weight.rows, step):
        rows = slice(start, start + step)
        dense = unpack(data[rows], weight.scale[rows], weight.bits, dtype)
        result[:, rows] = F.linear(inputs, dense, None if bias is None else bias[rows])
    return result


def input_gradient(gradient: Tensor, weight: PackedWeight, unpack: Unpack = dequantize_weight) -> Tensor:
    """``gradient @ dequantised``; cut by columns, so that no sum is rounded in pieces.

    Args:
        gradient: [M, O].
        weight: the packed weight.
        unpack: what makes a piece of the weight float.

    Returns:
        [M, I] in the dtype of ``gradient``.
    """
    dtype, step = gradient.dtype, _step(weight.rows, gradient)
    data, scale = _published(weight), weight.scale
    if step >= weight.columns:
        return gradient @ unpack(data, scale, weight.bits, dtype)
    result = gradient.new_empty(gradient.shape[0], weight.columns)
    step += step % 2  # both columns of a byte
    for start in range(0, weight.columns, step):
        held = slice(start * weight.bits // 8, (start + step) * weight.bits // 8)
        result[:, start : start + step] = gradient @ unpack(data[:, held], scale, weight.bits, dtype)
    return result


def refuse(weight: PackedWeight, inputs: Tensor) -> str | None:
    """Why this kernel cannot multiply these; it always can."""
    return None


def _published(weight: PackedWeight) -> Tensor:
    return untile_int4(weight.data, weight.rows) if weight.lanes else weight.data


def _step(across: int, like: Tensor) -> int:
    weights = limits.MAX_UNPACKED_CPU if like.device.type == "cpu" else limits.MAX_UNPACKED_ACCELERATOR
    return max(1, weights // max(1, across))
