"""The training loop: transformers' Seq2SeqTrainer over a frozen backbone, saving and resuming what is trained alone."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from ptuning.checkpoint.run_checkpoints import changes_since, checkpoints, clear_staging, read_run, remove_old
from ptuning.core.errors import TrainingError, UserError
from ptuning.core.progress import OpenProgress
from ptuning.data.collator import TrainingCollator
from ptuning.data.preprocess import Example
from ptuning.kernels.allocator import keep_freed_memory
from ptuning.kernels.dispatch import settings
from ptuning.methods.method import TuningMethod
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.run_checks import clear_errors
from ptuning.settings.training_arguments import TuningArguments
from ptuning.settings.training_fields import FORCED
from ptuning.training.checkpointing_trainer import CheckpointingTrainer
from ptuning.training.interruption import StopOnSignal
from ptuning.training.optimiser_checks import plain
from ptuning.training.progress import TrainingProgress
from ptuning.training.running_loss import RunningLoss

logger = logging.getLogger(__name__)

Scorer = Callable[[], Mapping[str, float]]
"""Answers a sample of the validation rows with the model as it is, and gives scores by name."""


class ExampleDataset(Dataset):  # type: ignore[type-arg]
    """Training examples in memory, as the mappings that transformers' samplers and the collator read.

    ``rows`` is the place of the example, so that a message can name the rows of a batch.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {"input_ids": example.input_ids, "labels": example.labels, "rows": index}


class TuningTrainer(CheckpointingTrainer):
    """Seq2SeqTrainer whose checkpoints hold what is trained (and the state of the run), never the backbone.

    A checkpoint appears whole or not at all; a run resumed from one equals an uninterrupted run, log lines included; a
    loss or gradient that is not a number ends the run before the optimiser can spread it.

    Args:
        model: with what is trained attached.
        method: of what is trained.
        args: see :class:`~ptuning.settings.training_arguments.TuningArguments`.
        examples: training examples.
        collator: makes padded batches.
        eval_examples: for the validation loss.
        adapter_settings: what a checkpoint says of the run: base model, prompt settings.
        description: settings and rows of the run; a resumed run logs what differs.
        scorer: gives scores of answers for every evaluation while training.
        open_bar: opens a bar that counts steps, unless ``--disable_tqdm``; None: log lines instead.
    """

    def __init__(
        self,
        model: ChatGLMNetwork,
        method: TuningMethod,
        args: TuningArguments,
        examples: Sequence[Example],
        collator: TrainingCollator,
        eval_examples: Sequence[Example] | None = None,
        adapter_settings: Mapping[str, Any] | None = None,
        description: Mapping[str, Any] | None = None,
        scorer: Scorer | None = None,
        open_bar: OpenProgress | None = None,
    ) -> None:
        if not method.is_active(model):
            raise UserError(method.words.nothing_to_train)
        self.method = method
        self.adapter_settings = dict(adapter_settings or {})
        self.description = dict(description or {})
        self.examples = examples
        self.scorer = scorer
        self.stop = StopOnSignal()
        self.progress = TrainingProgress(None if args.disable_tqdm else open_bar)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._losses = RunningLoss()
        _prepare(args)
        use_cache = model.config.use_cache
        with clear_errors("the trainer", vars(args)):
            super().__init__(
                model=model,
                args=args,
                train_dataset=ExampleDataset(examples),
                eval_dataset=ExampleDataset(eval_examples) if eval_examples else None,
                data_collator=_Collation(collator),
                callbacks=self._callbacks(args),
            )
        for shown_twice in (ProgressCallback, PrinterCallback):
            self.remove_callback(shown_twice)
        # transformers' smoother would compute the loss from logits and labels that it does not shift for an unknown model.
        self.label_smoother = None
        # transformers' Trainer switches the cache off for good, and answers generated after training would recompute the
        # whole sequence at every token. Training takes no cache anyway.
        model.config.use_cache = use_cache

    def _callbacks(self, args: TuningArguments) -> list[TrainerCallback]:
        chosen: list[TrainerCallback] = [self.stop, self.progress]
        if args.early_stopping_patience is not None:
            chosen.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
        return chosen

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a failure becomes a one-line error."""
        with clear_errors(f"the optimiser (--optim {plain(self.args.optim)})", vars(self.args)):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a failure becomes a one-line error."""
        with clear_errors(f"the schedule (--lr_scheduler_type {plain(self.args.lr_scheduler_type)})", vars(self.args)):
            return super().create_scheduler(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """As in transformers; a failure becomes a one-line error."""
        with clear_errors("the loader of the rows", vars(self.args)):
            return super().get_train_dataloader()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a signal ends the run after the step it comes in (see ``self.stop.received``).

        Raises:
            TrainingError: a loss or a gradient that is not a number.
            OutputError: the output folder went away, or cannot be written.
        """
        resumed = isinstance(resume_from_checkpoint, str)
        if isinstance(resume_from_checkpoint, str):
            for change in changes_since(resume_from_checkpoint, self.description):
                logger.warning("resuming from %s with a change: %s", Path(resume_from_checkpoint).name, change)
        clear_staging(str(self.args.output_dir))
        self._losses = RunningLoss(read_run(str(resume_from_checkpoint)).get("loss") if resumed else None)
        if resumed and (done := self._finished(str(resume_from_checkpoint))) is not None:
            return done
        if self.model.device.type == "cpu" and (not self.model.config.quantization_bit or settings().memory == "fast"):
            keep_freed_memory()
        try:
            with self.stop.listening():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.progress.close()

    def _finished(self, checkpoint: str) -> TrainOutput | None:
        """The result of training, if the checkpoint is already at the last step (transformers would take one more)."""
        state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
        batches = math.ceil(len(self.train_dataset) / (self.args.train_batch_size * self.args.world_size))  # type: ignore[arg-type]
        steps_an_epoch = math.ceil(batches / self.args.gradient_accumulation_steps)
        total = self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * steps_an_epoch)
        if state.global_step < total:
            return None
        logger.info("%s is at the last step of this run: nothing is left to train", checkpoint)
        state.is_world_process_zero, state.is_local_process_zero = self.is_world_process_zero(), self.is_local_process_zero()
        self.state = state
        if state.is_world_process_zero:
            self.progress.keep_lines(self.args, state)
            # A process killed between saving the last checkpoint and deleting the oldest left one too many.
            remove_old(str(self.args.output_dir), self.args.save_total_limit, state.best_model_checkpoint)
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._read_adapter(best if best and os.path.isdir(best) else checkpoint)
        metrics = {"train_runtime": 0.0, "total_flos": state.total_flos, "train_loss": 0.0}
        self.log(metrics)  # as at the end of training; it fills in the loss and the epoch
        return TrainOutput(state.global_step, metrics["train_loss"], metrics)

    # ---- NaN and infinity never reach the optimiser ----

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """transformers' own, minus the numbers of the rows, which the model does not know; the model itself smooths labels,
        in training alone, so that validation losses of all runs can be compared."""
        rows = inputs.pop("rows", None)
        if model.training and self.args.label_smoothing_factor:
            inputs = {**inputs, "label_smoothing": self.args.label_smoothing_factor}
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and rows is not None:
            loss = result[0] if isinstance(result, tuple) else result
            self._pending.append((rows, loss.detach()))
        return result

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-step; after the last one of a step, losses and gradients are checked (one synchronisation a step)."""
        self.progress.tokens += self._tokens(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._losses.add(loss)
        if self.accelerator.gradient_state.sync_gradients:
            self._refuse_not_finite()
            self._pending.clear()
        return loss

    def _tokens(self, inputs: Mapping[str, Any]) -> int:
        return int(inputs["input_ids"].numel())

    def _refuse_not_finite(self) -> None:
        trained = self.method.trained_parameters(self.model)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        sums = torch.stack([loss.float() for _, loss in self._pending] + [gradient.float().sum() for gradient in gradients])
        if bool(torch.isfinite(sums).all()):
            return
        rows = [int(n) for numbers, loss in self._pending if not torch.isfinite(loss) for n in numbers.tolist()]
        # With a loss scaler an infinite gradient is how the scale is found: the scaler leaves that step out itself.
        if not rows and self.accelerator.scaler is not None:
            return
        raise TrainingError(self._not_finite_message("loss" if rows else "gradient", rows))

    def _not_finite_message(self, what: str, rows: Sequence[int]) -> str:
        """``what``: ``loss`` or ``gradient`` of the current step, or ``state`` (the trained values after a step)."""
        noun, rates = self.method.words.noun, self.method.learning_rates
        rows = rows or [int(n) for numbers, _ in self._pending for n in numbers.tolist()]
        named = ", ".join(self.examples[row].source for row in rows[:8])
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        if self.args.fp16 or self.model.dtype == torch.float16:
            hint = "float16 overflows easily: use --dtype bfloat16 (--bf16) or float32"
        else:
            hint = f"Lower --learning_rate ({self.args.learning_rate:g}; usual for {self.method.words.one}: {rates.shown})"
        saved = checkpoints(str(self.args.output_dir))
        kept = f"{saved[-1]} is whole and kept" if saved else "nothing was saved yet"
        if what == "state":
            return f"the {noun} after step {self.state.global_step} is not a number (NaN or infinite); {kept}. {hint}"
        return (
            f"the {what} of step {self.state.global_step + 1} is not a number (NaN or infinite); rows: {named}{more}. "
            f"The optimiser did not take this step; {kept}. {hint}"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """transformers' own, with means of the loss that survive a resume."""
        self._check_output_folder()
        if "loss" in logs:
            logs["loss"] = self._losses.drain(self.state.global_step)
        if "train_loss" in logs:
            logs["train_loss"] = self._losses.whole_mean(self.state.global_step)
        super().log(logs, *args, **kwargs)

    # ---- evaluation while training ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The validation loss, and scores of answers where there is a scorer."""
        with torch.random.fork_rng():  # what is drawn here (a loader draws, too) must not shift what training draws
            output = super().evaluation_loop(*args, **kwargs)
            scores = self.scorer() if self.scorer is not None else {}
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics = output.metrics or {}
        metrics.pop(f"{prefix}_model_preparation_time", None)  # there or not, as a run was resumed or not
        metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        loss = metrics.get(f"{prefix}_loss")
        if loss is not None and not math.isfinite(loss):
            step = self.state.global_step
            raise TrainingError(f"the validation loss at step {step} is not a number: lower --learning_rate")
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.method.trained_parameters(self.model)):
            raise TrainingError(self._not_finite_message("state", []))
        super()._save_checkpoint(model, trial)


class _Collation:
    """The collator's batch, with the numbers of its rows."""

    def __init__(self, collator: TrainingCollator) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch of examples; see :class:`ExampleDataset`."""
        return {**self.collator(features), "rows": torch.tensor([feature["rows"] for feature in features])}


def _prepare(args: TuningArguments) -> None:
    """Settings that tuning needs, whatever the defaults of the installed transformers are."""
    for name, value in FORCED.items():
        setattr(args, name, value)
    args.fp16_full_eval = args.bf16_full_eval = False  # they would cast what is trained too, for good
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs is None:
        args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # every step uses all that is trained
    if args.n_gpu > 1:
        # nn.DataParallel would copy the backbone to every device at every step.
        logger.warning(
            "%d GPUs are visible and there is no launcher: the first one is used. For all of them start with "
            "`torchrun --nproc_per_node %d -m ptuning train …`", args.n_gpu, args.n_gpu,
        )
        args._n_gpu = 1
