"""What a user sees while training: one bar on a terminal, plain lines elsewhere, and ``trainer_log.jsonl`` in any case."""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ptuning.core.atomic import LineFile, replace_when_whole
from ptuning.core.progress import OpenProgress, Progress
from ptuning.core.reading import parse_json

logger = logging.getLogger(__name__)

LOG_FILE = "trainer_log.jsonl"
_LOGGED = (("loss", "loss"), ("lr", "learning_rate"), ("epoch", "epoch"))


class TrainingProgress(TrainerCallback):
    """Shows loss, learning rate, tokens a second and the time that is left.

    ``trainer_log.jsonl`` has one object for every log line: current_steps, total_steps, loss, eval_loss, lr, epoch,
    percentage, elapsed_time, remaining_time, tokens_per_second (names as in LLaMA-Factory). A resumed run keeps the
    lines up to its checkpoint.

    Args:
        open_bar: opens a bar that counts steps; None: every log line is one of the log instead.
    """

    def __init__(self, open_bar: OpenProgress | None = None) -> None:
        self.tokens = 0
        self._open_bar = open_bar
        self._bar: Progress | None = None
        self._began = self._tokens_at_log = 0.0
        self._last_log = 0.0
        self._first_step = self._shown_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step where the run begins, and drop log lines of later steps."""
        self._began = self._last_log = time.perf_counter()
        self._first_step = state.global_step
        if not state.is_world_process_zero:
            return
        self.keep_lines(args, state)
        if self._open_bar is not None:
            self._bar = self._open_bar("tuning", state.max_steps, done=state.global_step, unit="step")
        self._shown_step = state.global_step

    def keep_lines(self, args: Any, state: Any) -> None:
        """Drop the lines that an earlier run logged after the point from which this one resumes: after its step, or at
        that step after the checkpoint was written (of an evaluation after training)."""
        known = sum("train_runtime" not in entry for entry in state.log_history)
        _keep_until(Path(args.output_dir) / LOG_FILE, state.global_step, known)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.advance(state.global_step - self._shown_step)
            self._shown_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a log line to the file, and to the bar or the log."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        now = time.perf_counter()
        rate = (self.tokens - self._tokens_at_log) / max(now - self._last_log, 1e-9)
        left = self._remaining(state, now)
        entry: dict[str, Any] = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            **{name: logs[key] for name, key in _LOGGED if key in logs},
            **{name: value for name, value in logs.items() if name.startswith("eval_") and isinstance(value, int | float)},
            "percentage": round(100 * state.global_step / max(state.max_steps, 1), 2),
            "elapsed_time": str(timedelta(seconds=int(now - self._began))),
            "remaining_time": left,
        }
        if "loss" in logs:
            entry["tokens_per_second"] = round(rate, 1)
            self._tokens_at_log, self._last_log = self.tokens, now
        with LineFile(Path(args.output_dir) / LOG_FILE) as file:
            file.append(json.dumps(entry, ensure_ascii=False) + "\n")
        self._show(state, logs, rate, left)

    def _show(self, state: Any, logs: dict[str, Any], rate: float, left: str) -> None:
        shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in logs.items()}
        for noise in ("total_flos", "grad_norm", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"):
            shown.pop(noise, None)
        if self._bar is None:
            pace = f"  {rate:.0f} tokens/s, {left} left" if "loss" in logs else ""
            logger.info("%d/%d %s%s", state.global_step, state.max_steps, shown, pace)
        elif "loss" in logs:
            values = f"loss {logs['loss']:.4g}, lr {logs.get('learning_rate', 0):.3g}, {rate:.0f} tokens/s"
            self._bar.note(values)
        else:
            self._bar.line(f"step {state.global_step}: {shown}")

    def _remaining(self, state: Any, now: float) -> str:
        done = state.global_step - self._first_step
        left = (now - self._began) / done * (state.max_steps - state.global_step) if done else 0
        return str(timedelta(seconds=int(left)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, whatever ended the run."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _keep_until(path: Path, step: int, known: int | None = None) -> None:
    """Drop what an earlier run logged after ``step``, damaged lines, and those beyond the ``known`` first ones."""
    kept: list[str] = []
    for line in path.read_bytes().splitlines() if step and path.is_file() else ():
        try:
            text = line.decode("utf-8")
            if parse_json(text)["current_steps"] <= step and (known is None or len(kept) < known):
                kept.append(text + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_whole(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8", newline="\n")
