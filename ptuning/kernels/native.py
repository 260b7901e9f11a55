"""The native CPU kernel: our C source (``packed.c``), compiled on this machine where a compiler is there; an extra.

It reads the published form, accumulates in float32 whatever the activations, and uses as many threads as torch. INT4 under
AVX2 is multiplied in whole numbers (``integers.h``), of 24 bits for float32 activations and of 16 for half precision or
where :mod:`~ptuning.kernels.dispatch` is set to ``high``: exact to 2^-24 and 2^-16 of the largest value of a row.
Under ``medium`` activations have 8 bits, exact to 2^-8 of the largest of 128. A gradient (``integer_gradient.h``) has 16 or
24 bits.

Beside products: attention of one new token of every row (``decode_attention.h``), the largest products of a head
(``screening.h``), and GELU (``elementwise.h``).

Legend: M rows of activations, O output rows, I input columns; A rows, N heads, H head size, C columns of a slot.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptuning.kernels.c_library import load_library
from ptuning.kernels.dispatch import settings
from ptuning.kernels.onednn import matmul_precision
from ptuning.kernels.packed import PackedWeight

WIDEST_HEAD = 256
FEW_HALF_ROWS = 4  # up to so many rows with a float16 weight; more are the business of a widened piece
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def start() -> tuple[str, torch.dtype]:
    """Compile if need be, and load. Gives device and dtype of what to try first.

    Raises:
        RuntimeError: no compiler, or one that fails.
        OSError: a library that cannot be loaded.
    """
    _library()
    return "cpu", torch.float32


def product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``inputs @ dequantised.T + bias`` as :func:`ptuning.kernels.reference.product`."""
    rows, dtype = inputs.shape[0], inputs.dtype
    result = torch.empty(rows, weight.rows)
    if result.numel():
        wide, scale, added = _float32(inputs), _scale(weight), None if bias is None else _float32(bias)
        padded, floats = _sizes(weight.columns, weight.bits, _library())
        room = torch.empty(rows, floats)
        _library().ptuning_product(
            wide.data_ptr(), weight.data.data_ptr(), scale.data_ptr(), None if added is None else added.data_ptr(),
            room.data_ptr(), result.data_ptr(), rows, weight.rows, weight.columns, padded, weight.data.stride(0),
            weight.bits, _digits(dtype), _pool(), torch.get_num_threads(),
        )  # fmt: skip
    return result if dtype == torch.float32 else result.to(dtype)


def input_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    """``gradient @ dequantised`` as :func:`ptuning.kernels.reference.input_gradient`."""
    rows = gradient.shape[0]
    if not weight.rows or not rows:
        return gradient.new_zeros(rows, weight.columns)
    result = torch.empty(rows, weight.columns)
    wide, scale = _float32(gradient), _scale(weight)
    padded, _ = _sizes(weight.columns, weight.bits, _library())
    room = torch.empty(rows, _library().ptuning_gradient_room(weight.rows, padded))
    _library().ptuning_gradient(
        wide.data_ptr(), weight.data.data_ptr(), scale.data_ptr(), room.data_ptr(), result.data_ptr(), rows, weight.rows,
        weight.columns, padded, weight.data.stride(0), weight.bits, max(2, _digits(gradient.dtype)), _pool(),
        torch.get_num_threads(),
    )  # fmt: skip
    return result.to(gradient.dtype)


def refuse(weight: PackedWeight, inputs: Tensor) -> str | None:
    """Why this kernel cannot multiply these; None where it can."""
    if inputs.device.type != "cpu" or weight.data.device.type != "cpu":
        return f"the native kernel works on CPU tensors, not on {inputs.device.type}"
    if inputs.dtype not in _DTYPES:
        return f"the native kernel works in float32, bfloat16 and float16, not in {inputs.dtype}"
    if weight.scale.dtype != torch.float16:
        return f"the native kernel reads float16 scales, not {weight.scale.dtype}"
    if weight.lanes or (weight.data.numel() and weight.data.stride(1) != 1):
        return "the native kernel reads the published form"
    return None


def half_product(inputs: Tensor, weight: Tensor) -> Tensor:
    """``inputs @ weight.T``, float32 [M, O], for a few float32 rows and a weight [O, I] of float16 or bfloat16."""
    rows, (outputs, columns) = inputs.shape[0], weight.shape
    result, wide = torch.empty(rows, outputs), _float32(inputs)
    _library().ptuning_half_product(
        wide.data_ptr(), weight.data_ptr(), None, result.data_ptr(), rows, outputs, columns, weight.stride(0),
        weight.dtype == torch.bfloat16, _pool(), torch.get_num_threads(),
    )  # fmt: skip
    return result


def gelu(values: Tensor) -> Tensor:
    """GELU in its tanh form of float32 numbers; without gradient."""
    given = _float32(values)
    result = torch.empty_like(given)
    _library().ptuning_gelu(given.data_ptr(), result.data_ptr(), given.numel(), _pool(), torch.get_num_threads())
    return result


def attends(head_size: int) -> bool:
    """Whether :func:`attend` takes heads of this size."""
    return head_size <= WIDEST_HEAD and head_size % 4 == 0 and head_size % int(_library().ptuning_lanes()) == 0


class Attended(NamedTuple):
    """What :func:`attend` gives back.

    Attributes:
        query: [A, N, 1, H], turned by its position.
        mixed: [A, N, 1, H], what the row's own columns give.
        sums: [A, N, 1], the logarithm of each query's sum of exponentials.
    """

    query: Tensor
    mixed: Tensor
    sums: Tensor


def attend(fused: Tensor, rotary: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, lengths: Tensor) -> Attended:
    """Turn one new token of every row, put its key and value in the row's slot, and attend over the row's own columns.

    Args:
        fused: float32, query, key and value of the tokens, [A, 1, 3NH] with the three of a head side by side.
        rotary: cosines and sines, float32 [A, 1, 1, H] each.
        keys: float32 [A or more, N, C, H], contiguous; changed. Likewise ``values``.
        lengths: int64 [A], columns that a row sees with the new one, which becomes the last.
    """
    rows, (_, heads, columns, size) = fused.shape[0], keys.shape
    query, mixed = torch.empty(2, rows, heads, 1, size).unbind()
    made = Attended(query, mixed, torch.empty(rows, heads, 1))
    given = [_float32(fused), *(table.contiguous() for table in rotary), keys, values, lengths.contiguous(), *made]
    _library().ptuning_attend(
        *(tensor.data_ptr() for tensor in given), rows, heads, columns, size, _pool(), torch.get_num_threads()
    )  # fmt: skip
    return made


def screens() -> bool:
    """Whether the library was compiled with what :mod:`~ptuning.kernels.screening` needs."""
    return hasattr(_library(), "ptuning_screen")


def screen_copy(weight: Tensor, kind: int, copied: Tensor, factors: Tensor, sums: Tensor) -> bool:
    """Fill the copy of a weight; see ``screening.h``, whose return value this is."""
    outputs, columns = weight.shape
    fine = _library().ptuning_screen_copy(
        weight.data_ptr(), kind, copied.data_ptr(), factors.data_ptr(), sums.data_ptr(), outputs, columns, _pool(),
        torch.get_num_threads(),
    )  # fmt: skip
    return bool(fine)


def screen(
    inputs: Tensor, weight: Tensor, kind: int, copy: tuple[Tensor, ...], numbers: Tensor, room: Tensor, values: Tensor,
    places: Tensor,
) -> bool:  # fmt: skip
    """Find the largest products; see ``screening.h``, whose return value this is."""
    wide = _float32(inputs)
    fine = _library().ptuning_screen(
        wide.data_ptr(), weight.data_ptr(), kind, *(tensor.data_ptr() for tensor in copy), numbers.data_ptr(),
        room.data_ptr(), values.data_ptr(), places.data_ptr(), inputs.shape[0], *weight.shape, values.shape[1], _pool(),
        torch.get_num_threads(),
    )  # fmt: skip
    return bool(fine)


def _digits(dtype: torch.dtype) -> int:
    """Bytes of the whole numbers that stand for activations: three are float32's precision, two are half precision's, and
    what ``high`` asks for; ``medium`` makes do with one."""
    ours, torchs = settings().precision, matmul_precision()
    if ours == "medium" or torchs == "medium":
        return 1
    return 3 if dtype == torch.float32 and ours != "high" and torchs != "high" else 2


def _float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float32 and values.is_contiguous() else values.detach().float().contiguous()


def _scale(weight: PackedWeight) -> Tensor:
    return weight.scale if weight.scale.is_contiguous() else weight.scale.contiguous()


@cache
def _sizes(columns: int, bits: int, library: Any) -> tuple[int, int]:
    """Columns padded to whole blocks, and the floats of room that a row of them needs."""
    block = library.ptuning_block(bits)
    padded = -(-columns // block) * block
    return padded, library.ptuning_room(padded)


@cache
def _library() -> Any:
    library: Any = load_library()
    library.ptuning_block.argtypes, library.ptuning_block.restype = [_INT], _LONG
    library.ptuning_product.argtypes = [_POINTER] * 6 + [_LONG] * 5 + [_INT, _INT, _POINTER, _INT]
    library.ptuning_room.argtypes, library.ptuning_room.restype = [_LONG], _LONG
    library.ptuning_gradient.argtypes = [_POINTER] * 5 + [_LONG] * 5 + [_INT, _INT, _POINTER, _INT]
    library.ptuning_gradient_room.argtypes, library.ptuning_gradient_room.restype = [_LONG, _LONG], _LONG
    library.ptuning_lanes.restype = _LONG
    library.ptuning_gelu.argtypes = [_POINTER] * 2 + [_LONG, _POINTER, _INT]
    library.ptuning_attend.argtypes = [_POINTER] * 9 + [_LONG] * 3 + [_INT, _POINTER, _INT]
    library.ptuning_half_product.argtypes = [_POINTER] * 4 + [_LONG] * 4 + [_INT, _POINTER, _INT]
    if hasattr(library, "ptuning_screen"):  # under AVX2
        library.ptuning_screen_copy.argtypes = [_POINTER, _INT] + [_POINTER] * 3 + [_LONG] * 2 + [_POINTER, _INT]
        library.ptuning_screen.argtypes = [_POINTER] * 2 + [_INT] + [_POINTER] * 7 + [_LONG] * 4 + [_POINTER, _INT]
    for name in ("ptuning_product", "ptuning_gradient", "ptuning_half_product", "ptuning_attend", "ptuning_gelu"):
        getattr(library, name).restype = None
    return library


@cache
def _pool() -> int | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch has loaded; None: the library starts threads of its own."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, _POINTER).value
    except (AttributeError, OSError, TypeError):
        return None
