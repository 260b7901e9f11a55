"""A thread that drives an engine, for front ends that must not wait for it."""

from __future__ import annotations

import logging
import time
from threading import Condition, Thread

from ptuning.engine.engine import Engine
from ptuning.engine.isolation import reason_of

logger = logging.getLogger(__name__)


class EngineWorker:
    """Steps an engine while there is work, and sleeps while there is none. The thread owns the model.

    Args:
        engine: nobody else may drive it until :meth:`stop`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._changed = Condition()
        self._stopping = False
        self._thread = Thread(target=self._work, name="ptuning-engine", daemon=True)

    def start(self) -> EngineWorker:
        """Begin."""
        self.engine.open(self._wake)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be had
            self.engine.abandon("the engine could not be started")
            raise
        return self

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def drain(self, timeout: float) -> bool:
        """Wait until nothing runs or waits; False when the time is up first."""
        end = time.monotonic() + timeout
        while not self.engine.idle:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return True

    def stop(self) -> None:
        """Cancel what is left, end the thread, and wait for it. What is asked after that ends in an error at once."""
        if not self._thread.is_alive():
            return
        self.engine.cancel_all()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _work(self) -> None:
        try:
            while not self._over():
                try:
                    self.engine.step()
                except BaseException as error:  # the server must live on; every request that ran is told
                    logger.exception("a step of the engine failed")
                    self.engine.fail_all(f"the step failed: {reason_of(error)}")
        finally:
            self.engine.abandon("the engine stopped")

    def _over(self) -> bool:
        """Sleep until there is work; whether the thread is to end and nothing is left to be done."""
        with self._changed:
            while self.engine.idle and not self._stopping:
                self._changed.wait()
        if not self._stopping:
            return False
        self.engine.cancel_all()
        return self.engine.close()
