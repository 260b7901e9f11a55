"""Ctrl-C and SIGTERM: the step is finished and saved, then the run ends; a second signal ends it at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Ends training after the step in which a signal came.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals while the block runs (in the main thread only; in other threads this does nothing)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        name = self.received.name
        logger.warning("%s: this step is finished and saved, then the run ends; once more ends it at once", name)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if a signal came to any process of the run."""
        if self._anywhere(args.device):
            control.should_save = True
            control.should_training_stop = True

    def _anywhere(self, device: torch.device) -> bool:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received is not None
        flag = torch.tensor([float(self.received is not None)], device=device)
        torch.distributed.all_reduce(flag)
        if flag.item() and self.received is None:
            self.received = signal.SIGTERM
        return self.received is not None
