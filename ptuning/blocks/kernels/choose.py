"""Which kernel multiplies with a packed weight: by device, dtype, rows and a setting.

Settings come from :func:`configure` or, where that was not called, from the environment:

* ``PTUNING_KERNEL``: ``auto`` (default), ``plain``, ``cpu``, ``triton`` or ``cpm``. On a CUDA device ``auto`` is Triton,
  then cpm_kernels, then plain; on a CPU it is the cpu kernel; elsewhere plain. A kernel that cannot start, or cannot
  multiply what it is given, is named once with its reason, and the next one is used.
* ``PTUNING_MEMORY`` (CPU only): ``lean`` (default) keeps one copy of the packed weight, 0.5 or 1 byte a weight. ``fast``, or
  ``fast:6`` for 6 GB, also keeps the weights of the layers that were used first unpacked (2 bytes a weight in bfloat16, 4 in
  float32) until the budget is spent; without a number the budget is half of the memory that is free when the first is made.
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

from torch import Tensor

from ptuning.blocks.kernels import cpu, plain
from ptuning.blocks.kernels.packed import PackedWeight
from ptuning.plain.errors import UserError

logger = logging.getLogger(__name__)

KERNEL_VARIABLE, MEMORY_VARIABLE = "PTUNING_KERNEL", "PTUNING_MEMORY"
KERNEL_NAMES = ("auto", "plain", "cpu", "triton", "cpm")
_MODULES = {"triton": "ptuning.blocks.kernels.triton_kernels", "cpm": "ptuning.blocks.kernels.cpm"}
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
    """

    kernel: str = "auto"
    memory: str = "lean"
    budget: int | None = None


_configured: list[KernelSettings] = []


def configure(kernel: str | None = None, memory: str | None = None) -> KernelSettings:
    """Choose kernel and memory for the whole process; None stands for the environment's choice, else the default.

    Raises:
        UserError: a name that does not exist.
    """
    kernel = os.environ.get(KERNEL_VARIABLE, "auto") if kernel is None else kernel
    memory = os.environ.get(MEMORY_VARIABLE, "lean") if memory is None else memory
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
    made = KernelSettings(kernel, mode, None if gigabytes is None else int(gigabytes * 1e9))
    _configured[:] = [made]
    return made


def settings() -> KernelSettings:
    """The settings in force."""
    return _configured[0] if _configured else configure()


def choose(weight: PackedWeight, inputs: Tensor) -> Kernel:
    """The kernel for these; see the top of this file.

    Args:
        weight: the packed weight.
        inputs: activations or a gradient, [M, ...].
    """
    for name in _order(settings().kernel, inputs.device.type):
        kernel = start(name)
        if isinstance(kernel, Kernel):
            reason = kernel.refuse(weight, inputs)
            if reason is None:
                return kernel
            _say_once(name, reason)
    return PLAIN


def _order(wanted: str, device: str) -> tuple[str, ...]:
    if wanted != "auto":
        return (wanted,)
    if device == "cpu":
        return ("cpu",)
    return ("triton", "cpm") if device == "cuda" else ()


PLAIN = Kernel("plain", plain.product, plain.input_gradient, plain.refuse)
CPU = Kernel("cpu", cpu.product, cpu.input_gradient, cpu.refuse)


@cache
def start(name: str) -> Kernel | None:
    """A kernel that is ready to be used; None, said once, where its package cannot be imported or started."""
    if name in ("plain", "cpu"):
        return PLAIN if name == "plain" else CPU
    try:
        module = importlib.import_module(_MODULES[name])
        module.start()
    except Exception as error:  # noqa: BLE001  # packages that touch a driver when imported raise anything
        reason = (str(error).splitlines() or [""])[0]
        logger.warning("the %s kernel cannot start (%s: %s)", name, type(error).__name__, reason[:200])
        return None
    return Kernel(name, module.product, module.input_gradient, module.refuse)


@cache
def _say_once(name: str, reason: str) -> None:
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
