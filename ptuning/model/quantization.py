"""INT8 and INT4 linears in the published storage.

Legend: O output rows, I input columns. Symmetric, one float16 scale per output row; INT4 packs two columns in a byte, the
even one in the high nibble. The packed weight is the only persistent state and the only thing kept for backward. What
multiplies with it is chosen in :mod:`ptuning.kernels.dispatch`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from ptuning.core import limits
from ptuning.core.choices import PackedBits, allowed, values_of
from ptuning.core.errors import UserError
from ptuning.kernels import cpu, dispatch
from ptuning.kernels.allocator import on_large_pages
from ptuning.kernels.packed import PackedWeight, dequantize_weight, pack_int4, tile_int4, unpack_int4, untile_int4
from ptuning.model.float_linear import FloatLinear

__all__ = [
    "QuantizedEmbedding",
    "QuantizedLinear",
    "dequantize_weight",
    "pack_int4",
    "quantize_weight",
    "quantized_embedding_class",
    "quantized_linear_class",
    "unpack_int4",
]


_TURNING = threading.Lock()  # one weight at a time changes its form in memory


def quantize_weight(weight: Tensor, bits: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Round a weight to the published INT8 or INT4 form.

    ``scale = max|w| / (2^(bits-1) - 1)`` per row, stored as float16; ``q = round(w / scale)`` with the float16 scale. A row
    of zeros gets scale 0 and zeros.

    Args:
        weight: [O, I] floating point; for INT4 the number of columns is even.
        bits: 4 or 8.
        device: where it is rounded and where the results are, some rows at a time; None: where the weight is.

    Returns:
        packed: int8, [O, I] (INT8) or [O, I/2] (INT4).
        scale: float16 [O].

    Raises:
        UserError: another number of bits, an odd number of columns for INT4, or values that are not finite.
    """
    _check_bits(bits)
    rows, columns = weight.shape
    device = weight.device if device is None else device
    packed = on_large_pages(torch.empty(rows, columns * bits // 8, dtype=torch.int8, device=device))
    scale = torch.empty(rows, dtype=torch.float16, device=device)
    step = max(1, limits.MAX_ROUNDED // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        packed[part], scale[part] = _quantize_rows(weight[part].detach().to(device, torch.float32), bits)
    return packed, scale


def _quantize_rows(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """:func:`quantize_weight` for some rows, float32."""
    limit = 2 ** (bits - 1) - 1
    largest = values.abs().amax(dim=1, keepdim=True) if values.shape[1] else values.new_zeros(len(values), 1)
    if not torch.isfinite(largest).all():
        raise UserError("the weight holds NaN or infinity and cannot be quantised; the checkpoint is damaged")
    scale = (largest / limit).to(torch.float16)
    if not torch.isfinite(scale).all():
        raise UserError(
            f"the weight holds {largest.max():.3g}; at {bits} bits the largest that a float16 scale can stand for is "
            f"{limit * torch.finfo(torch.float16).max:.3g}: the checkpoint is damaged"
        )
    step = scale.float()
    rounded = torch.where(step > 0, values / step.clamp_min(torch.finfo(torch.float32).tiny), 0.0).round()
    # A scale that float16 rounded down may push the largest value one past the limit.
    quantised = rounded.clamp(-limit - 1, limit).to(torch.int8)
    return (pack_int4(quantised) if bits == 4 else quantised), scale.squeeze(1)


class QuantizedLinear(nn.Module):
    """A frozen linear on packed INT8 or INT4 weights.

    Contract of every quantised linear: the output has the dtype of the input, the gradient goes to the input only, and
    nothing but the packed weight is kept for backward.

    In memory there is one copy of the packed weight. A CPU that decodes in bfloat16 turns it, in place of the published
    form, to the one that torch's INT4 operator reads; whoever looks at ``weight``, saves, copies, moves or converts the
    module finds the published bytes (turned back, until the next decoded token). ``parameters()`` of a turned module lacks
    ``weight``.

    Args:
        in_features: I.
        out_features: O.
        bias: whether there is a bias [O], in the backbone's float dtype.
        bits: 4 or 8.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self._tiles: Tensor | None = None  # the weight in the form of torch's CPU operator, in place of ``weight``
        self._resident: tuple[Tensor, tuple[int, int]] | None = None  # unpacked, and of which weight
        _register_packed(self, out_features, in_features, bits, device)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), False) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int) -> Self:
        """Quantise a float linear; its bias is taken over as it is."""
        quantized = cls(linear.in_features, linear.out_features, False, bits=bits, device="meta")
        _take_weight(quantized, linear.weight, bits)
        if linear.bias is not None:
            quantized.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return quantized

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., I] to [..., O], same dtype (under autocast: the autocast dtype, as nn.Linear)."""
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        flat = inputs.reshape(-1, self.in_features)
        packed, kernel = self._packed(flat)
        if torch.is_grad_enabled() and flat.requires_grad:
            product = _PackedProduct.apply(flat, packed.data, packed.scale, packed.resident, self.bias, packed[2:6])
        else:
            product = kernel.product(flat, packed, self.bias)
        return product.view(*inputs.shape[:-1], self.out_features)

    def _packed(self, inputs: Tensor) -> tuple[PackedWeight, dispatch.Kernel]:
        """The weight as it is held now, turned first where that makes decoding faster; and the kernel for it."""
        scale, tiles = self._parameters["weight_scale"], self._tiles
        weight = self._parameters.get("weight")
        if weight is None and tiles is None:  # another thread is turning it
            weight = self.weight
        sizes = (self.bits, self.out_features, self.in_features)
        if weight is None:
            packed = PackedWeight(tiles, scale, *sizes, tiles.shape[2])  # type: ignore[union-attr, arg-type]
        else:
            packed = PackedWeight(weight, scale, *sizes)  # type: ignore[arg-type]
        kernel = dispatch.select(packed, inputs)
        if kernel is not dispatch.CPU:
            return packed, kernel
        if not torch.is_grad_enabled() and cpu.wants_tiles(packed, inputs):
            packed = packed._replace(data=self._turn(), lanes=cpu.tile_lanes())
        if dispatch.settings().memory == "fast":
            packed = packed._replace(resident=self._resident_copy(packed, inputs))
        return packed, kernel

    def _turn(self) -> Tensor:
        """Hold the weight in the form of torch's CPU operator."""
        with _TURNING, torch.inference_mode(False):
            weight = self._parameters.get("weight")
            if weight is not None:
                self._tiles = tile_int4(weight.detach(), cpu.tile_lanes())
                del self._parameters["weight"]
            return self._tiles  # type: ignore[return-value]

    def _turn_back(self) -> None:
        """Hold the weight as published, and no unpacked copy."""
        with _TURNING, torch.inference_mode(False):
            self._resident = None
            tiles, self._tiles = self._tiles, None
            if tiles is not None and self._parameters.get("weight") is None:
                others = dict(self._parameters)
                self._parameters.clear()
                self._parameters["weight"] = nn.Parameter(untile_int4(tiles, self.out_features), requires_grad=False)
                self._parameters.update(others)

    def _resident_copy(self, packed: PackedWeight, inputs: Tensor) -> Tensor | None:
        """The unpacked weight, where the budget has room for it."""
        of = (packed.data.data_ptr(), packed.data._version)
        held, dtype = self._resident, cpu.widened(inputs.dtype)
        if held is not None and held[1] == of and held[0].dtype == dtype:
            return held[0]
        if inputs.shape[0] <= cpu.FEW_ROWS_RESIDENT[self.bits]:
            return None
        amount = self.out_features * self.in_features * dtype.itemsize
        self._resident = None
        if not dispatch.RESIDENT.take(amount):
            return None
        with torch.inference_mode(False), torch.no_grad():
            unpacked = cpu.integers(packed, dtype)
        weakref.finalize(unpacked, dispatch.RESIDENT.give_back, amount)
        self._resident = (unpacked, of)
        return unpacked

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.__dict__.get("_tiles") is not None:
            self._turn_back()
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        self._turn_back()
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_tiles": None, "_resident": None} | state)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._turn_back()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._turn_back()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._turn_back()
        return _apply_keeping_scale(self, super()._apply, fn, recurse)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class QuantizedEmbedding(nn.Module):
    """A frozen embedding on packed rows, as in the published INT4-QE model.

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of a row.
        bits: 4 or 8.
        dtype: of the rows it gives back; None follows torch's default dtype.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter
    _dtype_marker: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.bits = num_embeddings, embedding_dim, bits
        # An empty float tensor that follows model.half() and the like: it tells which dtype the rows should have.
        self.register_buffer("_dtype_marker", torch.empty(0, device=device, dtype=dtype), persistent=False)
        _register_packed(self, num_embeddings, embedding_dim, bits, device)

    @classmethod
    def from_embedding(cls, weight: Tensor, bits: int) -> Self:
        """Quantise float rows [V, D]."""
        quantized = cls(weight.shape[0], weight.shape[1], bits=bits, device="meta", dtype=weight.dtype)
        quantized._dtype_marker = torch.empty(0, dtype=weight.dtype, device=weight.device)
        _take_weight(quantized, weight, bits)
        return quantized

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the given ids, [..., D]."""
        flat = ids.reshape(-1)
        rows = dequantize_weight(self.weight[flat], self.weight_scale[flat], self.bits, self._dtype_marker.dtype)
        return rows.view(*ids.shape, self.embedding_dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return _apply_keeping_scale(self, super()._apply, fn, recurse)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


class _PackedProduct(torch.autograd.Function):
    """``inputs @ dequantised.T + bias``; the float weight lives only inside forward and inside backward."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        data: Tensor,
        scale: Tensor,
        resident: Tensor | None,
        bias: Tensor | None,
        sizes: tuple[int, int, int, int],
    ) -> Tensor:
        ctx.save_for_backward(data, scale, resident)  # they exist anyway: nothing is added for backward
        ctx.sizes = sizes
        packed = PackedWeight(data, scale, *sizes, resident)
        return dispatch.select(packed, inputs).product(inputs, packed, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:  # type: ignore[override]
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None
        data, scale, resident = ctx.saved_tensors
        sizes: tuple[int, int, int, int] = ctx.sizes
        packed = PackedWeight(data, scale, *sizes, resident)
        return dispatch.select(packed, grad_output).input_gradient(grad_output, packed), None, None, None, None, None


def quantized_linear_class(bits: int) -> Callable[..., nn.Module]:
    """What to pass to the backbone as its linear: a float one for 0 bits, a quantised one for 4 or 8."""
    if bits == 0:
        return FloatLinear
    _check_bits(bits)
    return partial(QuantizedLinear, bits=bits)


def quantized_embedding_class(bits: int) -> Callable[..., nn.Module]:
    """What to pass to the backbone as its embedding: ``nn.Embedding`` for 0 bits, a quantised one for 4 or 8."""
    if bits == 0:
        return nn.Embedding
    _check_bits(bits)
    return partial(QuantizedEmbedding, bits=bits)


def _check_bits(bits: int) -> None:
    if bits not in values_of(PackedBits):
        raise UserError(f"quantization_bit {bits} was given; allowed are {allowed(PackedBits)} (0 or none: no quantisation)")


def _register_packed(module: nn.Module, rows: int, columns: int, bits: int, device: torch.device | str | None) -> None:
    _check_bits(bits)
    if bits == 4 and columns % 2:
        raise UserError(f"INT4 packs two columns in a byte; this layer has {columns} input columns, an odd number")
    packed = torch.zeros(rows, columns * bits // 8, dtype=torch.int8, device=device)
    scale = torch.zeros(rows, dtype=torch.float16, device=device)
    module.weight = nn.Parameter(packed, requires_grad=False)
    module.weight_scale = nn.Parameter(scale, requires_grad=False)


def _take_weight(module: nn.Module, weight: Tensor, bits: int) -> None:
    packed, scale = quantize_weight(weight, bits)
    module.weight = nn.Parameter(packed, requires_grad=False)
    module.weight_scale = nn.Parameter(scale, requires_grad=False)


def _apply_keeping_scale(module: Any, apply: Callable[..., Any], fn: Callable[[Tensor], Tensor], recurse: bool) -> Any:
    """Let ``module.half()``, ``.float()`` or ``.to(bfloat16)`` leave the float16 scales as they are on file."""
    before = module.weight_scale.detach()
    apply(fn, recurse)
    after = module.weight_scale
    if after.dtype != torch.float16:
        module.weight_scale = nn.Parameter(before.to(after.device), requires_grad=False)
    return module
