"""The settings of a training or evaluation run: transformers' own, with what the published scripts still need.

:func:`parse_arguments` reads a command line (or a settings file with overrides) into the three groups of settings.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import Seq2SeqTrainingArguments

from ptuning.checkpoint.placement import pick_device
from ptuning.checkpoint.run_checkpoints import checkpoints
from ptuning.core.atomic import replace_when_whole
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.settings.arguments import BUILT_IN_MODEL, DataArguments, ModelArguments
from ptuning.settings.parsing import Given, SettingsParser
from ptuning.settings.setting_limits import Limits, check_text
from ptuning.settings.training_fields import LIMITS, REFUSED
from ptuning.training.settings_checks import check_combinations, check_training_values, clear_errors

logger = logging.getLogger(__name__)


@dataclass
class TuningArguments(Seq2SeqTrainingArguments):
    """transformers' Seq2SeqTrainingArguments, plus the published flag that transformers 5 dropped and we keep.

    Nothing is reported anywhere unless ``report_to`` says so. A value that does not fit, or a setting that would do nothing
    here, raises :class:`UserError`; see :mod:`ptuning.settings.training_fields`.
    """

    LIMITS: ClassVar[Mapping[str, Limits]] = LIMITS
    PATHS: ClassVar[tuple[str, ...]] = ("output_dir",)

    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Train from the start into an output folder that already holds a run (its checkpoints are renamed to "
            "old-checkpoint-N, other files of the same name are replaced)."
        },
    )
    prefix_format: Literal["ptuning", "published", "both"] = field(
        default="ptuning",
        metadata={
            "help": "Form of the prefix in a checkpoint: ptuning (prefix_encoder.safetensors and prefix_config.json), "
            "published (pytorch_model.bin, for the published scripts), or both."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Start from the weights of this prefix (a checkpoint folder), at step 0: no optimiser, no schedule. "
            "To go on with a run that was stopped: --resume_from_checkpoint auto.",
            "path": True,
        },
    )
    learning_rate: float = field(
        default=2e-2,
        metadata={"help": "Learning rate of the prefix (published: 2e-2; 1e-2 for dialogue; 1e-4 forgets least)."},
    )
    prefix_dropout: float = field(
        default=0.1, metadata={"help": "Share of the prefix's keys and values that is dropped in a training step."}
    )
    eval_generate_samples: int = field(
        default=32,
        metadata={
            "help": "Validation rows, spread over the file, that are answered and scored (BLEU-4, ROUGE) at every "
            "evaluation during training; needs --predict_with_generate and --eval_strategy."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations without a better --metric_for_best_model (default: eval_loss)."},
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much it must get better to count."}
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Compute activations twice and hold fewer of them: less memory, longer steps, the same gradients. Not "
            "given: only where a step is predicted not to fit into the memory that is free."
        },
    )
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "Where to report the run besides the output folder: tensorboard, wandb, ..."}
    )
    label_smoothing_factor: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training loss, 0 or more and below 1, that asks for the same probability of every token "
            "instead of the reply's. Validation losses are never smoothed."
        },
    )

    def __post_init__(self) -> None:
        """Check what was given, then let transformers fill in the rest."""
        check_training_values(self)
        if (self.bf16 or self.bf16_full_eval) and pick_device("auto").type == "cpu":
            self.use_cpu = True  # transformers wants to be told so before it lets a CPU do bfloat16
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        with clear_errors("the settings of the run", {name: value for name, value in values.items() if value}):
            super().__post_init__()


@dataclass(frozen=True)
class Arguments:
    """Everything a run was told. Unpacks as ``model, data, training = arguments``.

    Attributes:
        given: the settings that were named, by the settings file or a flag; all others are defaults.
        config_file: the settings file, if one was named.
        checkpoints: prefixes to evaluate one after another; the first is also the ``ptuning_checkpoint``. Empty where none
            or one was named.
    """

    model: ModelArguments
    data: DataArguments
    training: TuningArguments
    given: dict[str, Any]
    config_file: Path | None = None
    checkpoints: tuple[Path, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        """Yield the three groups in their order."""
        return iter((self.model, self.data, self.training))


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
    found = [path for name in (folder, *given.more_folders) for path in _prefixes(name, every=every)]
    values = {} if given.config_file else _saved_arguments(Path(folder), task)
    if "row_format" in given.values:  # said now: other rows than that run's, and its columns do not belong to them
        values = {name: value for name, value in values.items() if name not in _COLUMN_SETTINGS}
    named = given.values.get("ptuning_checkpoint")
    if len(found) > 1 and named is not None:
        raise UserError(f"--ptuning_checkpoint {named} beside {len(found)} named checkpoints: put it among those")
    values |= {"ptuning_checkpoint": str(found[0]), **given.values}
    return Given(values, given.config_file, folder, given.more_folders), tuple(found) if len(found) > 1 or every else ()


def _prefixes(folder: str, *, every: bool) -> list[Path]:
    """The prefix checkpoint that a folder is, or those that a run's output folder holds (the last, or all).

    Raises:
        UserError: no such folder, or all are wanted and it is no run's folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{folder}: no such checkpoint folder (current directory: {working_directory()}); train a prefix first"
        )
    is_prefix = any((path / name).exists() for name in _PREFIX_FILES)
    found = checkpoints(path) if every or not is_prefix else []
    if every and not found:
        raise UserError(f"--all_checkpoints: no whole checkpoint-N folder in {folder}; name the output folder of a run")
    return found if every else (found[-1:] or [path])


_PREFIX_FILES = ("prefix_config.json", "pytorch_model.bin", "model.safetensors", "adapter_config.json")
_SAVED_NAME = "arguments.json"
_COLUMN_SETTINGS = ("prompt_column", "response_column", "history_column")
_OF_ONE_RUN = (
    "do_train", "do_eval", "do_predict", "overwrite_output_dir", "resume_from_checkpoint",
    "init_from", "token", "all_checkpoints", "overwrite_predictions",
)


def save_arguments(folder: str | Path, arguments: Arguments) -> Path:
    """Write the settings that were named for a run to ``arguments.json`` in its folder, and return the file's path.

    ``ptuning evaluate FOLDER`` reads them again; paths are made absolute for it. Access tokens and what was to be done
    in that run are left out.
    """
    values = {}
    for name, value in arguments.given.items():
        if name in _OF_ONE_RUN or name.endswith("_token"):
            continue
        if name in _PATH_SETTINGS and isinstance(value, str) and (Path(value).exists() or name == "output_dir"):
            value = os.path.abspath(value)
        values[name] = value
    path = Path(folder) / _SAVED_NAME
    with replace_when_whole(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path


_PATH_SETTINGS = {"output_dir"} | {
    f.name for kind in (ModelArguments, DataArguments) for f in dataclasses.fields(kind) if f.metadata.get("path")
}


def _saved_arguments(folder: Path, task: Task) -> dict[str, Any]:
    """The settings saved in a run's folder, or in the folder above a checkpoint; empty where there are none."""
    for place in (folder, folder.resolve().parent):
        if (place / _SAVED_NAME).is_file():
            return _parser(task).parse_file(place / _SAVED_NAME)
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
        check_combinations(model, data, training, arguments.given)
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
