"""The settings of a run as a report shows them, and the command that repeats the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ptuning.core.paths import path_argument, quoted

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

_EFFECTIVE = {
    "model": ("quantization_bit", "dtype"),
    "data": ("max_source_length", "max_target_length", "val_max_target_length", "generation", "num_beams"),
    "training": (
        "learning_rate", "lr_scheduler_type", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "per_device_eval_batch_size", "seed",
    ),
}
_SECRET = ("token", "hub_token", "use_auth_token")


def settings_shown(arguments: Arguments) -> list[dict[str, Any]]:
    """The settings that decide a run, and all others that were named: name, value, whether it was named."""
    from ptuning.methods.registry import METHODS  # here: scores of a file need no torch

    tuned = METHODS[arguments.method].model_settings
    training_only = {"learning_rate", "lr_scheduler_type", "max_steps", "gradient_accumulation_steps"}
    training_only |= {"per_device_train_batch_size", *tuned}
    effective = _EFFECTIVE | {"model": ("model_name_or_path", "ptuning_checkpoint", *tuned, *_EFFECTIVE["model"])}
    shown: dict[str, Any] = {}
    for group in ("model", "data", "training"):
        for name in effective[group]:
            if arguments.training.do_train or name not in training_only or name in arguments.given:
                shown[name] = getattr(getattr(arguments, group), name)
    shown |= {name: value for name, value in arguments.given.items() if name not in shown and not _is_secret(name)}
    return [
        {"name": name, "value": _plain(value), "named": name in arguments.given}
        for name, value in shown.items()
        if value is not None
    ]


def _is_secret(name: str) -> bool:
    return name in _SECRET or name.endswith("_token")


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # of an enum
    return value if isinstance(value, int | float | str | bool | list) else str(value)


def command_of(arguments: Arguments) -> str:
    """The command that repeats a run: every setting that was named, by its flag, so that no settings file is needed.
    Access tokens are left out."""
    verb = "train" if arguments.training.do_train else "evaluate"
    words = ["ptuning", verb]
    left_out = {"resume_from_checkpoint", "overwrite_predictions"}
    if verb == "evaluate":
        words += [path_argument(path) for path in arguments.checkpoints]
        left_out |= {"do_train", "all_checkpoints"} | ({"ptuning_checkpoint"} if arguments.checkpoints else set())
    for name, value in arguments.given.items():
        if value is None or name in left_out or _is_secret(name):
            continue
        value = getattr(value, "value", value)
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return " ".join(map(quoted, words))
