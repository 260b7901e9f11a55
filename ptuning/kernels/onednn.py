"""float32 products on a CPU through oneDNN, where that is faster than MKL and still computes in float32.

torch hands float32 products to oneDNN when they may be rounded to bfloat16. With AVX-512 and without AMX oneDNN does not
round all the same: the prefix's gradient was within 8e-7, a training step 1.68 times as fast. With AMX it may really round,
and with AVX2 there is nothing to gain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LARGEST_ERROR = 1e-5
"""Of the largest value of a product; float32 stays two orders below it, bfloat16 two above."""

_UNSET = "none"


@cache
def prefer_onednn_products(
    *,
    matmul: Any = None,
    capability: Callable[[], str] | None = None,
    has_amx: Callable[[], bool] | None = None,
    product: Callable[[Tensor, Tensor], Tensor] = torch.mm,
) -> bool:
    """Send float32 products on the CPU to oneDNN from now on, in the whole process; looked into once.

    Nothing is changed where torch has no such setting, where somebody has set it already
    (``torch.backends.mkldnn.matmul.fp32_precision = "ieee"`` keeps MKL), on other CPUs than those with AVX-512 and without
    AMX, and where it cannot be told. What was set is undone, and said, where a small product then comes out wrong.

    Args:
        matmul: what has the setting ``fp32_precision``; None: torch's own. The other arguments likewise.
        capability: the instructions that torch uses: ``AVX512``, ``AVX2``, ...
        has_amx: whether the CPU has AMX.
        product: of two float32 matrices.

    Returns:
        whether it is set.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None) if matmul is None else matmul
    capability = torch.backends.cpu.get_cpu_capability if capability is None else capability
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None) if has_amx is None else has_amx
    if getattr(matmul, "fp32_precision", None) != _UNSET or capability() != "AVX512" or has_amx is None or has_amx():
        return False
    try:
        matmul.fp32_precision = "bf16"
    except (AttributeError, RuntimeError):  # a torch that knows the name and not the value
        return False
    error = max(_error(product, rows) for rows in (4, 96))
    if error <= LARGEST_ERROR:
        return True
    matmul.fp32_precision = _UNSET
    logger.warning(
        "float32 products stay with torch's default: through oneDNN a small one was off by %.1e of its largest value "
        "(allowed: %.0e)", error, LARGEST_ERROR,
    )
    return False


def matmul_precision() -> str:
    """``torch.get_float32_matmul_precision()``, and ``highest`` where torch refuses to tell.

    It refuses once a setting of a single backend (as the one above) says something else than the setting for all.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _error(product: Callable[[Tensor, Tensor], Tensor], rows: int) -> float:
    """Largest error of a product [rows, 320] x [320, 192] against float64, in parts of its largest value; NaN counts."""
    draw = torch.Generator().manual_seed(0)  # its own: loading a model draws no random numbers
    left, right = torch.randn(rows, 320, generator=draw), torch.randn(320, 192, generator=draw)
    exact = left.double() @ right.double()
    error = float((product(left, right) - exact).abs().max() / exact.abs().max())
    return error if error == error else float("inf")
