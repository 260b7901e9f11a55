"""An evaluation from settings to scores: base and tuned models on the test rows and on a general set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptuning.checkpoint.adapter import attach_adapter, read_adapter
from ptuning.checkpoint.checkpoint import open_named
from ptuning.checkpoint.load import prepare_model
from ptuning.core.choices import DEFAULT_METHOD
from ptuning.core.output_folder import OutputFolder
from ptuning.core.progress import OpenProgress, silent
from ptuning.core.result_files import save_metrics
from ptuning.data.rows import Row
from ptuning.data.run_rows import prepare_other_rows, prepare_rows
from ptuning.evaluation.predictions import Evaluation, evaluate_rows
from ptuning.evaluation.report.report import write_report
from ptuning.evaluation.run_result import RunResult, ScoredModel
from ptuning.methods.method import Adapter
from ptuning.methods.registry import active_method
from ptuning.model.network import ChatGLMNetwork
from ptuning.settings.arguments import DataArguments
from ptuning.settings.output_claim import claimed_output
from ptuning.settings.run_checks import check_against_model, check_before_loading
from ptuning.settings.training_arguments import Arguments

SEVERAL = "evaluation"
"""Folder below the output folder where each of several checkpoints has one of its own."""


@dataclass(frozen=True)
class EvaluationRows:
    """The rows to be answered: the test rows, and a general set (empty for none)."""

    task: Sequence[Row]
    general: Sequence[Row] = ()

    def by_name(self) -> dict[str, Sequence[Row]]:
        """Both under the names that reports give them."""
        return {"test": self.task, "general": self.general}


def prepare_evaluation_rows(data: DataArguments) -> EvaluationRows:
    """The rows of ``--test_file`` and of ``--general_file``, where there is one."""
    test = prepare_rows(data.test_file or "", data, data.max_predict_samples)
    general = prepare_other_rows(data.general_file, data, data.max_predict_samples) if data.general_file else []
    return EvaluationRows(test, general)


def run_evaluation(arguments: Arguments, progress: OpenProgress = silent) -> RunResult:
    """Evaluate a base model, or one or several checkpoints of it, on the test rows.

    The base model is loaded once; for every further checkpoint only what was tuned is exchanged.

    Args:
        arguments: parsed for the task ``evaluate``.
        progress: opens a progress display.

    Raises:
        UserError: settings, rows or checkpoints that do not fit; rows are checked before the model is
            loaded, and all checkpoints before the first is evaluated.
        OutputError: the output folder went away, or cannot be written any more; the same command resumes from there.
    """
    with claimed_output(arguments) as place:
        if place is None:  # the first of several processes answers all rows
            return RunResult(Path(str(arguments.training.output_dir)), None, [])
        return _run(arguments, progress, place)


def _run(arguments: Arguments, progress: OpenProgress, place: OutputFolder) -> RunResult:
    model_settings, data, training = arguments
    check_before_loading(training)
    if model_settings.dtype == "auto" and (training.fp16_full_eval or training.bf16_full_eval):
        model_settings = replace(model_settings, dtype="float16" if training.fp16_full_eval else "bfloat16")
    opened = open_named(model_settings)
    tokenizer = opened.tokenizer
    check_against_model(model_settings, training, arguments.given, opened.config)
    rows = prepare_evaluation_rows(data)
    model = prepare_model(ChatGLMNetwork, opened, model_settings)
    compared = {}
    for path in arguments.checkpoints:  # before hours are spent on the first of them
        is_opened = str(path) == model_settings.ptuning_checkpoint
        adapter = opened.adapter if is_opened and opened.adapter is not None else read_adapter(path)
        compared[path.resolve()] = adapter
        adapter.check_model(model.config)
    folder = Path(str(training.output_dir))
    named = Path(model_settings.ptuning_checkpoint) if model_settings.ptuning_checkpoint else None
    models = evaluate_models(model, tokenizer, rows, arguments, folder, progress, named, place, compared)
    method = active_method(model)
    noun = DEFAULT_METHOD if method is None else method.words.noun
    last = arguments.checkpoints[-1] if arguments.checkpoints else named
    result = RunResult(folder, last, rows.task, models, noun=noun, config=opened.config)
    place.check("at the report")
    write_report(arguments, result, rows.by_name())
    return result


def evaluate_models(
    model: ChatGLMNetwork,
    tokenizer: Any,
    rows: EvaluationRows,
    arguments: Arguments,
    folder: Path,
    progress: OpenProgress = silent,
    checkpoint: Path | None = None,
    place: OutputFolder | None = None,
    compared: Mapping[Path, Adapter] | None = None,
) -> list[ScoredModel]:
    """Score the model as it is, or with each of several checkpoints in turn; the base model first, where settings
    ask for it (``--compare_base``; a general set is always answered by it too).

    Args:
        model: in eval mode, tuned or not.
        tokenizer: of the model.
        rows: the questions.
        arguments: of the run.
        folder: where results go. The base model's go to ``base`` below it, those on the general set to ``general``, those
            of several checkpoints to ``evaluation/NAME``.
        progress: opens a progress display.
        checkpoint: where its tuned part lies.
        place: the claim on the output folder; checked between the models.
        compared: several checkpoints by their folders.
    """
    scorer = _OneModel(model, tokenizer, rows, arguments, progress, place)
    method = active_method(model)
    if method is None:
        return [scorer.score("base model", folder, None, is_base=True)]
    models = []
    if arguments.data.compare_base or rows.general:
        with method.disabled(model):
            models.append(scorer.score("base model", folder / "base", None, is_base=True, task=arguments.data.compare_base))
    adapters = compared or {}
    if not adapters:
        models.append(scorer.score(f"with the {method.words.noun}", folder, checkpoint))
    for name, where in _names(list(adapters)).items():
        attach_adapter(model, adapters[where])
        models.append(scorer.score(name, folder / SEVERAL / name.replace("/", "-"), where))
    return models


@dataclass(frozen=True)
class _OneModel:
    """Scores the model in its present state."""

    model: ChatGLMNetwork
    tokenizer: Any
    rows: EvaluationRows
    arguments: Arguments
    progress: OpenProgress
    place: OutputFolder | None

    def score(
        self, name: str, folder: Path, checkpoint: Path | None, *, is_base: bool = False, task: bool = True
    ) -> ScoredModel:
        done = self._on(self.rows.task, name, folder) if task else None
        general = None
        if self.rows.general:
            general = self._on(self.rows.general, f"{name}, general set", folder / "general")
            save_metrics(folder, "general", general.metrics)
        return ScoredModel(name, folder, checkpoint, is_base, done, general)

    def _on(self, rows: Sequence[Row], title: str, folder: Path) -> Evaluation:
        training = self.arguments.training
        if self.place is not None:
            self.place.check(f"before {title}")
        done = evaluate_rows(
            self.model,
            self.tokenizer,
            rows,
            self.arguments.data,
            batch_size=training.per_device_eval_batch_size,
            seed=training.seed,
            folder=folder,
            start_over=self.arguments.data.overwrite_predictions,
            title=title,
            progress=self.progress,
        )
        if self.place is not None:
            self.place.check(f"after {title}")
        save_metrics(folder, "predict", done.metrics)
        return done


def _names(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """A name for each checkpoint: its folder's, with as much of the path before it as tells them apart."""
    absolute = list(dict.fromkeys(path.resolve() for path in checkpoints))
    for depth in range(1, max((len(path.parts) for path in absolute), default=1) + 1):
        names = ["/".join(path.parts[-depth:]).lstrip("/") for path in absolute]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, absolute, strict=True)) if absolute else {}
