"""The CPU kernel, made of torch's own operators: no compiler, no package beside torch.

Legend: M rows of activations, O output rows, I input columns, l lanes of a tile.

Few rows in bfloat16 (decoding) go to torch's INT4 and INT8 operators, which read the packed weight at the speed of
memory; their own group scale is left at 1 and the float16 row scale multiplied in float32 after them, so that only the
operator's output is rounded. Many rows (a prompt, training) unpack a piece of the weight that fits the cache and multiply
it at once. Both nibbles are unpacked *in place in the byte*, as 16 times their value (``byte & -16`` and ``byte << 4``),
which needs no shift back: the 16 goes into the scale. Even and odd columns stay apart, and the activations are put in
that order instead.

Integers up to 8 bits are exact in bfloat16, so the weight itself is never rounded.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.core import limits
from ptuning.kernels.packed import PackedWeight, signed_columns, tile_int4, untile_int4

# Measured crossings (docs/performance.md): up to so many rows the operator beats unpacking. Where bfloat16 is emulated the
# operator's time grows faster with the rows, and what it is compared with is float32.
FEW_ROWS = {4: 32, 8: 8}
FEW_ROWS_EMULATED = 16
FEW_ROWS_RESIDENT = {4: 8, 8: 4}
_ROWS_TOGETHER = 8


def product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``inputs @ dequantised.T + bias`` as :func:`ptuning.kernels.reference.product`."""
    wide = widened(inputs.dtype)
    resident = weight.resident if weight.resident is not None and weight.resident.dtype == wide else None
    few = FEW_ROWS_RESIDENT[weight.bits] if resident is not None else few_rows(weight.bits)
    if inputs.shape[0] <= few and _operator_fits(weight, inputs):
        return _operator_product(inputs, weight, bias)
    if wide != inputs.dtype:
        return product(inputs.to(wide), weight, bias).to(inputs.dtype)
    if resident is not None:
        return _scaled(linear(inputs, resident), weight.scale, bias)
    return _tiled_product(inputs, weight, bias) if weight.lanes else _published_product(inputs, weight, bias)


def input_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    """``gradient @ dequantised`` as :func:`ptuning.kernels.reference.input_gradient`."""
    wide = widened(gradient.dtype)
    if wide != gradient.dtype:
        return input_gradient(gradient.to(wide), weight).to(gradient.dtype)
    if weight.resident is not None and weight.resident.dtype == gradient.dtype:
        return (gradient * weight.scale).to(gradient.dtype) @ weight.resident
    return _tiled_gradient(gradient, weight) if weight.lanes else _published_gradient(gradient, weight)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs @ weight.T + bias`` of equal dtypes; float32 with few rows through oneDNN, which is faster than MKL there."""
    if not onednn_is_faster(inputs) or not weight.numel():
        return F.linear(inputs, weight, bias)
    # oneDNN makes and keeps code for every number of rows: some numbers stand for all, lest memory grow with the requests.
    rows = inputs.shape[0]
    missing = -rows % _ROWS_TOGETHER if rows > _ROWS_TOGETHER else 0
    inputs = F.pad(inputs, (0, 0, 0, missing)) if missing else inputs.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product[:rows] if missing else product


def onednn_is_faster(inputs: Tensor) -> bool:
    """Whether oneDNN multiplies these [M, I] faster than MKL does."""
    return inputs.dtype == torch.float32 and 1 <= inputs.shape[0] <= _onednn_rows()


@cache
def _onednn_rows() -> int:
    """Up to so many rows oneDNN's float32 beats MKL's here (docs/performance.md); 0 where torch does not offer it."""
    try:
        torch.ops.mkldnn._linear_pointwise(torch.ones(4, 2), torch.ones(3, 2), None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):
        return 0
    return 1 << 30 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 128


@cache
def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware: AVX-512 with bf16, or AMX."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(supported is not None and supported() for supported in checks)


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype to multiply many rows in: float32 for float16, an order slower on a CPU, and for emulated bfloat16."""
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not has_fast_bfloat16())
    return torch.float32 if slow else dtype


def is_fast(inputs: Tensor) -> bool:
    """Whether a dense product of these is best left to their own dtype (on other devices than a CPU it is)."""
    return inputs.device.type != "cpu" or widened(inputs.dtype) == inputs.dtype


def few_rows(bits: int) -> int:
    """Up to so many rows of bfloat16 the operator is the way."""
    return FEW_ROWS[bits] if has_fast_bfloat16() else FEW_ROWS_EMULATED


def refuse(weight: PackedWeight, inputs: Tensor) -> str | None:
    """Why this kernel cannot multiply these; None where it can."""
    if inputs.device.type != "cpu" or weight.data.device.type != "cpu":
        return f"the cpu kernel works on CPU tensors, not on {inputs.device.type}"
    if inputs.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the cpu kernel works in float32, bfloat16 and float16, not in {inputs.dtype}"
    return None


def wants_tiles(weight: PackedWeight, inputs: Tensor) -> bool:
    """Whether turning this weight to the tiled form would speed products like this one up."""
    return (
        weight.bits == 4
        and not weight.lanes
        and inputs.dtype == torch.bfloat16
        and 0 < inputs.shape[0] <= few_rows(4)
        and weight.columns % 32 == 0
        and weight.rows * weight.columns >= 1 << 16  # below that, what is saved is less than a call costs
        and tile_lanes() > 0
    )


@cache
def tile_lanes() -> int:
    """Lanes of the form that torch's INT4 operator reads on this CPU; 0 where it has no fast path or another form."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"):
        return 0
    values = torch.arange(128 * 32).remainder(255).sub(127).to(torch.int8).view(128, 32)
    high, low = values >> 4, (values << 4) >> 4
    offset = torch.stack((high, low), dim=-1).flatten(1).to(torch.int32) + 8
    try:
        theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(offset, 1)
        torch.ops.aten._weight_int4pack_mm_for_cpu(torch.zeros(1, 64, dtype=torch.bfloat16), theirs, 32, _unit(64, 128))
    except (AttributeError, NotImplementedError, RuntimeError):
        return 0
    matching = [lanes for lanes in (32, 16) if torch.equal(tile_int4(values, lanes).flatten(), theirs.flatten())]
    return matching[0] if matching else 0


def integers(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The integers of a weight, [O, I] in ``dtype``: exact, made in pieces. What a resident copy holds."""
    unpacked = torch.empty(weight.rows, weight.columns, dtype=dtype)
    if weight.bits == 8:
        return unpacked.copy_(weight.data)
    data = untile_int4(weight.data, weight.rows) if weight.lanes else weight.data
    pairs = unpacked.view(weight.rows, weight.columns // 2, 2)
    step = max(1, limits.MAX_UNPACKED_CPU // max(1, weight.columns))
    for start in range(0, weight.rows, step):
        piece = data[start : start + step]
        pairs[start : start + step, :, 0] = piece >> 4
        pairs[start : start + step, :, 1] = (piece << 4) >> 4
    return unpacked


def _operator_fits(weight: PackedWeight, inputs: Tensor) -> bool:
    if inputs.dtype != torch.bfloat16:
        return False
    if weight.bits == 4:
        return weight.lanes > 0 and weight.lanes == tile_lanes() and weight.columns % 32 == 0
    return weight.columns % 16 == 0


def _operator_product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    inputs = inputs.contiguous()
    if weight.bits == 8:
        product = torch.ops.aten._weight_int8pack_mm(inputs, weight.data, _ones(weight.rows))
        return _scaled(product, weight.scale, bias)
    padded = weight.data.shape[0] * 2 * weight.lanes
    group = next(size for size in (256, 128, 64, 32) if weight.columns % size == 0)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(
        inputs, weight.data.view(padded, weight.columns // 2), group, _unit(weight.columns, padded, group)
    )
    return _scaled(product if padded == weight.rows else product[:, : weight.rows], weight.scale, bias)


@cache
def _unit(columns: int, rows: int, group: int = 32) -> Tensor:
    """Group scales of 1 and zero points of 0, [I/group, O, 2]; one for all weights of a size."""
    with torch.inference_mode(False):
        unit = torch.zeros(columns // group, rows, 2, dtype=torch.bfloat16)
        unit[..., 0] = 1.0
    return unit


@cache
def _ones(rows: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(rows, dtype=torch.bfloat16)


def _scaled(values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``values * scale + bias`` in float32, back in the dtype of ``values``; float32 values are changed in place."""
    if values.dtype == torch.float32:
        values *= scale
        return values if bias is None else values.add_(bias)
    # bfloat16 and float16 together compute in float32.
    wide = values * scale.to(torch.float32) if bias is None else torch.addcmul(bias, values, scale)
    return wide.to(values.dtype)


def _published_product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    dtype, half = inputs.dtype, weight.columns // 2
    four = weight.bits == 4
    if four:
        inputs = torch.cat((inputs[:, 0::2], inputs[:, 1::2]), dim=1)
    result = torch.empty(inputs.shape[0], weight.rows, dtype=dtype)
    step = max(1, min(weight.rows, limits.MAX_UNPACKED_CPU // max(1, weight.columns)))
    wide = torch.empty(step, weight.columns, dtype=dtype)
    for start in range(0, weight.rows, step):
        rows = slice(start, min(start + step, weight.rows))
        piece, unpacked = weight.data[rows], wide[: rows.stop - start]
        if four:
            unpacked[:, :half] = piece & -16
            unpacked[:, half:] = piece << 4
        else:
            unpacked.copy_(piece)
        result[:, rows] = linear(inputs, unpacked)
    return _scaled(result, _step_scale(weight), bias)


def _published_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    dtype, four = gradient.dtype, weight.bits == 4
    gradient = (gradient * _step_scale(weight)).to(dtype)
    result = torch.empty(gradient.shape[0], weight.columns, dtype=dtype)
    held = weight.data.shape[1]
    step = max(1, min(held, limits.MAX_UNPACKED_ACROSS_CPU // max(1, weight.rows) * weight.bits // 8))
    for start in range(0, held, step):
        piece = weight.data[:, start : start + step]
        if four:
            columns = slice(2 * start, 2 * (start + step))
            result[:, columns][:, 0::2] = gradient @ (piece & -16).to(dtype)
            result[:, columns][:, 1::2] = gradient @ (piece << 4).to(dtype)
        else:
            result[:, start : start + step] = gradient @ piece.to(dtype)
    return result


def _tiled_product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    count, columns, lanes = weight.data.shape
    rows = inputs.shape[0]
    result = torch.empty(rows, count, 2, lanes, dtype=inputs.dtype)
    step = max(1, limits.MAX_UNPACKED_CPU // max(1, 2 * columns * lanes))
    for start in range(0, count, step):
        wide, tiles = _widen(weight.data[start : start + step], inputs.dtype)
        product = inputs @ wide
        result[:, start : start + step] = product.view(rows, 2, tiles, lanes).transpose(1, 2)
    return _scaled(result.flatten(1)[:, : weight.rows], _step_scale(weight), bias)


def _tiled_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    count, columns, lanes = weight.data.shape
    dtype, rows = gradient.dtype, gradient.shape[0]
    scaled = (gradient * _step_scale(weight)).to(dtype)
    padded = F.pad(scaled, (0, count * 2 * lanes - weight.rows))
    ordered = padded.view(rows, count, 2, lanes).transpose(1, 2).flatten(1)
    result = torch.empty(rows, columns, dtype=dtype)
    step = max(1, limits.MAX_UNPACKED_CPU // max(1, 2 * count * lanes))
    for start in range(0, columns, step):
        wide, _ = _widen(weight.data[:, start : start + step], dtype)
        result[:, start : start + step] = ordered @ wide.t()
    return result


def _widen(tiles: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Tiles [t, K, l] to 16 times their values, [K, 2*t*l]: the low nibbles' rows, then the high ones'; and t."""
    signed = signed_columns(tiles).flatten(1)
    wide = torch.empty(signed.shape[0], 2, signed.shape[1], dtype=dtype)
    wide[:, 0] = signed << 4
    wide[:, 1] = signed & -16
    return wide.flatten(1), tiles.shape[0]


def _step_scale(weight: PackedWeight) -> Tensor:
    """The scale of one step of what was unpacked, float32 [O] (INT4 is unpacked at 16 times its value)."""
    return weight.scale.float() / 16 if weight.bits == 4 else weight.scale.float()
