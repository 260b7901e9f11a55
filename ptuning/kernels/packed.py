"""Packed INT8 and INT4 weights: the published form, the tiled form of torch's CPU operator, and the way between them.

Legend: O output rows, I input columns, l lanes of a tile.

Published: one float16 scale per row; int8 [O, I], or two columns in a byte, [O, I/2], the even
one in the high nibble. Tiled (INT4 only): bytes [ceil(O/2l), I, l]; byte j of tile t, column k, holds row 2lt+j in its
low nibble and row 2lt+l+j in its high one, each as value+8. That is what ``_weight_int4pack_mm_for_cpu`` of torch reads,
with 32 lanes under AVX-512 and 16 under AVX2. Both forms have the same size, and each gives back the other bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptuning.core.errors import UserError

# Flips the top bit of both nibbles of all eight bytes: two's complement to value+8 and back.
_SIGN_BITS = -0x7777777777777778
_SIGN_BITS_OF_A_BYTE = -0x78
_TILE_AT_ONCE = 1 << 22  # bytes of a weight that are turned at a time


class PackedWeight(NamedTuple):
    """What a kernel multiplies with.

    Attributes:
        data: published int8 [O, I] or [O, I/2]; tiled uint8 [ceil(O/2l), I, l].
        scale: float16 [O].
        bits: 4 or 8.
        rows: O.
        columns: I.
        lanes: l of the tiled form; 0 is the published one.
        resident: the integers of the weight [O, I] in the dtype of the activations, where memory is allowed for it.
    """

    data: Tensor
    scale: Tensor
    bits: int
    rows: int
    columns: int
    lanes: int = 0
    resident: Tensor | None = None


def pack_int4(values: Tensor) -> Tensor:
    """Pack int8 values in -8..7, [O, I], two columns to a byte: int8 [O, I/2], even column in the high nibble."""
    if values.shape[1] % 2:
        raise UserError(f"INT4 packs two columns in a byte; this weight has {values.shape[1]} columns, an odd number")
    high, low = values[:, 0::2], values[:, 1::2]
    return (high << 4) | (low & 0x0F)


def unpack_int4(packed: Tensor) -> Tensor:
    """Undo :func:`pack_int4`: int8 [O, I/2] to int8 [O, I]."""
    high = packed >> 4  # arithmetic shifts keep the sign
    low = (packed << 4) >> 4
    return torch.stack((high, low), dim=-1).flatten(1)


def dequantize_weight(packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The float weight that a packed one stands for, [O, I] in ``dtype`` (computed in float32, rounded once)."""
    values = unpack_int4(packed) if bits == 4 else packed
    return (values.float() * scale.float()[:, None]).to(dtype)


def tile_int4(data: Tensor, lanes: int) -> Tensor:
    """Published INT4 bytes to the tiled form.

    Args:
        data: int8 [O, I/2] on the CPU.
        lanes: l.

    Returns:
        uint8 [ceil(O/2l), I, l]; rows that fill the last tile up hold zeros.
    """
    rows, half = data.shape
    tiles = torch.empty(-(-rows // (2 * lanes)), half, 2, lanes, dtype=torch.uint8)
    step = max(1, _TILE_AT_ONCE // (2 * lanes * half))
    for start in range(0, tiles.shape[0], step):
        part = tiles[start : start + step]
        source = data[start * 2 * lanes : (start + part.shape[0]) * 2 * lanes]
        missing = part.shape[0] * 2 * lanes - source.shape[0]
        if missing:
            source = torch.cat((source, source.new_zeros(missing, half)))
        values = (source ^ _SIGN_BITS_OF_A_BYTE).view(torch.uint8).view(-1, 2, lanes, half)
        first, second = values[:, 0], values[:, 1]
        part[:, :, 0].copy_(((first >> 4) | (second & 0xF0)).transpose(1, 2))  # even columns
        part[:, :, 1].copy_(((first & 0x0F) | (second << 4)).transpose(1, 2))
    return tiles.view(tiles.shape[0], 2 * half, lanes)


def untile_int4(tiles: Tensor, rows: int) -> Tensor:
    """Undo :func:`tile_int4`: int8 [O, I/2], byte for byte what was published.

    Args:
        tiles: uint8 [ceil(O/2l), I, l].
        rows: O.
    """
    count, columns, lanes = tiles.shape
    data = torch.empty(count, 2, lanes, columns // 2, dtype=torch.uint8)
    step = max(1, _TILE_AT_ONCE // (lanes * columns))
    for start in range(0, count, step):
        part = tiles[start : start + step] ^ 0x88
        even, odd = part[:, 0::2].transpose(1, 2), part[:, 1::2].transpose(1, 2)
        data[start : start + step, 0] = (even << 4) | (odd & 0x0F)
        data[start : start + step, 1] = (even & 0xF0) | (odd >> 4)
    published = data.view(torch.int8).view(count * 2 * lanes, columns // 2)
    return published if count * 2 * lanes == rows else published[:rows].clone()


def signed_columns(tiles: Tensor) -> Tensor:
    """Some tiles with the column in front and signed nibbles: int8 [I, tiles, l] (one pass over memory)."""
    words = tiles.view(torch.int64).transpose(0, 1)
    turned = torch.empty(words.shape, dtype=torch.int64)
    torch.bitwise_xor(words, _SIGN_BITS, out=turned)
    return turned.view(torch.int8)
