"""What the settings of a training run say together, before anything is loaded.

:func:`check_combinations` looks at settings that contradict each other or would do nothing; :func:`check_steps` at the
number of rows. Optimiser and schedule are tried out by :mod:`ptuning.training.optimiser_checks`; single values, the machine
and the model's configuration are held against the settings in :mod:`ptuning.settings.run_checks`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ptuning.core.characters import shown
from ptuning.core.errors import UserError
from ptuning.methods.method import TuningMethod
from ptuning.settings.arguments import DataArguments, ModelArguments
from ptuning.settings.run_checks import clear_errors
from ptuning.training.optimiser_checks import check_optimiser, check_schedule, plain, warms_up

logger = logging.getLogger(__name__)


def check_combinations(
    model: ModelArguments,
    data: DataArguments,
    training: Any,
    given: Mapping[str, Any],
    scores: Mapping[str, bool],
    method: TuningMethod,
) -> None:
    """Refuse settings of a training run that contradict each other or would be taken and ignored.

    Args:
        model: of the run, likewise ``data`` and ``training``.
        data: rows and lengths.
        training: with ``do_train``.
        given: the settings that the user named.
        scores: what ``--metric_for_best_model`` may name beside the loss, where answers are scored, and whether higher is
            better.
        method: how the run tunes.

    Raises:
        UserError: with the flags.
    """
    _check_lengths_of_run(training)
    _check_evaluations(data, training, given, scores)
    _check_loading(training)
    _check_checkpointing(training)
    _check_packages(training.report_to)
    _check_reporting(training)
    for flag, dtype in (("fp16_full_eval", "float16"), ("bf16_full_eval", "bfloat16")):
        if getattr(training, flag):
            raise UserError(f"--{flag}: a model that was just trained keeps its number format; use --dtype {dtype}")
    optimiser = check_optimiser(training, given, method)
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


def _check_evaluations(
    data: DataArguments, training: Any, given: Mapping[str, Any], scores: Mapping[str, bool]
) -> None:
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
    allowed = ["eval_loss", *(f"eval_{name}" for name in scores if scored)]
    if f"eval_{metric}" not in allowed:
        more = "" if scored else f"; {', '.join(scores)} need --predict_with_generate and --validation_file"
        raise UserError(f"--metric_for_best_model {shown(metric)}: allowed are {', '.join(allowed)}{more}")
    greater = scores.get(metric, False)  # False: the loss
    if given.get("greater_is_better") is None:  # transformers takes every name but a loss for one of which more is better
        training.greater_is_better = greater
    if training.greater_is_better != greater:
        raise UserError(
            f"--greater_is_better {training.greater_is_better} with --metric_for_best_model {metric} would keep the worst: "
            "leave it out"
        )
    mode, required_mode = (training.lr_scheduler_kwargs or {}).get("mode", "min"), "max" if greater else "min"
    if watched and plain(training.lr_scheduler_type) in _WATCHING_SCHEDULES and mode != required_mode:
        raise UserError(
            f"--lr_scheduler_type {plain(training.lr_scheduler_type)} with --metric_for_best_model {metric}: the rate would "
            f"fall when it gets better; add --lr_scheduler_kwargs '{{\"mode\": \"{required_mode}\"}}'"
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


def check_steps(training: Any, method: TuningMethod, rows: int, validation_rows: int | None = None) -> None:
    """Refuse a run that would take no step, now that its rows are counted; try the schedule with its real length.

    Args:
        training: of the run.
        method: how it tunes.
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
    check_schedule(training, check_optimiser(training, {}, method), total)
    if warms_up(training) and training.warmup_steps >= max(1, total):
        logger.warning(
            "--warmup_steps %d: the run has %d steps, so that it never reaches --learning_rate %g",
            training.warmup_steps, total, training.learning_rate,
        )
