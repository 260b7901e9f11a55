"""The loss that a log line shows: the mean since the line before it, over all processes, also after a resume."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RunningLoss:
    """Adds up losses on their device; the host reads the sum only at a log line.

    transformers keeps such a sum too, but forgets it when a run resumes from a checkpoint.

    Args:
        state: a result of :meth:`state`, to resume from.
    """

    def __init__(self, state: Mapping[str, float] | None = None) -> None:
        state = state or {}
        self._sum: Tensor = torch.tensor(float(state.get("since_last_log", 0.0)))
        self._last_step = int(state.get("last_logged_step", 0))
        self._logged = float(state.get("logged", 0.0))

    def add(self, loss: Tensor) -> None:
        """Add the loss of a micro-step, already divided by the micro-steps of its step."""
        self._sum = self._sum.to(loss.device) + loss.detach()

    def drain(self, step: int) -> float:
        """The mean over the steps since the last call."""
        value = self._over_processes()
        mean = value / max(step - self._last_step, 1)
        self._logged += value
        self._sum, self._last_step = torch.zeros_like(self._sum), step
        return mean

    def whole_mean(self, step: int) -> float:
        """The mean over all steps of the run."""
        return (self._logged + self._over_processes()) / max(step, 1)

    def state(self) -> dict[str, float]:
        """What :class:`RunningLoss` resumes from (float32 survives JSON); every process of a run must call it."""
        return {"since_last_log": self._over_processes(), "last_logged_step": self._last_step, "logged": self._logged}

    def _over_processes(self) -> float:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return float(self._sum)
        total = self._sum.clone()
        torch.distributed.all_reduce(total)
        return float(total) / torch.distributed.get_world_size()
