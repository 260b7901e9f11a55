"""The state of a run in a checkpoint (optimiser, schedule, random numbers, log) as it is read back: checked before use.

Nothing here runs code from a file: PyTorch's files are read with ``weights_only``, and whatever is not a tensor, a number
or a plain container is refused.
"""

from __future__ import annotations

import logging
import math
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from ptuning.core.errors import UserError
from ptuning.core.reading import guarded

logger = logging.getLogger(__name__)

STATE_FILE, OPTIMIZER_FILE, SCHEDULER_FILE, SCALER_FILE = (
    "trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt",
)
_REMEDY = "take another checkpoint, or start from its weights alone with --init_from"
_SMALL = 1 << 16  # numbers in a tensor of an optimiser's state that belongs to no parameter


def rng_file(process: int, processes: int) -> str:
    """Where the random state of a process is kept, by transformers' naming."""
    return f"rng_state_{process}.pth" if processes > 1 else "rng_state.pth"


def what_is_missing(checkpoint: Path) -> str | None:
    """Say which parts of the state of a run a checkpoint lacks; None where all are there.

    ``--save_only_model`` writes none of them. DeepSpeed and FSDP keep the optimiser in folders of their own.
    """
    elsewhere = any(item.is_dir() for pattern in ("optimizer*", "global_step*") for item in checkpoint.glob(pattern))
    there = {
        OPTIMIZER_FILE: elsewhere or any(checkpoint.glob("optimizer.*")),
        SCHEDULER_FILE: elsewhere or (checkpoint / SCHEDULER_FILE).is_file(),
        "rng_state.pth": any(checkpoint.glob("rng_state*.pth")),
    }
    missing = [name for name, present in there.items() if not present]
    return f"no {', '.join(missing)}: the state of the run is not in it" if missing else None


def what_is_unreadable(checkpoint: Path) -> str | None:
    """Say which file of the state of a run cannot be read, or holds something else; None where all is well.

    Of the optimiser's tensors only the names and shapes are checked.
    """
    readers: list[tuple[str, Callable[[Path], object]]] = [
        (STATE_FILE, _read_trainer_state), (OPTIMIZER_FILE, _read_optimizer), (SCHEDULER_FILE, _read_scheduler),
        (SCALER_FILE, read_state), ("rng_state*.pth", _read_random_state),
    ]
    try:
        for pattern, read in readers:
            for path in sorted(checkpoint.glob(pattern)):
                read(path)
    except UserError as error:
        return str(error)
    return None


def warn_of_other_processes(checkpoint: Path, processes: int) -> None:
    """Say where a checkpoint has no random state for each process of this run: dropout then differs."""
    names = [rng_file(process, processes) for process in range(processes)]
    if not all((checkpoint / name).is_file() for name in names):
        count = len(list(checkpoint.glob("rng_state*.pth")))
        logger.warning(
            "%s was written by %d process%s and this run has %d: the random numbers (dropout, order of rows) do not "
            "continue from there", checkpoint, count, "" if count == 1 else "es", processes,
        )


def read_state(path: Path, context: AbstractContextManager[Any] | None = None) -> dict[Any, Any]:
    """The mapping in a file of PyTorch, mapped: a tensor's bytes are read when it is used.

    Raises:
        UserError: unreadable, no mapping, or anything in it but tensors, numbers and plain containers.
    """
    with guarded(path, "PyTorch file", _REMEDY), context or nullcontext():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError:
            raise UserError(
                f"{path}: holds something other than tensors and numbers, or is damaged; it is not loaded, for such a file "
                f"can run code; {_REMEDY}"
            ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not the state of a run; {_REMEDY}")
    return state


def _read_trainer_state(path: Path) -> TrainerState:
    with guarded(path, "trainer state", "take another checkpoint"):
        state = TrainerState.load_from_json(str(path))
        counts = (state.global_step, state.max_steps)
        if any(type(count) is not int or count < 0 for count in counts):
            raise UserError(f"{path}: global_step and max_steps must be whole numbers, 0 or more; take another checkpoint")
        _check_counts(path, state)
        entries = isinstance(state.log_history, list) and all(isinstance(entry, dict) for entry in state.log_history)
        callbacks = state.stateful_callbacks
        known = isinstance(callbacks, dict) and all(isinstance(callback, dict | list) for callback in callbacks.values())
        if not entries or not known or "TrainerControl" not in callbacks:
            raise UserError(f"{path}: log_history or stateful_callbacks is damaged; take another checkpoint")
    return state


def _check_counts(path: Path, state: TrainerState) -> None:
    """Check the numbers that a resumed run counts on from, and the step in the folder's name."""
    counts = (state.logging_steps, state.save_steps, state.eval_steps, state.total_flos, state.num_train_epochs)
    if any(isinstance(count, bool) or not isinstance(count, int | float) or not math.isfinite(count) for count in counts):
        raise UserError(f"{path}: one of its counts is no number; take another checkpoint")
    named = re.fullmatch(r"checkpoint-(\d{1,18})", path.parent.name)
    if (named and int(named[1]) != state.global_step) or state.global_step > state.max_steps:
        raise UserError(f"{path}: global_step {state.global_step} is not the step of this checkpoint; take another one")


def _read_scheduler(path: Path) -> dict[Any, Any]:
    state = read_state(path)
    counts = all(type(state.get(name, 0)) is int for name in ("last_epoch", "_step_count"))
    rates = [state.get(name, [0.0]) for name in ("base_lrs", "_last_lr")]
    if not counts or not all(isinstance(some, list) and some and all(map(_is_number, some)) for some in rates):
        raise UserError(f"{path}: its counts or learning rates are damaged; {_REMEDY}")
    if wrong := sorted(name for name in map(str, state) if name in _OF_THE_SCHEDULER):
        raise UserError(f"{path}: holds {wrong[0]}, which is no state of a schedule; {_REMEDY}")
    return state


_SCHEDULER = torch.optim.lr_scheduler.LRScheduler
_OF_THE_SCHEDULER = frozenset(("optimizer", *(name for name in dir(_SCHEDULER) if callable(getattr(_SCHEDULER, name)))))


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_groups(path: Path, groups: list[dict[str, Any]]) -> None:
    """Settings of an optimiser are numbers, or a few of them: always for ``betas``, and for Adafactor's ``eps``."""
    for group in groups:
        for name in sorted(_NUMBERS & group.keys()):
            value = group[name]
            several = isinstance(value, tuple | list) and len(value) in (2, 3)
            numbers = value if several and name in ("betas", "eps") else [value]
            fine = all(map(_is_number, numbers)) and (several or name != "betas")
            if not fine and not (name == "lr" and value is None):  # Adafactor may find its own
                raise UserError(f"{path}: {name} of a group of parameters is damaged; {_REMEDY}")


_NUMBERS = frozenset(("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "alpha", "initial_lr"))
_SWITCHES = ("amsgrad", "nesterov", "centered", "maximize", "differentiable")


def _check_storage(path: Path, state: Mapping[Any, Any]) -> None:
    """Every number of a tensor has a place of its own: a stride of 0 would be written into many times over."""
    for values in state.values():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
                continue
            apart = all(stride > 0 for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1)
            if not apart or (name == "step" and value.numel() != 1):
                raise UserError(f"{path}: {name} of a parameter is damaged; {_REMEDY}")


def _read_optimizer(path: Path) -> dict[Any, Any]:
    state = read_state(path)
    groups: Any = state.get("param_groups")
    whole = isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )
    if not whole or not isinstance(state.get("state"), dict):
        raise UserError(f"{path}: holds no state of an optimiser (state and param_groups); {_REMEDY}")
    with guarded(path, "state of an optimiser", _REMEDY):
        _check_groups(path, groups)
        _check_storage(path, state["state"])
    return state


def _read_random_state(path: Path) -> dict[Any, Any]:
    state = read_state(path, safe_globals())  # NumPy's arrays are among it
    with guarded(path, "random state", _REMEDY):
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(state["cpu"])
    return state


def check_optimizer(path: Path, optimizer: Any, before: object, now: object) -> None:
    """Refuse the state of another optimiser, or of other parameters.

    Args:
        path: ``optimizer.pt``.
        optimizer: of this run.
        before: ``--optim`` of the run that wrote the file, where it is known; ``now``: of this run.

    Raises:
        UserError: what was written and what this run uses.
    """
    with guarded(path, "state of an optimiser", _REMEDY):
        saved, own = _read_optimizer(path), optimizer.state_dict()
        groups, others = saved["param_groups"], own["param_groups"]
        names, own_names = (set().union(*(set(group) for group in many)) for many in (groups, others))
        _refuse_other_kind(path, "optim", (names, before), (own_names, now))
        _refuse_other_settings(path, groups, others)
        counts = [[len(group["params"]) for group in many] for many in (groups, others)]
        if counts[0] != counts[1]:
            raise UserError(f"{path} was written for {counts[0]} parameters by group; this run has {counts[1]}; {_REMEDY}")
        indices = [index for group in groups for index in group["params"]]
        if saved["state"] and set(saved["state"]) != set(indices):
            raise UserError(f"{path}: its state is not that of its parameters; {_REMEDY}")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in zip(indices, parameters, strict=True):
            _check_tensors(path, saved["state"].get(index), parameter)


def _refuse_other_settings(path: Path, groups: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """What a step needs must be there, and switches that decide what state there is must stand as in this run."""
    for group, own in zip(groups, others, strict=False):
        if lacking := sorted(name for name in _NUMBERS & own.keys() if name not in group and name != "initial_lr"):
            raise UserError(f"{path}: a group of parameters has no {lacking[0]}; {_REMEDY}")
        for name in _SWITCHES:
            if name in group and name in own and bool(group[name]) != bool(own[name]):
                raise UserError(f"{path} was written with {name} {group[name]}; this run has {own[name]}; {_REMEDY}")


def check_scheduler(path: Path, scheduler: Any, before: object, now: object) -> None:
    """Refuse the state of another schedule of the learning rate.

    Args:
        path: ``scheduler.pt``.
        scheduler: of this run.
        before: ``--lr_scheduler_type`` of the run that wrote the file, where it is known; ``now``: of this run.

    Raises:
        UserError: what was written and what this run uses.
    """
    with guarded(path, "state of a schedule", _REMEDY):
        saved, own = set(_read_scheduler(path)), set(scheduler.state_dict())
        _refuse_other_kind(path, "lr_scheduler_type", (saved, before), (own, now))


def _refuse_other_kind(path: Path, flag: str, saved: tuple[set[Any], object], own: tuple[set[Any], object]) -> None:
    """Compare the names in a saved state and in this run's own. Versions of one class add names; another class also lacks
    some of this one's."""
    (names, before), (own_names, now) = saved, own
    more, less = names - own_names, own_names - names
    known = before not in (None, now)
    if (more and less) or (known and (more or less)):
        written = f"--{flag} {before}" if known else f"something else ({', '.join(sorted(map(str, more))[:4])})"
        raise UserError(
            f"{path} was written with {written}; this run uses --{flag} {now}: resume with the settings of that run, or "
            "start from its weights alone with --init_from"
        )


_AS_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")


def _check_tensors(path: Path, state: object, parameter: Tensor) -> None:
    if state is not None and not isinstance(state, Mapping):
        raise UserError(f"{path}: the state of a parameter is a {type(state).__name__}; {_REMEDY}")
    for name, value in (state or {}).items():
        if not isinstance(value, Tensor):
            continue
        plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        fits = value.shape == parameter.shape if name in _AS_THE_PARAMETER else True
        if not plain or not fits or value.numel() > max(parameter.numel(), _SMALL):
            raise UserError(
                f"{path}: {name} was written with the shape {list(value.shape)}; this run trains a parameter of the shape "
                f"{list(parameter.shape)}: resume with the settings of that run"
            )
