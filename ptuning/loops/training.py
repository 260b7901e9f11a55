"""The training loop: transformers' Seq2SeqTrainer over a frozen backbone, saving and resuming the prefix alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Seq2SeqTrainer

from ptuning.loops.training_arguments import TuningArguments
from ptuning.plain.errors import UserError
from ptuning.tuned.collator import TrainingCollator
from ptuning.tuned.model import ChatGLMForConditionalGeneration
from ptuning.tuned.prefix_checkpoint import read_prefix, save_prefix, save_published_prefix
from ptuning.tuned.preprocess import Example

logger = logging.getLogger(__name__)


class ExampleDataset(Dataset):  # type: ignore[type-arg]
    """Training examples in memory, as the mappings that transformers' samplers and the collator read."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        example = self.examples[index]
        return {"input_ids": example.input_ids, "labels": example.labels}


class PrefixTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose checkpoints hold the prefix (and the state of the run), never the backbone.

    Args:
        model: with a prefix attached.
        args: see :class:`~ptuning.loops.training_arguments.TuningArguments`.
        examples: training examples.
        collator: makes padded batches.
        eval_examples: for the validation loss.
        prefix_settings: what ``prefix_config.json`` says beside the prefix's shape.
    """

    model: ChatGLMForConditionalGeneration
    args: TuningArguments

    def __init__(
        self,
        model: ChatGLMForConditionalGeneration,
        args: TuningArguments,
        examples: Sequence[Example],
        collator: TrainingCollator,
        eval_examples: Sequence[Example] | None = None,
        prefix_settings: Mapping[str, Any] | None = None,
    ) -> None:
        if model.prefix_encoder is None:
            raise UserError("the model has no prefix to train: give --pre_seq_len (published: 128)")
        self.prefix_settings = dict(prefix_settings or {})
        _prepare(args)
        use_cache = model.config.use_cache
        super().__init__(
            model=model,
            args=args,
            train_dataset=ExampleDataset(examples),
            eval_dataset=ExampleDataset(eval_examples) if eval_examples else None,
            data_collator=collator,
        )
        # transformers' Trainer switches the cache off for good, and answers generated after training would recompute the
        # whole sequence at every token. Training takes no cache anyway.
        model.config.use_cache = use_cache

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the prefix, whole or not at all."""
        folder = str(self.args.output_dir if output_dir is None else output_dir)
        encoder = _encoder(self.model)
        logger.info("Saving PrefixEncoder to %s", folder)
        if self.args.prefix_format in ("ptuning", "both"):
            save_prefix(folder, encoder, self.prefix_settings)
        if self.args.prefix_format in ("published", "both"):
            save_published_prefix(folder, encoder)
        torch.save(self.args, os.path.join(folder, "training_args.bin"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read the prefix of a checkpoint back into the model."""
        self._read_prefix(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._read_prefix(self.state.best_model_checkpoint)

    def _read_prefix(self, folder: str | os.PathLike[str]) -> None:
        encoder = _encoder(self.model)
        saved = read_prefix(folder)
        if (saved.pre_seq_len, saved.projection) != (encoder.config.pre_seq_len, encoder.config.projection):
            raise UserError(
                f"{saved.path} holds a prefix of {saved.pre_seq_len} tokens (projection: {saved.projection}); this run "
                f"trains {encoder.config.pre_seq_len} (projection: {encoder.config.projection}): resume with the settings "
                "of that run"
            )
        logger.info("Loading prefix_encoder weight from %s", Path(folder))
        encoder.load_state_dict(saved.state_dict)


def _encoder(model: Any) -> Any:
    return model.prefix_encoder


def _prepare(args: TuningArguments) -> None:
    """Settings that a frozen backbone with a prefix asks for, whatever transformers' defaults of the day are."""
    args.remove_unused_columns = False
    args.label_names = ["labels"]
    args.prediction_loss_only = True  # answers are generated and scored by ptuning.uses.evaluation
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs is None:
        args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    if args.n_gpu > 1:
        # nn.DataParallel would copy the backbone to every device at every step.
        logger.warning(
            "%d GPUs are visible and there is no launcher: the first one is used. For all of them start with "
            "`torchrun --nproc_per_node %d -m ptuning train …`", args.n_gpu, args.n_gpu,
        )
        args._n_gpu = 1
