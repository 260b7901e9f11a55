"""A tuning run from settings to scores: rows, model, training, and the test rows before and after."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from ptuning.loops.training import PrefixTrainer
from ptuning.loops.training_arguments import Arguments, checkpoints, save_arguments, starting_point
from ptuning.plain.arguments import DataArguments
from ptuning.plain.errors import UserError
from ptuning.tuned.collator import TrainingCollator
from ptuning.tuned.model import ChatGLMForConditionalGeneration
from ptuning.tuned.preprocess import IGNORE_INDEX
from ptuning.tuned.rows import Row
from ptuning.uses.evaluation import Evaluation, evaluate_rows, save_metrics
from ptuning.uses.preparation import (
    base_model_name,
    prepare_examples,
    prepare_model,
    prepare_rows,
    prepare_tokenizer,
)

logger = logging.getLogger(__name__)

Progress = Callable[[str, int], Callable[[int], None]]
"""Given a title and a total, makes a callback that takes the number of rows just done."""


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        folder: the output folder.
        checkpoint: the last checkpoint, or the one that was evaluated; None for a base model.
        rows: the test rows, in the order of the answers; empty without ``--do_predict``.
        tuned: the evaluation of the model with its prefix (of the base model where there is no prefix).
        base: the evaluation of the base model, with ``--compare_base``.
        train_metrics: what the trainer reports.
    """

    folder: Path
    checkpoint: Path | None
    rows: list[Row]
    tuned: Evaluation | None
    base: Evaluation | None
    train_metrics: dict[str, float]


def run_tuning(arguments: Arguments, progress: Progress | None = None) -> RunResult:
    """Train a prefix, and evaluate it where the settings name test rows.

    Args:
        arguments: see :func:`ptuning.loops.training_arguments.parse_arguments`.
        progress: makes a progress display for the evaluation; the trainer shows its own.

    Raises:
        UserError: settings, rows or checkpoints that do not fit; rows are checked before the model is loaded.
    """
    model_settings, data, training = arguments
    start = starting_point(training)
    if model_settings.pre_seq_len is None and model_settings.ptuning_checkpoint is None:
        raise UserError(
            "--pre_seq_len is missing (published: 128): ptuning trains a prefix; full fine-tuning of the backbone is not "
            "part of it"
        )
    tokenizer = prepare_tokenizer(model_settings)
    rows = prepare_rows(data.train_file or "", data, data.max_train_samples)
    validation = prepare_rows(data.validation_file, data, data.max_eval_samples) if _wants_validation(arguments) else []
    test = prepare_rows(data.test_file or "", data, data.max_predict_samples) if training.do_predict else []
    examples = prepare_examples(tokenizer, rows, data, "training rows")
    eval_examples = prepare_examples(tokenizer, validation, data, "validation rows") if validation else None
    set_seed(training.seed)  # before the model: a new prefix is drawn from it
    model = prepare_model(model_settings, new_prefix=True)
    trainer = PrefixTrainer(
        model, training, examples, _collator(tokenizer, data), eval_examples, prefix_settings(arguments, model)
    )
    folder = Path(str(training.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    save_arguments(folder, arguments)
    result = trainer.train(resume_from_checkpoint=start)
    train_metrics = result.metrics | {"train_samples": len(examples)}
    trainer.log_metrics("train", train_metrics)
    trainer.save_metrics("train", train_metrics)
    trainer.save_state()
    if training.do_eval and eval_examples:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        save_metrics(folder, "eval", metrics | {"eval_samples": len(eval_examples)})
    model.eval()
    tuned, base = _evaluate(model, tokenizer, test, arguments, folder, progress) if test else (None, None)
    saved = checkpoints(folder)
    return RunResult(folder, saved[-1] if saved else None, test, tuned, base, train_metrics)


def run_evaluation(arguments: Arguments, progress: Progress | None = None) -> RunResult:
    """Evaluate a base model or a prefix on the test rows.

    Args:
        arguments: parsed for the task ``evaluate``.
        progress: see :func:`run_tuning`.
    """
    model_settings, data, training = arguments
    if model_settings.dtype == "auto" and (training.fp16_full_eval or training.bf16_full_eval):
        model_settings = replace(model_settings, dtype="float16" if training.fp16_full_eval else "bfloat16")
    tokenizer = prepare_tokenizer(model_settings)
    test = prepare_rows(data.test_file or "", data, data.max_predict_samples)
    model = prepare_model(model_settings)
    folder = Path(str(training.output_dir))
    tuned, base = _evaluate(model, tokenizer, test, arguments, folder, progress)
    checkpoint = Path(model_settings.ptuning_checkpoint) if model_settings.ptuning_checkpoint else None
    return RunResult(folder, checkpoint, test, tuned, base, {})


def _evaluate(
    model: ChatGLMForConditionalGeneration,
    tokenizer: Any,
    rows: list[Row],
    arguments: Arguments,
    folder: Path,
    progress: Progress | None,
) -> tuple[Evaluation, Evaluation | None]:
    """Score the model, and the base model below it where the settings ask for both."""

    def score_once(title: str, target: Path) -> Evaluation:
        show = progress(title, len(rows)) if progress is not None else None
        done = evaluate_rows(
            model,
            tokenizer,
            rows,
            arguments.data,
            batch_size=arguments.training.per_device_eval_batch_size,
            seed=arguments.training.seed,
            folder=target,
            on_progress=show,
        )
        save_metrics(target, "predict", done.metrics)
        return done

    base = None
    if arguments.data.compare_base and model.prefix_encoder is not None:
        with model.prefix_disabled():
            base = score_once("base model", folder / "base")
    return score_once("with the prefix" if model.prefix_encoder is not None else "base model", folder), base


def prefix_settings(arguments: Arguments, model: ChatGLMForConditionalGeneration) -> dict[str, Any]:
    """What ``prefix_config.json`` keeps beside the prefix's shape: all that is needed to chat with it."""
    data = arguments.data
    base = base_model_name(arguments.model)
    return {
        "base_model": os.path.abspath(base) if os.path.isdir(base) else base,
        "base_fingerprint": model.base_fingerprint,
        "quantization_bit": model.config.quantization_bit,
        "source_prefix": data.source_prefix,
        "history": data.history_column is not None,
        "legacy_first_round": data.legacy_first_round,
        "max_source_length": data.max_source_length,
        "max_target_length": data.max_target_length,
        "versions": {name: importlib.metadata.version(name) for name in ("ptuning", "torch", "transformers")},
    }


def _collator(tokenizer: Any, data: DataArguments) -> TrainingCollator:
    whole = data.max_source_length + data.max_target_length
    if data.ignore_pad_token_for_loss:
        return TrainingCollator(tokenizer, whole if data.pad_to_max_length else None, IGNORE_INDEX)
    return TrainingCollator(tokenizer, whole, tokenizer.pad_token_id)  # its loss depends on the padding: pad as published


def _wants_validation(arguments: Arguments) -> bool:
    training = arguments.training
    watched = training.do_eval or str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
    return watched and arguments.data.validation_file is not None
