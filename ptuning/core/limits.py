"""How much is held or made at a time: the constants that kernels, loss and memory formulas share.

Each has its one definition here. Whoever needs one reads it as ``limits.NAME`` when it is needed, so that what is computed
and what :mod:`ptuning.memory.estimates` says of it cannot come apart.
"""

from __future__ import annotations

MAX_UNPACKED_CPU = 1 << 20
"""Weights that a product on a CPU unpacks at a time (cpu and reference kernels): a piece and its float form fit a cache."""

MAX_UNPACKED_ACROSS_CPU = 1 << 22
"""Weights that a gradient unpacks at a time in the cpu kernel. It cuts across rows, where a longer stretch of each is worth
more."""

MAX_UNPACKED_ACCELERATOR = 1 << 25
"""Weights that the reference kernel unpacks at a time on other devices, which like few and large launches: 64 MB in half
precision."""

MAX_ROUNDED = 1 << 20
"""Weights that are quantised at a time while a float checkpoint is read (``model/quantization.py``): 4 MB in float32."""

ROUNDED_COPIES = 5
"""float32 copies of them that exist at once."""

MAX_LOGITS_BYTES = 1 << 27
"""Bytes of float32 logits that the loss makes at a time (``model/loss.py``); every piece reads the whole head once."""

MAX_WIDENED = 1 << 22
"""Weights of a half-precision head that are float32 at a time on a CPU (``model/half_storage.py``): 16 MB."""

MIN_SCREENED = 1 << 22
"""Weights from which on a head is screened (``kernels/screening.py``); a smaller product costs no more than a call."""

MIN_RETURNED_BYTES = 32 << 20
"""Bytes of a piece of memory from which on glibc always gives it back to the system when it is freed: its largest
threshold, a constant of its own."""

MIN_RETURNED_BYTES_LEAN = 1 << 19
"""The same beside a quantised model, which asks for it (``kernels/allocator.py``)."""
