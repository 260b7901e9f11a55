"""Checks of a run's settings that need no optimiser: every value, what the machine must have, what the model can hold.

:func:`check_training_values` holds single values against :mod:`ptuning.settings.training_fields`, wherever a
``TuningArguments`` is made; :func:`check_before_loading` asks what the machine must have, :func:`check_against_model` what
the model's configuration tells. What the settings of a training run say together: :mod:`ptuning.training.settings_checks`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ptuning.core.characters import shown
from ptuning.core.errors import GenerationError, StoppedError, TrainingError, UserError, is_out_of_memory
from ptuning.core.reading import parse_json
from ptuning.settings.arguments import ModelArguments
from ptuning.settings.setting_limits import check_fields, check_path
from ptuning.settings.training_fields import CHOICES, FORCED, KNOWN, REFUSED

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
        given: the settings that the user named.
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
