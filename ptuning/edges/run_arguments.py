"""From the words after ``train`` or ``evaluate`` to the settings of a run: settings file, folders, flags, and what the verb
decides itself."""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ptuning.checkpoint.run_checkpoints import checkpoints
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.evaluation.metrics.registry import table_metrics
from ptuning.methods.registry import METHODS
from ptuning.settings.arguments import BUILT_IN_MODEL, DataArguments, ModelArguments
from ptuning.settings.parsing import Given, SettingsParser
from ptuning.settings.setting_limits import check_text
from ptuning.settings.training_arguments import SAVED_NAME, Arguments, TuningArguments
from ptuning.settings.training_fields import REFUSED
from ptuning.training.settings_checks import check_combinations

logger = logging.getLogger(__name__)

Task = Literal["train", "evaluate"]
_DESCRIPTION = {
    "train": "Tune a prefix for a frozen ChatGLM-6B on your own rows.",
    "evaluate": "Predict the rows of --test_file with the base model or with tuned prefixes, and score the replies. "
    "With --metrics-only FILE instead: score a predictions file that is there, without a model.",
}


@functools.cache
def _parser(task: Task) -> SettingsParser:
    groups = {
        "model and prefix": ModelArguments,
        "rows and lengths": DataArguments,
        "the run (transformers' Seq2SeqTrainingArguments)": TuningArguments,
    }
    positional = "[CONFIG.yaml]" if task == "train" else "[CONFIG.yaml] [CHECKPOINT ...]"
    return SettingsParser(
        groups,
        prog=f"ptuning {task}",
        description=_DESCRIPTION[task],
        positional=positional,
        many_folders=task == "evaluate",
        notes={name: f"Refused: {reason}." for name, reason in REFUSED.items()},
    )


def parse_arguments(argv: Sequence[str], *, task: Task = "train") -> Arguments:
    """Read ``[settings file] [prefix folders] flags`` into the three groups of settings.

    The settings file is JSON or YAML; flags are ``--name value`` or ``name=value`` and beat the file. Folders may be
    named for ``task="evaluate"``: the prefixes to score (one: ``--ptuning_checkpoint``). Where no ``do_…`` switch is given,
    the task itself decides: ``do_train`` or ``do_predict``; ``evaluate`` never trains, whatever the file says.

    Raises:
        UserError: anything unknown, missing or contradictory, naming flag or file and line.
        SystemExit: ``--help`` (code 0, after printing it).
    """
    given = _parser(task).parse(argv)
    compared: tuple[Path, ...] = ()
    if given.folder is not None:
        given, compared = _with_folder(given, given.folder, task)
    elif given.values.get("all_checkpoints"):
        raise UserError("--all_checkpoints: name the run's output folder: ptuning evaluate FOLDER --all_checkpoints")
    _choose_task(given.values, task)
    _agree_on_device(given.values)
    model, data = given.build(ModelArguments), given.build(DataArguments)
    if "logging_dir" in given.values:
        check_text("--logging_dir", given.values["logging_dir"], path=True)
        os.environ["TENSORBOARD_LOGGING_DIR"] = given.values["logging_dir"]
    training = given.build(TuningArguments)
    arguments = Arguments(model, data, training, given.values, given.config_file, compared)
    _check(arguments)
    return arguments


def _with_folder(given: Given, folder: str, task: Task) -> tuple[Given, tuple[Path, ...]]:
    """Read the folders named before the flags: prefix checkpoints, or output folders of runs (their last checkpoint, or
    all). Settings of the first one's run (see :func:`save_arguments`) are the defaults where no settings file is named.
    Also returns the checkpoints to compare, where there are several."""
    if task == "train":
        raise UserError(
            f"{folder!r}: not expected here; a settings file ends in .yaml or .json, and everything else is a "
            "flag (ptuning train --help lists them all)"
        )
    every = bool(given.values.get("all_checkpoints"))
    prefixes = [path for name in (folder, *given.more_folders) for path in _tuned_folders(name, every=every)]
    values = {} if given.config_file else _saved_arguments(Path(folder), task)
    if "row_format" in given.values:  # given now: other rows than that run's, and its columns do not belong to them
        values = {name: value for name, value in values.items() if name not in _COLUMN_SETTINGS}
    named = given.values.get("ptuning_checkpoint")
    if len(prefixes) > 1 and named is not None:
        raise UserError(f"--ptuning_checkpoint {named} beside {len(prefixes)} named checkpoints: put it among those")
    values |= {"ptuning_checkpoint": str(prefixes[0]), **given.values}
    compared = tuple(prefixes) if len(prefixes) > 1 or every else ()
    return Given(values, given.config_file, folder, given.more_folders), compared


def _tuned_folders(folder: str, *, every: bool) -> list[Path]:
    """The tuned checkpoint that a folder is, or those that a run's output folder holds (the last, or all).

    Raises:
        UserError: no such folder, or all are asked for and it is no run's folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{folder}: no such checkpoint folder (current directory: {working_directory()}); train a prefix first"
        )
    is_tuned = any((path / name).exists() for method in METHODS.values() for name in method.marker_files)
    saved = checkpoints(path) if every or not is_tuned else []
    if every and not saved:
        raise UserError(f"--all_checkpoints: no whole checkpoint-N folder in {folder}; name the output folder of a run")
    return saved if every else (saved[-1:] or [path])


_COLUMN_SETTINGS = ("prompt_column", "response_column", "history_column")


def _saved_arguments(folder: Path, task: Task) -> dict[str, Any]:
    """The settings saved in a run's folder, or in the folder above a checkpoint; empty where there are none."""
    for place in (folder, folder.resolve().parent):
        if (place / SAVED_NAME).is_file():
            return _parser(task).parse_file(place / SAVED_NAME)
    return {}


def _choose_task(values: dict[str, Any], task: Task) -> None:
    """Let the verb decide what to do where no flag does; an output folder is needed in any case."""
    if task == "evaluate":
        values["do_train"] = False
        for name in ("fp16", "bf16"):  # of training; the settings of a run may say so on another machine
            values.pop(name, None)
    if not any(values.get(name) for name in ("do_train", "do_eval", "do_predict")):
        values["do_train" if task == "train" else "do_predict"] = True
    if "output_dir" not in values:
        if values.get("do_train"):
            raise UserError("--output_dir FOLDER is missing: where checkpoints and results of the run go")
        values["output_dir"] = os.path.join("output", "evaluation")


def _agree_on_device(values: dict[str, Any]) -> None:
    """``--device cpu`` and transformers' ``--use_cpu`` mean the same."""
    device = values.get("device", "auto")
    if values.get("use_cpu") and device not in ("auto", "cpu"):
        raise UserError(f"--device {device} and --use_cpu (--no_cuda) contradict each other: leave one out")
    if device == "cpu":
        values["use_cpu"] = True
    elif values.get("use_cpu"):
        values["device"] = "cpu"


def _check(arguments: Arguments) -> None:
    model, data, training = arguments
    if model.model_name_or_path is None and model.ptuning_checkpoint is None:
        raise UserError(
            "--model_name_or_path is missing: the folder or hub name of a ChatGLM-6B model "
            f"({BUILT_IN_MODEL} is built in)"
        )
    needed = [("do_train", "train_file"), ("do_eval", "validation_file"), ("do_predict", "test_file")]
    for switch, file_flag in needed:
        if getattr(training, switch) and getattr(data, file_flag) is None:
            asked = switch if arguments.given.get(switch) or switch != "do_eval" else "eval_strategy"
            raise UserError(f"--{file_flag} is missing: --{asked} needs rows")
    if training.do_train:
        scores = {metric.name: metric.higher_is_better for metric in table_metrics()}
        check_combinations(model, data, training, arguments.given, scores, METHODS[arguments.method])
    else:
        _check_answering(model, training)
    named = [getattr(data, f"{part}_column") is not None for part in ("prompt", "response", "history")]
    for column, there in zip(("prompt_column", "response_column"), named, strict=False):
        if not there and (any(named) or data.row_format == "columns"):
            raise UserError(f"--{column} is missing: the name of a column of your rows (ADGEN: content and summary)")
    if training.do_train and data.validation_file and not training.do_eval:
        logger.warning(
            "validation_file is given, but nothing looks at it: add --do_eval (after training) or "
            "--eval_strategy steps --eval_steps N (while training)"
        )


def _check_answering(model: ModelArguments, training: TuningArguments) -> None:
    """What settings say together where nothing is trained."""
    for flag, dtype in (("fp16_full_eval", "float16"), ("bf16_full_eval", "bfloat16")):
        if getattr(training, flag) and model.dtype not in ("auto", dtype):
            raise UserError(f"--dtype {model.dtype} and --{flag} contradict each other: leave one out")
