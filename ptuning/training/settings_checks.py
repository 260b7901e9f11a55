"""The one validation of a run's settings, before anything is loaded: every value, and what goes together.

:func:`check_training_values` holds single values against :mod:`ptuning.settings.training_fields`, wherever a
``TuningArguments`` is made; :func:`check_combinations` what settings say together; :func:`check_before_loading` what the
machine must have; :func:`check_against_model` what the model's configuration tells, and :func:`check_steps` the number of
rows. Optimiser and schedule are tried out by
:mod:`ptuning.training.optimiser_checks`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ptuning.checkpoint.placement import is_out_of_memory
from ptuning.core.errors import GenerationError, StoppedError, TrainingError, UserError
from ptuning.core.reading import parse_json
from ptuning.settings.arguments import DataArguments, ModelArguments
from ptuning.settings.setting_limits import check_fields, check_path, shown
from ptuning.settings.training_fields import CHOICES, FORCED, KNOWN, REFUSED
from ptuning.training.optimiser_checks import check_optimiser, check_schedule, plain, warms_up

logger = logging.getLogger(__name__)

SCORES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
"""What ``--metric_for_best_model`` may name beside the loss, where answers are scored."""

_PATHS = ("output_dir", "resume_from_checkpoint", "init_from")
_OBJECTS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
_PLAIN = (bool, int, float, str, list, tuple, dict)  # other objects are what transformers itself makes of a setting
_NOTHING: tuple[Any, ...] = (None, "", [], {}, ())


def check_training_values(training: Any) -> None:
    """Check every value of a ``TuningArguments`` as it was given, before transformers makes something of it.

    Raises:
        UserError: out of its range, refused here (with the reason), unknown, or no JSON object where one is needed.
    """
    check_fields(training)
    for field in dataclasses.fields(training):
        value = getattr(training, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if not isinstance(value, _PLAIN) or value == default or (value in _NOTHING and default in _NOTHING):
            continue
        if field.name in FORCED and value == FORCED[field.name]:
            continue
        what = f"--{field.name} {shown(value)}"
        if field.name in CHOICES and str(value) not in CHOICES[field.name]:
            raise UserError(f"{what}: allowed are {', '.join(CHOICES[field.name])}")
        if field.name in REFUSED:
            raise UserError(f"{what}: {REFUSED[field.name]}")
        if field.name in FORCED:
            raise UserError(f"{what}: a run here always takes {FORCED[field.name]}; leave it out")
        if field.name not in KNOWN:
            version = importlib.metadata.version("transformers")
            raise UserError(f"{what}: a setting of transformers {version} that ptuning does not know yet; leave it out")
    for name in _PATHS:
        if isinstance(getattr(training, name), str):
            setattr(training, name, check_path(f"--{name}", getattr(training, name)))
    for name in _OBJECTS:
        _check_object(name, getattr(training, name, None))
    for name in ("warmup_steps", "logging_steps", "eval_steps", "save_steps"):
        value = getattr(training, name)
        if value is not None and value > 1 and value != int(value):
            raise UserError(f"--{name} {value:g}: a number of steps is whole; below 1 it is a share of all steps")


def _check_object(name: str, value: Any) -> None:
    """A JSON object (or its text) whose numbers are finite."""
    name = name.replace("activation_", "gradient_")  # the name under which it is documented here
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise UserError(f"--{name} {shown(value)}: not valid JSON ({error}); write '{{\"name\": value}}'") from None
    if value is None:
        return
    if not isinstance(value, dict):
        raise UserError(f"--{name} {shown(value)}: must be a JSON object: '{{\"name\": value}}'")
    for key, number in value.items():
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"--{name}: {shown(key)} is {number}; must be a finite number")


@contextlib.contextmanager
def clear_errors(what: str, flags: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever transformers, torch or accelerate raise of settings into one line.

    Our own errors and memory that does not suffice pass through.

    Args:
        what: is being made, for the message.
        flags: settings that may be the reason, with their values; the one that the library's words name is named.
    """
    try:
        yield
    except (UserError, TrainingError, GenerationError, StoppedError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if is_out_of_memory(error):
            raise
        named = [name for name in flags if re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", text)]
        if "--" in text:
            lead = ""
        elif len(named) == 1:
            lead = f"--{named[0]} {shown(flags[named[0]])}: "
        else:
            lead = f"{what} cannot be made: "
        raise UserError(lead + (text or type(error).__name__)) from error


def check_combinations(model: ModelArguments, data: DataArguments, training: Any, given: Mapping[str, Any]) -> None:
    """Refuse settings of a training run that contradict each other or would be taken and ignored.

    Args:
        model: of the run, likewise ``data`` and ``training``.
        data: rows and lengths.
        training: with ``do_train``.
        given: what was named by the user.

    Raises:
        UserError: with the flags.
    """
    _check_lengths_of_run(training)
    _check_evaluations(data, training)
    _check_loading(training)
    _check_checkpointing(training)
    _check_packages(training.report_to)
    _check_reporting(training)
    for flag, dtype in (("fp16_full_eval", "float16"), ("bf16_full_eval", "bfloat16")):
        if getattr(training, flag):
            raise UserError(f"--{flag}: a model that was just trained keeps its number format; use --dtype {dtype}")
    optimiser = check_optimiser(training, given)
    check_schedule(training, optimiser, training.max_steps if training.max_steps > 0 else 10**4)
    for name, switch, needed in (
        ("eval_steps", "eval_strategy", "steps"), ("save_steps", "save_strategy", "steps"),
        ("logging_steps", "logging_strategy", "steps"),
    ):  # fmt: skip
        if name in given and plain(getattr(training, switch)) != needed:
            logger.warning("--%s %s: no effect without --%s %s", name, given[name], switch, needed)
    watched = plain(training.eval_strategy) != "no"
    for name, there, needs in (
        ("eval_generate_samples", watched and training.predict_with_generate, "--predict_with_generate and --eval_strategy"),
        ("early_stopping_threshold", training.early_stopping_patience is not None, "--early_stopping_patience"),
        ("eval_delay", watched, "--eval_strategy"),
        ("metric_for_best_model", watched, "--eval_strategy"),
        ("run_name", bool(training.report_to), "--report_to"),
    ):
        if name in given and not there:
            logger.warning("--%s %s: no effect without %s", name, given[name], needs)


def _check_lengths_of_run(training: Any) -> None:
    if training.max_steps == 0:
        raise UserError("--max_steps 0: no step would be taken; leave it out to train for --num_train_epochs")
    if training.max_steps < 0 and training.num_train_epochs <= 0:
        raise UserError(f"--num_train_epochs {training.num_train_epochs:g}: no step would be taken; must be more than 0")


def _check_evaluations(data: DataArguments, training: Any) -> None:
    """What asks for evaluations while training, and by what the best of them is told."""
    watched = plain(training.eval_strategy) != "no"
    for name, asked in (
        ("eval_on_start", training.eval_on_start),
        ("load_best_model_at_end", training.load_best_model_at_end),
        ("save_strategy best", plain(training.save_strategy) == "best"),
        ("early_stopping_patience", training.early_stopping_patience is not None),
        ("lr_scheduler_type " + plain(training.lr_scheduler_type), plain(training.lr_scheduler_type) in _WATCHING_SCHEDULES),
    ):
        if asked and not watched:
            raise UserError(f"--{name} needs evaluations in training: add --eval_strategy steps --eval_steps N")
    if training.early_stopping_patience is not None or plain(training.save_strategy) == "best":
        training.metric_for_best_model = training.metric_for_best_model or "eval_loss"
    if training.metric_for_best_model is None:
        return
    metric = training.metric_for_best_model.removeprefix("eval_")
    scored = training.predict_with_generate and data.validation_file is not None
    allowed = ["eval_loss", *(f"eval_{name}" for name in SCORES if scored)]
    if f"eval_{metric}" not in allowed:
        more = "" if scored else f"; {', '.join(SCORES)} need --predict_with_generate and --validation_file"
        raise UserError(f"--metric_for_best_model {shown(metric)}: allowed are {', '.join(allowed)}{more}")
    greater = metric != "loss"
    if training.greater_is_better is None:
        training.greater_is_better = greater
    if training.greater_is_better != greater:
        raise UserError(
            f"--greater_is_better {training.greater_is_better} with --metric_for_best_model {metric} would keep the worst: "
            "leave it out"
        )
    mode, wanted = (training.lr_scheduler_kwargs or {}).get("mode", "min"), "max" if greater else "min"
    if watched and plain(training.lr_scheduler_type) in _WATCHING_SCHEDULES and mode != wanted:
        raise UserError(
            f"--lr_scheduler_type {plain(training.lr_scheduler_type)} with --metric_for_best_model {metric}: the rate would "
            f"fall when it gets better; add --lr_scheduler_kwargs '{{\"mode\": \"{wanted}\"}}'"
        )


_WATCHING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def _check_loading(training: Any) -> None:
    """Settings of processes that load rows, without such processes."""
    if training.dataloader_num_workers:
        return
    for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor"):
        if getattr(training, name, None):
            raise UserError(f"--{name} {getattr(training, name)} needs --dataloader_num_workers 1 or more")


_CHECKPOINTING: Mapping[str, tuple[Any, ...] | None] = {
    "use_reentrant": (True, False), "preserve_rng_state": (True, False), "debug": (True, False), "offload": (True, False),
    "determinism_check": ("default", "none"), "every_n_layers": None,
}  # fmt: skip


def _check_checkpointing(training: Any) -> None:
    """Keys and values of ``--gradient_checkpointing_kwargs``, which nobody looks at before the first step."""
    for key, value in (training.gradient_checkpointing_kwargs or {}).items():
        what = f"--gradient_checkpointing_kwargs: {shown(key)} {shown(value)}"
        if key not in _CHECKPOINTING:
            raise UserError(f"{what}: allowed are {', '.join(_CHECKPOINTING)}")
        choices = _CHECKPOINTING[key]
        if choices is None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{what}: must be a whole number, 1 or more")
        if choices is not None and (value not in choices or isinstance(value, int) != isinstance(choices[0], bool)):
            raise UserError(f"{what}: allowed are {', '.join(map(str, choices))}")


def _check_reporting(training: Any) -> None:
    """Settings of one reporting package, without it."""
    if "trackio" not in training.report_to:
        defaults = {field.name: field.default for field in dataclasses.fields(training)}
        for name in ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"):
            if name in defaults and getattr(training, name) != defaults[name]:
                raise UserError(f"--{name} {shown(getattr(training, name))}: only --report_to trackio reads it")


def _check_packages(names: Iterable[str]) -> None:
    """Refuse a reporting package that nobody knows or that is not there."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name in ("none", "all"):
            raise UserError(f"--report_to {name}: stands alone, without other packages beside it")
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UserError(f"--report_to {shown(name)}: no such reporting package; there are none, all, {known}")
        if name in ("tensorboard", "wandb") and importlib.util.find_spec(name) is None:
            raise UserError(f"--report_to {name}: the package is not installed; install it with: pip install {name}")
        with clear_errors(f"the callback of --report_to {name}", {}):
            INTEGRATION_TO_CALLBACK[name]()


_LAUNCHER = {
    "ACCELERATE_DYNAMO_BACKEND": REFUSED["torch_compile"],
    "ACCELERATE_USE_FSDP": REFUSED["fsdp"],
    "ACCELERATE_USE_DEEPSPEED": REFUSED["deepspeed"],
}


def check_before_loading(training: Any) -> None:
    """Refuse what this machine cannot do, or what leaves nothing to do, before a model is loaded for it.

    Raises:
        UserError: mixed precision or offloading without an accelerator; a validation loss without training.
    """
    if not training.do_train:
        if not training.do_predict:
            raise UserError(
                "--do_eval without --do_train: the validation loss is taken while a prefix is trained, or after; to answer "
                "and score rows instead, give --do_predict --test_file FILE"
            )
        return
    for name, why in _LAUNCHER.items():
        if os.environ.get(name, "no").lower() not in ("", "0", "no", "false"):
            raise UserError(f"{name}={shown(os.environ[name])} (accelerate launch sets it): {why}")
    if training.device.type != "cpu":
        return
    if training.mixed_precision not in ("no", "bf16"):
        flag = "--fp16" if training.fp16 else f"ACCELERATE_MIXED_PRECISION={training.mixed_precision}"
        raise UserError(
            f"{flag}: a CPU does no mixed precision but bf16; leave it out, or take --dtype bfloat16, which holds and "
            "computes the frozen model in half precision"
        )
    if (training.gradient_checkpointing_kwargs or {}).get("offload"):
        raise UserError("--gradient_checkpointing_kwargs: offload true moves activations off a GPU, and there is none")


def check_against_model(model: ModelArguments, training: Any, given: Mapping[str, Any], config: Any) -> None:
    """Refuse settings that do not fit the model, by its ``config.json`` alone.

    Args:
        model: of the run, likewise ``training``.
        training: of the run.
        given: what was named by the user.
        config: of the model.

    Raises:
        UserError: lengths that were asked for and that the model cannot hold; mixed precision that would do nothing.
    """
    limit = config.max_sequence_length
    for flag in ("max_source_length", "max_target_length", "val_max_target_length"):
        if (given.get(flag) or 0) > limit:
            raise UserError(f"--{flag} {given[flag]}: the model holds {limit} tokens, prompt and reply together")
    if training.do_train and training.mixed_precision == "bf16" and training.device.type == "cpu":
        quantised = config.quantization_bit or model.quantization_bit
        if quantised or model.dtype == "float16":
            what = "quantised linears have a number format of their own" if quantised else "it does not suit float16 weights"
            raise UserError(f"--bf16: on a CPU {what}; leave it out, or take --dtype bfloat16 instead")


def check_steps(training: Any, rows: int, validation_rows: int | None = None) -> None:
    """Refuse a run that would take no step, now that its rows are counted; try the schedule with its real length.

    Args:
        training: of the run.
        rows: to train on.
        validation_rows: to evaluate on while training; None: none.

    Raises:
        UserError: with the flags that leave nothing to do.
    """
    batch = training.train_batch_size * training.world_size
    batches = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    if not batches:
        raise UserError(
            f"--dataloader_drop_last: the {rows} training rows are fewer than one batch of {batch} "
            "(--per_device_train_batch_size), so that no step would be taken; leave it out, or take smaller batches"
        )
    size = training.eval_batch_size * training.world_size
    if validation_rows is not None and training.dataloader_drop_last and validation_rows < size:
        raise UserError(
            f"--dataloader_drop_last: the {validation_rows} validation rows are fewer than one batch of {size} "
            "(--per_device_eval_batch_size), so that nothing would be evaluated; leave it out, or take smaller batches"
        )
    steps_an_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * steps_an_epoch)
    check_schedule(training, check_optimiser(training, {}), total)
    if warms_up(training) and training.warmup_steps >= max(1, total):
        logger.warning(
            "--warmup_steps %d: the run has %d steps, so that it never reaches --learning_rate %g",
            training.warmup_steps, total, training.learning_rate,
        )
