"""Head and embedding of a quantised model on a CPU: kept in the half precision of the file, widened where they are read.

In float32 both would take four bytes a weight, and the published INT4 file, where they are one storage, twice its 1.07 GB.
Every value of float16 and bfloat16 is a float32 value: nothing is rounded.

Legend: M rows of activations, O output rows, I input columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptuning.core import limits
from ptuning.kernels import cpu, dispatch, native


class HalfLinear(nn.Linear):
    """A frozen linear whose weight may be of float16 or bfloat16 under activations of another dtype.

    The output has the dtype of the input, the gradient goes to the input only.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        if self.weight.dtype == inputs.dtype and cpu.is_fast(inputs):
            return F.linear(inputs, self.weight, self.bias)
        product: Tensor = _HalfProduct.apply(inputs.reshape(-1, self.in_features), self.weight)
        product = product if self.bias is None else product + self.bias.to(product.dtype)
        return product.view(*inputs.shape[:-1], self.out_features)


class HalfEmbedding(nn.Embedding):
    """A frozen embedding whose rows come out in the dtype of the model, ``rows_dtype``, whatever they are stored in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows_dtype = self.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the given ids, [..., D]."""
        return super().forward(ids).to(self.rows_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.rows_dtype = fn(torch.empty(0, dtype=self.rows_dtype)).dtype  # follows model.half() and the like
        return self


class _HalfProduct(torch.autograd.Function):
    """``inputs @ weight.T``; widened pieces of the weight live only inside forward and inside backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(inputs, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        gradient = grad_output.float()
        result = gradient.new_zeros(len(gradient), weight.shape[1])
        for part in _parts(weight):
            result.addmm_(gradient[:, part], weight[part].float())
        return result.to(grad_output.dtype), None


def _product(inputs: Tensor, weight: Tensor) -> Tensor:
    rows, half = inputs.shape[0], weight.dtype in (torch.float16, torch.bfloat16)
    if half and weight.is_cpu and 0 < rows <= native.FEW_HALF_ROWS and dispatch.has_native():
        return native.half_product(inputs, weight).to(inputs.dtype)
    wide = inputs.float()
    result = inputs.new_empty(rows, weight.shape[0])
    for part in _parts(weight):
        result[:, part] = cpu.linear(wide, weight[part].float())
    return result


def _parts(weight: Tensor) -> list[slice]:
    step = max(1, limits.MAX_WIDENED // max(1, weight.shape[1]))
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]
