"""GELU in its tanh form, as the published model has it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.kernels import dispatch, native


def gelu(values: Tensor) -> Tensor:
    """[...] to the same.

    In inference mode float32 on a CPU goes through the native kernel: torch's takes four times as long. Not elsewhere:
    gradient checkpointing computes without gradients what it recomputes with them, and both must be equal to the bit.
    """
    if torch.is_inference_mode_enabled() and values.is_cpu and values.dtype == torch.float32 and dispatch.has_native():
        return native.gelu(values)
    return F.gelu(values, approximate="tanh")
