"""A tuning run from settings to a checkpoint: rows, model, training. Before and after it: ``edges/tuning.py``."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import set_seed

from ptuning.checkpoint.checkpoint import Checkpoint, open_named
from ptuning.checkpoint.load import prepare_model
from ptuning.checkpoint.run_checkpoints import barrier, checkpoints, set_aside, starting_point
from ptuning.core.errors import StoppedError, TrainingError, UserError, is_out_of_memory
from ptuning.core.output_folder import OutputFolder
from ptuning.core.private_cache import keep_compiled_code_private
from ptuning.core.progress import OpenProgress
from ptuning.core.result_files import save_metrics
from ptuning.core.version import __version__
from ptuning.data.collator import TrainingCollator
from ptuning.data.example_store import PackedExamples
from ptuning.data.examples import prepare_examples
from ptuning.data.preprocess import IGNORE_INDEX, Example
from ptuning.data.rows import Row
from ptuning.data.run_rows import prepare_rows, prepare_training_rows
from ptuning.memory.advice import out_of_memory_message, settle_checkpointing
from ptuning.methods.method import TuningMethod
from ptuning.methods.registry import METHODS
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.arguments import DataArguments, ModelArguments
from ptuning.settings.run_checks import check_against_model, check_before_loading
from ptuning.settings.training_arguments import Arguments, TuningArguments, save_arguments
from ptuning.training.settings_checks import check_steps
from ptuning.training.trainer import TuningTrainer

logger = logging.getLogger(__name__)

_DECIDING_MODEL = ("quantization_bit", "dtype")
_DECIDING_DATA = (
    "max_source_length", "max_target_length", "source_prefix", "ignore_pad_token_for_loss", "pad_to_max_length",
)
_DECIDING_RUN = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "seed", "data_seed",
    "train_sampling_strategy", "bf16", "fp16",
)
_DECIDING_WHERE_GIVEN = (
    "label_smoothing_factor", "lr_scheduler_kwargs", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon",
    "dataloader_drop_last",
)

ScoreRows = Callable[[ChatGLMNetwork, Any, Sequence[Row]], dict[str, float]]
"""Answers rows with a model and its tokenizer and returns scores by name; used for scores during training."""


@dataclass(frozen=True)
class PreparedRun:
    """What a tuning run has before its model is loaded.

    Attributes:
        arguments: with the checkpoint that training starts from, if any.
        start: the checkpoint to resume from; None for a new run.
        base: the model to be tuned, opened, with that prefix.
        rows: to train on; ``validation`` likewise, empty for none.
    """

    arguments: Arguments
    start: str | None
    base: Checkpoint
    rows: list[Row]
    validation: list[Row]


@dataclass(frozen=True)
class TunedRun:
    """The result of training.

    Attributes:
        model: in eval mode, tuned.
        checkpoint: the best or the last one; None where nothing was saved.
        metrics: of the training.
        is_first_process: whether this process is the one that evaluates and reports.
    """

    model: ChatGLMNetwork
    checkpoint: Path | None
    metrics: dict[str, float]
    is_first_process: bool


def prepare_tuning(arguments: Arguments) -> PreparedRun:
    """Check the settings against machine, model and output folder, and read the rows.

    Args:
        arguments: of the run; its output folder is claimed.

    Raises:
        UserError: settings, rows or checkpoints that do not fit.
    """
    model_settings, data, training = arguments
    method = METHODS[arguments.method]
    check_before_loading(training)
    start = starting_point(training)
    barrier()  # no process may create the folder while another still checks whether it exists
    arguments = replace(arguments, model=_with_start(model_settings, training))
    method.check_settings(arguments.model)
    _settle_learning_rate(training, method, arguments.given)
    if training.process_index > 0:
        logging.getLogger("ptuning").setLevel(logging.WARNING)
    base = open_named(arguments.model)
    _ = base.tokenizer  # a broken tokenizer is reported before rows are read
    check_against_model(arguments.model, training, arguments.given, base.config)
    rows = prepare_training_rows(data, training.seed)
    validation = prepare_rows(data.validation_file, data, data.max_eval_samples) if _wants_validation(arguments) else []
    return PreparedRun(arguments, start, base, rows, validation)


def tune(
    run: PreparedRun, place: OutputFolder | None, score_rows: ScoreRows, open_bar: OpenProgress | None = None
) -> TunedRun:
    """Load the model, train, and save.

    Args:
        run: what is ready.
        place: the claim on the output folder; None in all processes but the first.
        score_rows: see :data:`ScoreRows`.
        open_bar: opens a bar that counts steps; None: log lines instead.

    Raises:
        UserError: examples or checkpoints that do not fit.
        TrainingError: a loss or gradient that is not a number, or memory that does not suffice; what was saved stays.
        StoppedError: a signal ended training; its state is saved.
        OutputError: the output folder went away, or cannot be written any more; what was saved stays.
    """
    arguments, data, training = run.arguments, run.arguments.data, run.arguments.training
    examples = prepare_examples(run.base.tokenizer, run.rows, data, "training rows")
    eval_examples = prepare_examples(run.base.tokenizer, run.validation, data, "validation rows") if run.validation else None
    check_steps(training, METHODS[arguments.method], len(examples), None if eval_examples is None else len(eval_examples))
    trainer = _trainer(run, examples, eval_examples, score_rows, open_bar)
    trainer.place = place
    folder = Path(str(training.output_dir))
    if place is not None:
        place.check("before training")
        if run.start is None:
            set_aside(folder)
        save_arguments(folder, arguments)
    train_metrics = _train(trainer, run.start, arguments, len(examples))
    if training.do_eval and eval_examples:
        metrics = trainer.evaluate(metric_key_prefix="eval") | {"eval_samples": len(eval_examples)}
        if trainer.is_world_process_zero():
            save_metrics(folder, "eval", metrics)
    trainer.save_state()
    trainer.model.eval()
    best = trainer.state.best_model_checkpoint if training.load_best_model_at_end else None
    saved = checkpoints(folder)
    checkpoint = Path(best) if best else saved[-1] if saved else None
    return TunedRun(trainer.model, checkpoint, train_metrics, trainer.is_world_process_zero())


def _trainer(
    run: PreparedRun,
    examples: PackedExamples,
    eval_examples: PackedExamples | None,
    score_rows: ScoreRows,
    open_bar: OpenProgress | None,
) -> TuningTrainer:
    """Load the model with what training starts from, and put the trainer around it."""
    arguments, training, method = run.arguments, run.arguments.training, METHODS[run.arguments.method]
    if training.torch_compile:
        keep_compiled_code_private("TORCHINDUCTOR_CACHE_DIR", "inductor")
    set_seed(training.seed)  # before the model: what is new is drawn from it
    model = prepare_model(ChatGLMNetwork, run.base, arguments.model, new=method)
    method.begin_training(model, training)
    settle_checkpointing(model, arguments, examples)
    return TuningTrainer(
        model,
        method,
        training,
        examples,
        _collator(run.base.tokenizer, arguments.data),
        eval_examples,
        adapter_settings(arguments, run.base.name, model, history=any(row.history is not None for row in run.rows)),
        run_description(arguments, examples),
        _scorer(model, run, score_rows),
        open_bar,
    )


def _with_start(model: ModelArguments, training: TuningArguments) -> ModelArguments:
    """What training starts from: something new, or the weights of a checkpoint."""
    if training.init_from is not None:
        if model.ptuning_checkpoint is not None:
            raise UserError(
                f"--init_from {training.init_from} and --ptuning_checkpoint {model.ptuning_checkpoint}: both name the "
                "weights that training starts from; give one"
            )
        if training.resume_from_checkpoint and str(training.resume_from_checkpoint).lower() not in ("false", "no", "auto"):
            raise UserError("--init_from starts a new run, --resume_from_checkpoint resumes one: give one of them")
        model = replace(model, ptuning_checkpoint=training.init_from)
    return model


def _settle_learning_rate(training: TuningArguments, method: TuningMethod, given: Mapping[str, Any]) -> None:
    """Use the method's own rate where none was given; warn of a rate outside its usual range."""
    rates = method.learning_rates
    if "learning_rate" not in given:
        training.learning_rate = rates.default
    if not rates.low <= training.learning_rate <= rates.high:
        logger.warning(
            "--learning_rate %g: outside the usual range of %s, %g to %g%s",
            training.learning_rate, method.words.one, rates.low, rates.high, rates.note,
        )


def _train(trainer: TuningTrainer, start: str | None, arguments: Arguments, count: int) -> dict[str, float]:
    """Run the loop and write what it reports."""
    try:
        result = trainer.train(resume_from_checkpoint=start)
    except (RuntimeError, MemoryError) as error:
        if "DataLoader worker" in str(error):  # killed, most often for want of memory
            reason = str(error).splitlines()[0]
            raise TrainingError(
                f"a process that prepares batches ended before its time, after step {trainer.state.global_step} ({reason}): "
                "lower --dataloader_num_workers, and resume with the same command and --resume_from_checkpoint auto"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise TrainingError(out_of_memory_message(trainer.model, arguments, error)) from error
    if trainer.stop.received is not None:
        name, number = trainer.stop.received.name, int(trainer.stop.received)
        how = "resume with the same command and --resume_from_checkpoint auto"
        if arguments.training.save_only_model:
            how = "with --save_only_model a run cannot be resumed; start another from these weights with --init_from"
        raise StoppedError(
            f"stopped by {name} after step {trainer.state.global_step} of {trainer.state.max_steps}, which is saved in "
            f"{arguments.training.output_dir}; {how}",
            128 + number,
        )
    metrics: dict[str, float] = result.metrics | {"train_samples": count}
    trainer.log_metrics("train", metrics)
    if trainer.is_world_process_zero():
        save_metrics(Path(str(arguments.training.output_dir)), "train", metrics)
    return metrics


def _scorer(
    model: ChatGLMNetwork, run: PreparedRun, score_rows: ScoreRows
) -> Callable[[], dict[str, float]] | None:
    """Scores of a sample of the validation rows, for every evaluation during training."""
    training, rows = run.arguments.training, run.validation
    if not (training.predict_with_generate and rows):
        return None
    count = min(training.eval_generate_samples, len(rows))
    sample = [rows[number * len(rows) // count] for number in range(count)]

    def score_sample() -> dict[str, float]:
        was_training = model.training
        model.eval()
        try:
            return score_rows(model, run.base.tokenizer, sample)
        finally:
            model.train(was_training)

    return score_sample


def run_description(arguments: Arguments, examples: Sequence[Example]) -> dict[str, Any]:
    """What decides how a run comes out: settings by their names, and a hash of its examples."""
    numbers = hashlib.sha256()
    for example in examples:
        numbers.update(array("q", [len(example.input_ids), *example.input_ids, *example.labels]).tobytes())
    method = METHODS[arguments.method]
    settings: dict[str, Any] = {
        name: getattr(group, name, None)
        for group, names in (
            (arguments.model, ("model_name_or_path", *method.model_settings, *_DECIDING_MODEL)),
            (arguments.data, _DECIDING_DATA),
            (arguments.training, (*_DECIDING_RUN, *method.training_settings)),
        )
        for name in names
    }
    for name in _DECIDING_WHERE_GIVEN:
        value = getattr(arguments.training, name)
        if value != TuningArguments.__dataclass_fields__[name].default:
            settings[name] = value
    plain = {name: value if isinstance(value, int | float | str | None) else str(value) for name, value in settings.items()}
    return plain | {"training rows": f"{len(examples)} rows, {numbers.hexdigest()[:16]}"}


def adapter_settings(arguments: Arguments, base: str, model: ChatGLMNetwork, *, history: bool) -> dict[str, Any]:
    """What a checkpoint says of the run that made it: all that is needed to chat with it.

    ``base`` names the base model; ``history``: the training rows have earlier rounds, whatever form they came in.
    """
    data = arguments.data
    return {
        "base_model": os.path.abspath(base) if os.path.isdir(base) else base,
        "base_fingerprint": model.base_fingerprint,
        "quantization_bit": model.config.quantization_bit,
        "source_prefix": data.source_prefix,
        "history": history,
        "legacy_first_round": data.legacy_first_round,
        "max_source_length": data.max_source_length,
        "max_target_length": data.max_target_length,
        "versions": {"ptuning": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
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
