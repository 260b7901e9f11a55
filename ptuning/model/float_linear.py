"""The linear of a float backbone. Legend: M rows of activations, O output rows, I input columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptuning.kernels import cpu


class FloatLinear(nn.Linear):
    """``nn.Linear``, but that a few rows on a CPU go where they are multiplied fastest (decoding a batch).

    What is trained, or has a gradient to pass on, goes the ordinary way.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if inputs.is_cpu and not torch.is_autocast_enabled("cpu"):
            flat = inputs.reshape(-1, self.in_features)
            learns = torch.is_grad_enabled() and (inputs.requires_grad or self.weight.requires_grad)
            if not learns and flat.dtype == self.weight.dtype and cpu.onednn_is_faster(flat):
                return cpu.linear(flat, self.weight, self.bias).view(*inputs.shape[:-1], self.out_features)
        return super().forward(inputs)
