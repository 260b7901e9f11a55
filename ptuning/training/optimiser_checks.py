"""Tries the optimiser and the learning-rate schedule of a run on one small weight, before the model is loaded.

Only transformers' optimisers and schedules themselves know which packages, arguments and keys they need; so they are
built and take a step here, and what they raise becomes a one-line error.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch

from ptuning.core.characters import shown
from ptuning.core.errors import UserError
from ptuning.methods.method import TuningMethod

_UNSUITABLE = {
    "lomo": "it changes weights while gradients are computed, and gradients are checked here before any step",
}
_OF_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_NO_ARGUMENTS = ("constant", "constant_with_warmup")
_PROBE = "0.123"  # no optimiser's default, and no value for an argument that is no number


def check_optimiser(training: Any, given: Mapping[str, Any], method: TuningMethod) -> Any:
    """Build the optimiser for one weight on the run's device, and take a step with it.

    Args:
        training: of the run.
        given: the settings that the user named; any that the optimiser does not read is refused.
        method: how the run tunes; not every optimiser suits every method.

    Returns:
        the optimiser.

    Raises:
        UserError: a package is missing, or an argument is missing, unknown or out of range.
    """
    name = plain(training.optim)
    for part, why in (*method.unsuitable_optimisers.items(), *_UNSUITABLE.items()):
        if part in name:
            raise UserError(f"--optim {name}: {why}; {method.suitable_optimisers} suit {method.words.one}")
    arguments = _parsed_arguments(training.optim_args)
    what = f"--optim {name}" + (f" --optim_args {shown(training.optim_args)}" if arguments else "")
    weight = torch.nn.Parameter(torch.ones(2, 2, device=training.device))
    try:
        kind, keywords = _kind_and_keywords(training)
        optimiser = kind([{"params": [weight], "weight_decay": training.weight_decay}], **keywords)
        weight.grad = torch.ones_like(weight)
        optimiser.step()
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error
    for key in arguments:
        if not _reads_argument(training, key):
            raise UserError(f"--optim_args {shown(training.optim_args)}: {name} takes no argument {shown(key)}")
    for setting in _OF_ADAM:
        default = type(training).__dataclass_fields__[setting].default
        if setting in given and given[setting] != default and not _differs(training, {setting: default}):
            raise UserError(f"--{setting} {given[setting]:g}: --optim {name} has no such value; leave it out")
    return optimiser


def check_schedule(training: Any, optimiser: Any, steps: int) -> None:
    """Build the learning-rate schedule for an optimiser and check its rates from the first step to the last.

    Raises:
        UserError: an argument is missing, unknown or out of range, or a setting would be ignored.
    """
    from transformers import get_scheduler

    name, arguments = plain(training.lr_scheduler_type), training.lr_scheduler_kwargs
    what = f"--lr_scheduler_type {name}" + (f" --lr_scheduler_kwargs {shown(str(arguments))}" if arguments else "")
    if name in _NO_ARGUMENTS and arguments:
        raise UserError(f"{what}: this schedule takes no arguments")
    if training.warmup_steps and not warms_up(training):
        instead = "; constant_with_warmup does" if name == "constant" else ""
        raise UserError(f"--warmup_steps {training.warmup_steps:g}: --lr_scheduler_type {name} has no warmup{instead}")
    try:
        schedule = get_scheduler(
            training.lr_scheduler_type,
            optimizer=optimiser,
            num_warmup_steps=training.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=None if arguments is None else dict(arguments),
        )
        if hasattr(schedule, "lr_lambdas"):
            shares = {step: float(schedule.lr_lambdas[0](step)) for step in (0, 1, steps // 3, steps // 2, steps - 1)}
        else:
            schedule.step(1.0)
            shares = {1: optimiser.param_groups[0]["lr"]}
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error
    for step, share in shares.items():
        if not (math.isfinite(share) and share >= 0):
            raise UserError(f"{what}: gives a learning rate of {share * training.learning_rate:g} after step {step}")


def warms_up(training: Any) -> bool:
    """Whether the run's schedule reads ``--warmup_steps``."""
    return plain(training.lr_scheduler_type) not in _NO_WARMUP


def plain(value: Any) -> str:
    """A setting as written on the command line, also when transformers has made an enum of it."""
    return str(getattr(value, "value", value))


def _parsed_arguments(text: str | None) -> dict[str, str]:
    """``--optim_args`` by name."""
    arguments: dict[str, str] = {}
    for pair in (text or "").replace(" ", "").split(",") if text else ():
        key, equals, value = pair.partition("=")
        if not (key and equals and value) or "=" in value or key in arguments:
            raise UserError(f"--optim_args {shown(text)}: write NAME=VALUE, several of them with commas between, each once")
        try:
            if not math.isfinite(float(value)):
                raise UserError(f"--optim_args {shown(text)}: {key} must be a finite number")
        except ValueError as error:
            if isinstance(error, UserError):
                raise
        arguments[key] = value
    return arguments


def _kind_and_keywords(training: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import Trainer

    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(training)
    return kind, keywords


def _differs(training: Any, changes: Mapping[str, Any]) -> bool:
    """Whether changing some settings gives another optimiser, or none at all."""
    changed = copy.copy(training)
    for name, value in changes.items():
        setattr(changed, name, value)
    with contextlib.suppress(Exception):
        return bool(_kind_and_keywords(changed) != _kind_and_keywords(training))
    return True  # the optimiser read the probe and rejected its value


def _reads_argument(training: Any, key: str) -> bool:
    """Whether the optimiser reads an argument: a probe value for it changes the optimiser."""
    bare = copy.copy(training)
    bare.optim_args = None
    return _differs(bare, {"optim_args": f"{key}={_PROBE}"})


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
