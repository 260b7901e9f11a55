"""INT8 and INT4 linears in the published storage (SPEC: quantised weights).

Legend: O output rows, I input columns. Symmetric, one float16 scale per output row; INT4 packs two columns in a byte, the
even one in the high nibble. The packed weight is the only persistent state and the only thing kept for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptuning.plain.errors import UserError

ALLOWED_BITS = (4, 8)


def quantize_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round a weight to the published INT8 or INT4 form.

    ``scale = max|w| / (2^(bits-1) - 1)`` per row, stored as float16; ``q = round(w / scale)`` with the float16 scale. A row
    of zeros gets scale 0 and zeros.

    Args:
        weight: [O, I] floating point; for INT4 the number of columns is even.
        bits: 4 or 8.

    Returns:
        packed: int8, [O, I] (INT8) or [O, I/2] (INT4).
        scale: float16 [O].

    Raises:
        UserError: another number of bits, an odd number of columns for INT4, or values that are not finite.
    """
    _check_bits(bits)
    limit = 2 ** (bits - 1) - 1
    values = weight.detach().float()
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


class QuantizedLinear(nn.Module):
    """A frozen linear on packed INT8 or INT4 weights.

    Contract of every quantised linear: the output has the dtype of the input, the gradient goes to the input only, and
    nothing but the packed weight is kept for backward.

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
        _register_packed(self, out_features, in_features, bits, device)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), False) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int) -> Self:
        """Quantise a float linear; its bias is taken over as it is."""
        made = cls(linear.in_features, linear.out_features, False, bits=bits, device="meta")
        _take_weight(made, linear.weight, bits)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., I] to [..., O], same dtype (under autocast: the autocast dtype, as nn.Linear)."""
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        return _PackedProduct.apply(inputs, self.weight, self.weight_scale, self.bias, self.bits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
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
        made = cls(weight.shape[0], weight.shape[1], bits=bits, device="meta", dtype=weight.dtype)
        made._dtype_marker = torch.empty(0, dtype=weight.dtype, device=weight.device)
        _take_weight(made, weight, bits)
        return made

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
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        dense = dequantize_weight(weight, scale, bits, inputs.dtype)
        return F.linear(inputs, dense, None if bias is None else bias.to(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        weight, scale = ctx.saved_tensors
        return grad_output @ dequantize_weight(weight, scale, ctx.bits, grad_output.dtype), None, None, None, None


def quantized_linear_class(bits: int) -> Callable[..., nn.Module]:
    """What to pass to the backbone as its linear: ``nn.Linear`` for 0 bits, a quantised one for 4 or 8."""
    if bits == 0:
        return nn.Linear
    _check_bits(bits)
    return partial(QuantizedLinear, bits=bits)


def quantized_embedding_class(bits: int) -> Callable[..., nn.Module]:
    """What to pass to the backbone as its embedding: ``nn.Embedding`` for 0 bits, a quantised one for 4 or 8."""
    if bits == 0:
        return nn.Embedding
    _check_bits(bits)
    return partial(QuantizedEmbedding, bits=bits)


def _check_bits(bits: int) -> None:
    if bits not in ALLOWED_BITS:
        raise UserError(f"quantization_bit {bits} was given; allowed are 4 and 8 (0 or none: no quantisation)")


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
