"""Floating point operations that are dispatched: torch's own formulae, and the CPU's attention, which they leave out.

torch's FlopCounterMode cannot be used where a gradient is taken inside a forward pass: it follows modules by hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Work(TorchDispatchMode):
    """Counts within its context; products inside kernels of our own (packed weights) are not seen.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        aten = torch.ops.aten
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        elif func._overloadpacket == aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif func._overloadpacket == aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.flops += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        return result
