"""The native CPU kernel: our C sources (``c/``), compiled on this machine where a compiler is there; an extra.

It reads the published form, accumulates in float32 whatever the activations, and uses as many threads as torch. INT4 under
AVX2 is multiplied in whole numbers (``integer_product.c``), of 24 bits for float32 activations and of 16 for half precision
or where :mod:`~ptuning.kernels.dispatch` is set to ``high``: exact to 2^-24 and 2^-16 of the largest value of a row.
Under ``medium`` activations have 8 bits, exact to 2^-8 of the largest of 128. A gradient (``integer_gradient.c``) has 16 or
24 bits.

Beside products: attention of one new token of every row (``decode_attention.c``), the largest products of a head
(``screening.c``), and GELU (``elementwise.c``).

C trusts what it is given: every address comes out of :func:`_address`, which checks the tensor.

Legend: M rows of activations, O output rows, I input columns; A rows, N heads, H head size, C columns of a slot.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptuning.kernels.c_library import load_library
from ptuning.kernels.dispatch import settings
from ptuning.kernels.onednn import matmul_precision
from ptuning.kernels.packed import PackedWeight

FEW_HALF_ROWS = 4  # up to so many rows with a float16 weight; more are the business of a widened piece
SCREENED_COLUMNS = 32  # the columns of a screened weight are a multiple
SCREENED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of screening.c
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
    """``inputs @ dequantised.T + bias`` as :func:`ptuning.kernels.reference.product`.

    Raises:
        ValueError: tensors that do not fit each other, or are not what this kernel reads.
    """
    rows, threads = inputs.shape[0], torch.get_num_threads()
    wide, wide_bias, scale = _float32(inputs), None if bias is None else _float32(bias), weight.scale.contiguous()
    addresses = _address("inputs", wide, torch.float32, (rows, weight.columns)), *_weight_addresses(weight, scale)
    added = None if wide_bias is None else _address("bias", wide_bias, torch.float32, (weight.rows,))
    result = wide.new_empty(rows, weight.rows)
    if rows and weight.rows:
        room = wide.new_empty(_product_room(rows, weight.columns, weight.bits, threads))
        _library().ptuning_product(
            *addresses, added, room.data_ptr(), result.data_ptr(), rows, weight.rows, weight.columns, weight.data.stride(0),
            weight.bits, _digits(inputs.dtype), _pool(), threads,
        )  # fmt: skip
    return result if inputs.dtype == torch.float32 else result.to(inputs.dtype)


def input_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    """``gradient @ dequantised`` as :func:`ptuning.kernels.reference.input_gradient`.

    Raises:
        ValueError: tensors that do not fit each other, or are not what this kernel reads.
    """
    rows, threads = gradient.shape[0], torch.get_num_threads()
    wide, scale = _float32(gradient), weight.scale.contiguous()
    addresses = _address("gradient", wide, torch.float32, (rows, weight.rows)), *_weight_addresses(weight, scale)
    if not weight.rows or not rows:
        return gradient.new_zeros(rows, weight.columns)
    result = wide.new_empty(rows, weight.columns)
    room = wide.new_empty(_library().ptuning_gradient_room(rows, weight.rows, weight.columns, weight.bits, threads))
    _library().ptuning_gradient(
        *addresses, room.data_ptr(), result.data_ptr(), rows, weight.rows, weight.columns, weight.data.stride(0),
        weight.bits, max(2, _digits(gradient.dtype)), _pool(), threads,
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
    """``inputs @ weight.T``, float32 [M, O], for a few float32 rows and a weight [O, I] of float16 or bfloat16.

    Raises:
        ValueError: tensors that do not fit each other, or are not what this kernel reads.
    """
    rows, (outputs, columns) = inputs.shape[0], weight.shape
    wide = _float32(inputs)
    result = wide.new_empty(rows, outputs)
    kind = weight.dtype if weight.dtype == torch.bfloat16 else torch.float16
    _library().ptuning_half_product(
        _address("inputs", wide, torch.float32, (rows, columns)), _address("weight", weight, kind, (outputs, columns), True),
        None, result.data_ptr(), rows, outputs, columns, weight.stride(0), kind == torch.bfloat16, _pool(),
        torch.get_num_threads(),
    )  # fmt: skip
    return result


def gelu(values: Tensor) -> Tensor:
    """GELU in its tanh form of float32 numbers; without gradient."""
    inputs = _float32(values)
    result = torch.empty_like(inputs)
    _library().ptuning_gelu(
        _address("values", inputs, torch.float32, inputs.shape), result.data_ptr(), inputs.numel(), _pool(),
        torch.get_num_threads(),
    )  # fmt: skip
    return result


@cache
def attends(head_size: int) -> bool:
    """Whether :func:`attend` takes heads of this size."""
    return bool(_library().ptuning_attends(head_size))


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
        lengths: int64 [A], columns that a row sees with the new one, which becomes the last; 1 to C.

    Raises:
        ValueError: tensors that do not fit each other, a head size that :func:`attends` does not take, or a length that a
            slot does not have; nothing is changed.
    """
    rows, (slots, heads, columns, size) = fused.shape[0], keys.shape
    if slots < rows or not attends(size):
        raise ValueError(f"{slots} slots and a head size of {size} were given for {rows} rows; see attends()")
    query, mixed = keys.new_empty(2, rows, heads, 1, size).unbind()
    attended = Attended(query, mixed, keys.new_empty(rows, heads, 1))
    fused, lengths = _float32(fused), lengths.contiguous()
    cosines, sines = (table.contiguous() for table in rotary)
    bad = _library().ptuning_attend(
        _address("fused", fused, torch.float32, (rows, 1, 3 * heads * size)),
        _address("cosines", cosines, torch.float32, (rows, 1, 1, size)),
        _address("sines", sines, torch.float32, (rows, 1, 1, size)),
        _address("keys", keys, torch.float32, (slots, heads, columns, size)),
        _address("values", values, torch.float32, (slots, heads, columns, size)),
        _address("lengths", lengths, torch.int64, (rows,)), query.data_ptr(), mixed.data_ptr(), attended.sums.data_ptr(),
        rows, heads, columns, size, _pool(), torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        raise ValueError(f"lengths[{bad}] is {int(lengths[bad])}; a slot has 1 to {columns} columns")
    return attended


@cache
def screen_pack() -> int:
    """Rows of a screened weight's copy are padded to a multiple of so many; 0: nothing can be screened here."""
    return int(_library().ptuning_screen_pack())


def screen_copy(weight: Tensor, copy: tuple[Tensor, Tensor, Tensor]) -> bool:
    """Fill the copy of a weight [O, I]: bytes, factors and sums, see ``ptuning.h``; False where it cannot be used.

    Raises:
        ValueError: tensors that do not fit each other, or are not what this kernel reads.
    """
    (outputs, columns), (kind, address) = weight.shape, _screened(weight)
    usable = _library().ptuning_screen_copy(
        address, kind, *_copy_addresses(weight, copy), outputs, columns, _pool(), torch.get_num_threads()
    )
    return bool(usable)


def screen(
    inputs: Tensor, weight: Tensor, copy: tuple[Tensor, Tensor, Tensor], room: Tensor, values: Tensor, places: Tensor
) -> bool:
    """Find the K largest products of every row; False where multiplying with all of the weight is better.

    Args:
        inputs: float32 [M, I].
        weight: [O, I], of which ``copy`` was made by :func:`screen_copy`.
        copy: of the weight.
        room: float32, at least M (O padded + 3).
        values: float32 [M, K], to be filled; K is 1 to O. Likewise ``places``, int64.

    Raises:
        ValueError: tensors that do not fit each other, or are not what this kernel reads.
    """
    rows, (outputs, columns), k = inputs.shape[0], weight.shape, values.shape[-1]
    if not 1 <= k <= outputs or room.numel() < rows * (copy[0].shape[0] + 3):
        raise ValueError(f"{k} of {outputs} products in room for {room.numel()} numbers were asked for")
    wide, (kind, address) = _float32(inputs), _screened(weight)
    numbers = torch.empty(rows, 2, columns, dtype=torch.uint8, device="cpu")
    complete = _library().ptuning_screen(
        _address("inputs", wide, torch.float32, (rows, columns)), address, kind, *_copy_addresses(weight, copy),
        numbers.data_ptr(), _address("room", room, torch.float32, room.shape),
        _address("values", values, torch.float32, (rows, k)), _address("places", places, torch.int64, (rows, k)), rows,
        outputs, columns, k, _pool(), torch.get_num_threads(),
    )  # fmt: skip
    return bool(complete)


def _screened(weight: Tensor) -> tuple[int, int]:
    """A weight's kind (see ``ptuning.h``) and address."""
    if weight.dtype not in SCREENED_DTYPES or weight.shape[1] % SCREENED_COLUMNS or not screen_pack():
        raise ValueError(f"a weight {list(weight.shape)} of {weight.dtype} cannot be screened here")
    return SCREENED_DTYPES.index(weight.dtype), _address("weight", weight, weight.dtype, weight.shape)


def _copy_addresses(weight: Tensor, copy: tuple[Tensor, Tensor, Tensor]) -> tuple[int, int, int]:
    padded = -(-weight.shape[0] // screen_pack()) * screen_pack()
    return (
        _address("bytes of the copy", copy[0], torch.int8, (padded, weight.shape[1])),
        _address("factors of the copy", copy[1], torch.float32, (3, padded)),
        _address("sums of the copy", copy[2], torch.int32, (padded,)),
    )


def _weight_addresses(weight: PackedWeight, scale: Tensor) -> tuple[int, int]:
    """Of the packed numbers and of the scales; the caller keeps ``scale``, contiguous, as long as it is read."""
    bits = weight.bits
    if bits not in (4, 8) or weight.lanes or weight.columns * bits % 8:
        raise ValueError(f"the native kernel reads INT4 (even columns) and INT8 in the published form, not {weight[2:6]}")
    held = weight.rows, weight.columns * bits // 8
    return _address("weight", weight.data, torch.int8, held, True), _address("scale", scale, torch.float16, held[:1])


def _address(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], rows_apart: bool = False) -> int:
    """Where a tensor lies, for C: on the CPU, of this dtype and shape, contiguous (``rows_apart``: each row by itself).

    Raises:
        ValueError: it is another one.
    """
    fits = tensor.dtype == dtype and tensor.shape == shape and tensor.is_cpu
    if fits and (tensor.is_contiguous() or (rows_apart and (tensor.stride(1) == 1 or shape[1] <= 1))):
        return tensor.data_ptr()
    raise ValueError(
        f"{name}: the native kernel was given {tensor.dtype} {list(tensor.shape)} on {tensor.device} with strides "
        f"{list(tensor.stride())}; it needs {dtype} {list(shape)} on cpu, contiguous"
    )


def _digits(dtype: torch.dtype) -> int:
    """Bytes of the whole numbers that stand for activations: three are float32's precision, two are half precision's, and
    what ``high`` asks for; ``medium`` makes do with one."""
    ours, torchs = settings().precision, matmul_precision()
    if ours == "medium" or torchs == "medium":
        return 1
    return 3 if dtype == torch.float32 and ours != "high" and torchs != "high" else 2


def _float32(values: Tensor) -> Tensor:
    if values.dtype == torch.float32 and values.is_contiguous():
        return values
    if values.dtype not in _DTYPES:
        raise ValueError(f"the native kernel works in float32, bfloat16 and float16, not in {values.dtype}")
    return values.detach().float().contiguous()


@lru_cache(maxsize=1024)
def _product_room(rows: int, columns: int, bits: int, threads: int) -> int:
    """Floats of room that a product needs."""
    return int(_library().ptuning_product_room(rows, columns, bits, threads))


@cache
def _library() -> Any:
    """The compiled sources, with what ``ptuning.h`` says of their functions."""
    library: Any = load_library()
    threads = [_POINTER, _INT]
    for name, result, arguments in (
        ("product_room", _LONG, [_LONG] * 2 + [_INT] * 2),
        ("product", None, [_POINTER] * 6 + [_LONG] * 4 + [_INT] * 2 + threads),
        ("gradient_room", _LONG, [_LONG] * 3 + [_INT] * 2),
        ("gradient", None, [_POINTER] * 5 + [_LONG] * 4 + [_INT] * 2 + threads),
        ("half_product", None, [_POINTER] * 4 + [_LONG] * 4 + [_INT] + threads),
        ("gelu", None, [_POINTER] * 2 + [_LONG] + threads),
        ("attends", _INT, [_LONG]),
        ("attend", _LONG, [_POINTER] * 9 + [_LONG] * 4 + threads),
        ("screen_pack", _LONG, []),
        ("screen_copy", _INT, [_POINTER, _INT] + [_POINTER] * 3 + [_LONG] * 2 + threads),
        ("screen", _INT, [_POINTER] * 2 + [_INT] + [_POINTER] * 7 + [_LONG] * 4 + threads),
    ):  # fmt: skip
        function = getattr(library, f"ptuning_{name}")
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _pool() -> int | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch has loaded; None: the library starts threads of its own."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, _POINTER).value
    except (AttributeError, OSError, TypeError):
        return None
