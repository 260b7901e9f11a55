"""The settings of a training or evaluation run: transformers' own, with what the published scripts still need."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import Seq2SeqTrainingArguments

from ptuning.core.atomic import replace_when_whole
from ptuning.core.choices import DEFAULT_METHOD, MethodName, PrefixForm
from ptuning.settings.arguments import DataArguments, ModelArguments
from ptuning.settings.run_checks import check_training_values, clear_errors
from ptuning.settings.setting_limits import Limits
from ptuning.settings.training_fields import LIMITS

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
    prefix_format: PrefixForm = field(
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
            "To resume a run that was stopped: --resume_from_checkpoint auto.",
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
        if (self.bf16 or self.bf16_full_eval) and not _has_accelerator():
            self.use_cpu = True  # transformers wants to be told so before it lets a CPU do bfloat16
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        with clear_errors("the settings of the run", {name: value for name, value in values.items() if value}):
            super().__post_init__()


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


@dataclass(frozen=True)
class Arguments:
    """All settings of a run. Unpacks as ``model, data, training = arguments``.

    Attributes:
        given: the settings that were named, by the settings file or a flag; all others are defaults.
        config_file: the settings file, if one was named.
        checkpoints: prefixes to evaluate one after another; the first is also the ``ptuning_checkpoint``. Empty where none
            or one was named.
        method: how a training run tunes.
    """

    model: ModelArguments
    data: DataArguments
    training: TuningArguments
    given: dict[str, Any]
    config_file: Path | None = None
    checkpoints: tuple[Path, ...] = ()
    method: MethodName = DEFAULT_METHOD

    def __iter__(self) -> Iterator[Any]:
        """Yield the three groups in their order."""
        return iter((self.model, self.data, self.training))


SAVED_NAME = "arguments.json"
"""File in a run's folder that keeps the settings that were named for it."""

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
    path = Path(folder) / SAVED_NAME
    with replace_when_whole(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path


_PATH_SETTINGS = {"output_dir"} | {
    f.name for kind in (ModelArguments, DataArguments) for f in dataclasses.fields(kind) if f.metadata.get("path")
}
