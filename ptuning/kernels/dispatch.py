"""Which kernel multiplies with a packed weight (INT4 or INT8): by device, dtype and a setting. Nothing else decides.

Under ``auto`` the first of these that starts and takes what it is given (:func:`select`):

* CPU, activations in bfloat16, and the CPU multiplies bfloat16 in hardware: ``cpu``;
* CPU otherwise: ``native`` where there is a C compiler, then ``cpu``;
* CUDA: ``triton``, then ``cpm``;
* and on every device, in the end: ``reference``.

``cpu`` is made of torch's operators (``cpu.py``), ``native`` is our C code (``native.py``).

Settings come from :func:`configure` or, where that was not called, from the environment:

* ``PTUNING_KERNEL``: ``auto`` (default) or one kernel, ``reference``, ``cpu``, ``native``, ``triton`` or ``cpm``; the former
  names ``plain`` (reference) and ``compiled`` (native) are understood. A kernel that cannot start, or cannot multiply what
  it is given, is named once with its reason, and the next one is used: after ``native`` on a CPU ``cpu``, after all others
  ``reference``.
* ``PTUNING_MEMORY`` (CPU only): ``lean`` (default) keeps one copy of the packed weight, 0.5 or 1 byte a weight. ``fast``, or
  ``fast:6`` for 6 GB, also keeps the weights of the layers that were used first unpacked (2 bytes a weight in bfloat16, 4 in
  float32), and a head of half precision in bytes for screening, until the budget is spent; without a number the budget is
  half of the memory that is free when the first is made.
* ``PTUNING_PRECISION`` (the native kernel, INT4): ``highest`` (default) takes float32 activations at 24 bits, ``high`` at
  16, which is faster, and ``medium`` at 8 with a scale for every 128, which is fastest and costs about a hundredth of a
  product; so does ``torch.set_float32_matmul_precision``, whose words these are. Gradients take 16 bits at least.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ptuning.core.choices import KernelName, values_of
from ptuning.core.errors import UserError
from ptuning.core.private_cache import keep_compiled_code_private
from ptuning.kernels import cpu, reference
from ptuning.kernels.packed import PackedWeight

logger = logging.getLogger(__name__)

KERNEL_VARIABLE, MEMORY_VARIABLE, PRECISION_VARIABLE = "PTUNING_KERNEL", "PTUNING_MEMORY", "PTUNING_PRECISION"
PRECISIONS = ("highest", "high", "medium")
KERNEL_NAMES: tuple[str, ...] = values_of(KernelName)
KERNEL_ALIASES = {"plain": "reference", "compiled": "native"}
"""Former names that users may still give."""
_MODULES = {
    "native": "ptuning.kernels.native",
    "triton": "ptuning.kernels.triton_kernels",
    "cpm": "ptuning.kernels.cpm",
}
_UNKNOWN_MEMORY = 8 << 30


@dataclass(frozen=True)
class Kernel:
    """One way to multiply with a packed weight.

    Attributes:
        name: of the setting that asks for it.
        product: (inputs [M, I], weight, bias [O] or None) to [M, O], in the dtype of the inputs.
        input_gradient: (gradient [M, O], weight) to [M, I], in the dtype of the gradient.
        refuse: (weight, inputs) to the reason why it cannot multiply them, or None.
    """

    name: str
    product: Callable[[Tensor, PackedWeight, Tensor | None], Tensor]
    input_gradient: Callable[[Tensor, PackedWeight], Tensor]
    refuse: Callable[[PackedWeight, Tensor], str | None]


@dataclass(frozen=True)
class KernelSettings:
    """What :func:`configure` takes.

    Attributes:
        kernel: one of ``KERNEL_NAMES``.
        memory: ``lean`` or ``fast``.
        budget: bytes that unpacked weights may take under ``fast``; None: half of what is free.
        precision: one of ``PRECISIONS``.
    """

    kernel: str = "auto"
    memory: str = "lean"
    budget: int | None = None
    precision: str = "highest"


_configured: list[KernelSettings] = []


def configure(
    kernel: str | None = None, memory: str | None = None, precision: str | None = None
) -> KernelSettings:
    """Choose for the whole process; None stands for the environment's choice, else the default.

    Raises:
        UserError: a name that does not exist.
    """
    kernel = os.environ.get(KERNEL_VARIABLE, "auto") if kernel is None else kernel
    kernel = KERNEL_ALIASES.get(kernel, kernel)
    memory = os.environ.get(MEMORY_VARIABLE, "lean") if memory is None else memory
    precision = os.environ.get(PRECISION_VARIABLE, "highest") if precision is None else precision
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} was given; allowed are {', '.join(PRECISIONS)} ({PRECISION_VARIABLE})")
    if kernel not in KERNEL_NAMES:
        raise UserError(f"kernel {kernel!r} was given; allowed are {', '.join(KERNEL_NAMES)} ({KERNEL_VARIABLE})")
    mode, colon, number = memory.partition(":")
    try:
        gigabytes = float(number) if colon else None
    except ValueError:
        gigabytes = -1.0
    # Written so that NaN is refused, too.
    if mode not in ("lean", "fast") or (gigabytes is not None and not (mode == "fast" and 0 <= gigabytes < 1e6)):
        raise UserError(
            f"memory {memory!r} was given; allowed are lean, fast, and fast:NUMBER with a budget in GB ({MEMORY_VARIABLE})"
        )
    chosen = KernelSettings(kernel, mode, None if gigabytes is None else int(gigabytes * 1e9), precision)
    _configured[:] = [chosen]
    return chosen


def settings() -> KernelSettings:
    """The settings in force."""
    return _configured[0] if _configured else configure()


def select(weight: PackedWeight, inputs: Tensor) -> Kernel:
    """The kernel for these; see the top of this file.

    Args:
        weight: the packed weight.
        inputs: activations or a gradient, [M, ...].
    """
    for name in _candidates(settings().kernel, inputs.device.type, inputs.dtype):
        kernel = start(name)
        if isinstance(kernel, Kernel):
            reason = kernel.refuse(weight, inputs)
            if reason is None:
                return kernel
            _log_once(name, reason)
    return REFERENCE


@cache
def _candidates(setting: str, device: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Kernels to try, in this order, before the reference kernel."""
    if setting == "native" and device == "cpu":
        return ("native", "cpu")
    if setting != "auto":
        return (setting,)
    if device == "cpu":
        return ("cpu",) if dtype == torch.bfloat16 and cpu.has_fast_bfloat16() else ("native", "cpu")
    return ("triton", "cpm") if device == "cuda" else ()


def has_native() -> bool:
    """Whether the native kernel may be used under the settings, and starts."""
    return settings().kernel in ("auto", "native") and start("native") is not None


def uses_native(dtype: torch.dtype) -> bool:
    """Whether products on a CPU in this dtype go to the native kernel."""
    return "native" in _candidates(settings().kernel, "cpu", dtype) and start("native") is not None


def best_cpu_dtype() -> torch.dtype:
    """The dtype of activations in which a CPU multiplies quantised weights best.

    bfloat16 where the CPU has it in hardware. Elsewhere float32, which the native kernel multiplies at full speed; without
    it bfloat16 again, as torch's operator for few rows takes no other (three times as fast as unpacking, on AVX2).
    """
    if cpu.has_fast_bfloat16():
        return torch.bfloat16
    if settings().kernel in ("auto", "cpu", "native") and not has_native() and cpu.tile_lanes():
        return torch.bfloat16
    return torch.float32


REFERENCE = Kernel("reference", reference.product, reference.input_gradient, reference.refuse)
CPU = Kernel("cpu", cpu.product, cpu.input_gradient, cpu.refuse)


@cache
def start(name: str) -> Kernel | None:
    """A kernel that is ready to be used; None, logged once, where its package cannot be imported or started."""
    if name in ("reference", "cpu"):
        return REFERENCE if name == "reference" else CPU
    try:
        if name == "triton":
            keep_compiled_code_private("TRITON_CACHE_DIR", "triton")
        module = importlib.import_module(_MODULES[name])
        kernel = Kernel(name, module.product, module.input_gradient, module.refuse)
        _prove(kernel, *module.start())
    except Exception as error:  # noqa: BLE001  # packages that touch a driver when imported raise anything
        reason = (str(error).splitlines() or [""])[0]
        logger.warning("the %s kernel cannot start (%s: %s)", name, type(error).__name__, reason[:200])
        return None
    return kernel


def _prove(kernel: Kernel, device: str, dtype: torch.dtype) -> None:
    """Run small products, so that a kernel that cannot compile or launch here is found out before it is needed.

    Raises:
        Exception: whatever the driver or a missing compiler raises; RuntimeError where a result is wrong.
    """
    data = torch.arange(3 * 96).remainder(255).sub(127).to(torch.int8).view(3, 96).to(device)
    scale = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float16, device=device) / 128
    for bits in (4, 8):
        weight = PackedWeight(data, scale, bits, 3, 96 * 8 // bits)
        for rows in (1, 20):
            inputs = torch.arange(rows * weight.columns, device=device).remainder(7).view(rows, -1).to(dtype)
            gradient = torch.arange(rows * 3, device=device).remainder(5).view(rows, 3).to(dtype)
            pairs = (
                (kernel.product(inputs, weight, None), reference.product(inputs, weight, None)),
                (kernel.input_gradient(gradient, weight), reference.input_gradient(gradient, weight)),
            )
            for result, expected in pairs:
                if not torch.allclose(result, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
                    raise RuntimeError("a small product came out wrong")


@cache
def _log_once(name: str, reason: str) -> None:
    logger.info("the %s kernel is not used for some products: %s", name, reason)


class ResidentBudget:
    """Bytes that unpacked copies of weights hold, against the budget of ``fast``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at_start: int | None = None
        self.taken = 0

    def take(self, amount: int) -> bool:
        """Reserve so many bytes; False where the setting is ``lean`` or the budget is spent."""
        chosen = settings()
        if chosen.memory != "fast":
            return False
        with self._lock:
            if chosen.budget is not None:
                limit = chosen.budget
            else:
                if self._free_at_start is None:
                    self._free_at_start = free_memory()
                limit = self._free_at_start // 2
            if self.taken + amount > limit:
                return False
            self.taken += amount
            return True

    def give_back(self, amount: int) -> None:
        """Return reserved bytes."""
        with self._lock:
            self.taken -= amount


RESIDENT = ResidentBudget()


def free_memory() -> int:
    """Bytes of memory that are free for new use; a cautious guess where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return _UNKNOWN_MEMORY
