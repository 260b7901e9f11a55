"""The trainer whose checkpoints appear whole or not at all, and are checked before a run resumes from one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainer

from ptuning.checkpoint.adapter import read_adapter, write_files
from ptuning.checkpoint.run_checkpoints import barrier, not_saved, read_run, remove_old, reveal, staging_folder, write_run
from ptuning.checkpoint.run_state import (
    OPTIMIZER_FILE,
    SCALER_FILE,
    SCHEDULER_FILE,
    STATE_FILE,
    check_optimizer,
    check_scheduler,
    rng_file,
)
from ptuning.core.atomic import replace_when_whole, writing
from ptuning.core.errors import OutputError, UserError
from ptuning.core.output_folder import OutputFolder
from ptuning.core.reading import guarded
from ptuning.methods.method import TuningMethod
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.training_arguments import TuningArguments
from ptuning.training.running_loss import RunningLoss

logger = logging.getLogger(__name__)


class CheckpointingTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose checkpoints hold what is trained and the state of the run, never the backbone.

    Attributes:
        method: knows what is trained and what a checkpoint holds of it.
        adapter_settings: what a checkpoint says of the run: base model, prompt settings.
        description: settings and rows of the run, kept in ``run.json``.
        place: the output folder that the run has claimed; checked before every log line and every checkpoint.
    """

    model: ChatGLMNetwork
    method: TuningMethod
    args: TuningArguments
    adapter_settings: dict[str, Any]
    description: dict[str, Any]
    place: OutputFolder | None = None
    _losses: RunningLoss
    _staging = False

    def _get_output_dir(self, trial: Any) -> str:
        folder = str(super()._get_output_dir(trial=trial))
        return str(staging_folder(folder)) if self._staging else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own, into a hidden folder that is renamed when it is whole."""
        folder = str(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        best = self.state.best_global_step
        if best and (Path(folder) / f"checkpoint-{best}").is_dir():
            self.state.best_model_checkpoint = os.path.join(folder, f"checkpoint-{best}")
        if self.args.should_save:
            self._check_output_folder()
        staged = staging_folder(folder) / name
        try:
            with writing(staged):
                self._write_checkpoint(model, trial, staged)
        except OutputError as error:
            without = not_saved(error, staged, folder)
            self._check_output_folder()
            raise without from error
        if best == self.state.global_step:
            self.state.best_model_checkpoint = os.path.join(folder, name)
        barrier()

    def _write_checkpoint(self, model: Any, trial: Any, staged: Path) -> None:
        """All files into the hidden folder; then the checkpoint gets its name, and old ones go."""
        folder = str(self.args.output_dir)
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        loss = self._losses.state()
        barrier()
        if self.args.should_save:
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = os.path.join(folder, staged.name)
                self.state.save_to_json(str(staged / STATE_FILE))
            write_run(staged, self.description, loss)
            self._check_output_folder()
            reveal(staged, folder)
            remove_old(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _check_output_folder(self) -> None:
        if self.place is not None:
            self.place.check(f"step {self.state.global_step} of {self.state.max_steps}")

    def save_state(self) -> None:
        """transformers' own; the file appears whole."""
        if self.args.should_save:
            with replace_when_whole(Path(str(self.args.output_dir)) / STATE_FILE) as temporary:
                self.state.save_to_json(str(temporary))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write what is trained, whole or not at all."""
        folder = str(self.args.output_dir if output_dir is None else output_dir)
        logger.info("Saving %s to %s", self.method.words.saved, folder)
        write_files(folder, self.method.files(self.model, self.adapter_settings, self.args))
        torch.save(self.args, os.path.join(folder, "training_args.bin"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read what a checkpoint holds back into the model."""
        self._read_adapter(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = Path(checkpoint or "")
        if checkpoint and (folder / OPTIMIZER_FILE).is_file() and (folder / SCHEDULER_FILE).is_file():
            before = read_run(checkpoint).get("description") or {}
            check_optimizer(folder / OPTIMIZER_FILE, self.optimizer, before.get("optim"), _text(self.args.optim))
            kind = _text(self.args.lr_scheduler_type)
            check_scheduler(folder / SCHEDULER_FILE, self.lr_scheduler, before.get("lr_scheduler_type"), kind)
        with _reading(checkpoint or "", "state of an optimiser and its schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None:  # without a loss scaler there is no state to restore
            with _reading(Path(checkpoint or "") / SCALER_FILE, "state of a loss scaler"):
                super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "") / rng_file(self.args.process_index, self.args.world_size)
        with _reading(path, "random state"):
            super()._load_rng_state(checkpoint)

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, checkpoint: str | None, trial: Any) -> Any:
        with _reading(Path(checkpoint or "") / STATE_FILE, "trainer state"):
            return super()._init_training_state(max_steps, steps, epochs, checkpoint, trial)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._read_adapter(self.state.best_model_checkpoint)

    def _read_adapter(self, folder: str | os.PathLike[str]) -> None:
        adapter = read_adapter(folder)
        if adapter.method is not self.method:
            raise UserError(
                f"{adapter.path} holds {adapter.method.words.one}; this run trains {self.method.words.one}: resume with the "
                "settings of that run"
            )
        logger.info("Loading %s from %s", self.method.words.loaded, Path(folder))
        adapter.load_into(self.model)


def _text(setting: Any) -> str:
    return str(getattr(setting, "value", setting))


@contextmanager
def _reading(path: Path | str, kind: str) -> Iterator[None]:
    """A failed read becomes a UserError; running out of memory keeps its own exception."""
    try:
        with guarded(path, kind, "take another checkpoint"):
            yield
    except UserError as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError | MemoryError):
            raise error.__cause__ from None
        raise
