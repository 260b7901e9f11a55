"""From settings to what a run works on: tokenizer, rows, examples, model. Rows are checked before the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ptuning.blocks.tokenizer import ChatGLMTokenizer
from ptuning.plain.arguments import DataArguments, ModelArguments
from ptuning.plain.errors import UserError
from ptuning.tuned.load import load_model, load_tokenizer
from ptuning.tuned.model import ChatGLMForConditionalGeneration
from ptuning.tuned.prefix_checkpoint import read_prefix
from ptuning.tuned.preprocess import Example, training_example
from ptuning.tuned.rows import Row, read_rows

logger = logging.getLogger(__name__)


def base_model_name(model: ModelArguments) -> str:
    """The backbone to load: the flag, or what the prefix checkpoint says of itself.

    Raises:
        UserError: neither tells.
    """
    if model.model_name_or_path is not None:
        return model.model_name_or_path
    base = read_prefix(model.ptuning_checkpoint).settings.get("base_model") if model.ptuning_checkpoint else None
    if not base:
        raise UserError(
            f"--model_name_or_path is missing, and {model.ptuning_checkpoint} does not say which base model it belongs to"
        )
    return str(base)


def prepare_tokenizer(model: ModelArguments) -> ChatGLMTokenizer:
    """The tokenizer of a run."""
    return load_tokenizer(
        model.tokenizer_name or base_model_name(model),
        revision=model.model_revision,
        cache_dir=model.cache_dir,
        token=model.token,
        local_files_only=model.local_files_only,
    )


def prepare_model(model: ModelArguments, *, new_prefix: bool = False) -> ChatGLMForConditionalGeneration:
    """The model of a run, with the prefix of ``--ptuning_checkpoint``.

    Args:
        model: which, and how it is loaded.
        new_prefix: make a new prefix of ``--pre_seq_len`` where no checkpoint is given (training); otherwise the flag is
            only held against the checkpoint.
    """
    with_prefix = new_prefix or model.ptuning_checkpoint is not None
    return load_model(
        base_model_name(model),
        ptuning_checkpoint=model.ptuning_checkpoint,
        quantization_bit=model.quantization_bit,
        device=model.device,
        dtype=model.dtype,
        pre_seq_len=model.pre_seq_len if with_prefix else None,
        # False is also what a flag says that nobody gave: only True can contradict a checkpoint.
        prefix_projection=(model.prefix_projection or None) if with_prefix else None,
        revision=model.model_revision,
        cache_dir=model.cache_dir,
        token=model.token,
        local_files_only=model.local_files_only,
    )


def prepare_rows(path: str, data: DataArguments, max_samples: int | None) -> list[Row]:
    """The rows of one file by the columns of the settings."""
    return read_rows(
        path,
        prompt_column=data.prompt_column or "",
        response_column=data.response_column,
        history_column=data.history_column,
        max_samples=max_samples,
    )


def prepare_examples(tokenizer: ChatGLMTokenizer, rows: Sequence[Row], data: DataArguments, name: str) -> list[Example]:
    """Training examples of rows, in their order; several processes make them where the settings ask for it."""
    make = partial(
        training_example,
        tokenizer,
        max_source_length=data.max_source_length,
        max_target_length=data.max_target_length,
        source_prefix=data.source_prefix,
        legacy=data.legacy_first_round,
    )
    workers = min(data.preprocessing_num_workers or 1, len(rows))
    examples = _in_processes(make, rows, workers, name) if workers > 1 else [make(row) for row in rows]
    _report_lengths(examples, data, name)
    _show_first(tokenizer, examples)
    return examples


def _in_processes(make: Callable[[Row], Example], rows: Sequence[Row], workers: int, name: str) -> list[Example]:
    """The same in several processes, with a progress bar."""
    from datasets import Dataset

    table = Dataset.from_dict({"row": list(range(len(rows)))})
    done = table.map(
        lambda record: asdict(make(rows[record["row"]])),
        num_proc=workers,
        remove_columns=["row"],
        load_from_cache_file=False,
        desc=f"Running tokenizer on {name}",
    )
    return [Example(**record) for record in done]


def _report_lengths(examples: Sequence[Example], data: DataArguments, name: str) -> None:
    """One line on lengths, and on how many texts met their limit."""
    sources, targets = [], []
    for example in examples:
        target = sum(label >= 0 for label in example.labels)
        targets.append(target)
        sources.append(len(example.input_ids) - target + 1)
    cut_sources = sum(length > data.max_source_length for length in sources)
    cut_targets = sum(length >= data.max_target_length for length in targets)
    logger.info(
        "%s: %d rows; prompt tokens %s, %d at the limit of %d; reply tokens %s, %d at the limit of %d",
        name, len(examples), _spread(sources), cut_sources, data.max_source_length,
        _spread(targets), cut_targets, data.max_target_length,
    )


def _spread(lengths: list[int]) -> str:
    ordered = sorted(lengths)
    return f"p50 {ordered[len(ordered) // 2]}, p95 {ordered[int(0.95 * (len(ordered) - 1))]}, longest {ordered[-1]}"


def _show_first(tokenizer: Any, examples: Sequence[Example]) -> None:
    """The first example as the model sees it, as the published trainer prints it (at log level info)."""
    first = examples[0]
    learnt = [label for label in first.labels if label >= 0]
    for name, value in (
        ("input_ids", first.input_ids),
        ("inputs", tokenizer.decode(first.input_ids)),
        ("label_ids", first.labels),
        ("labels", tokenizer.decode(learnt)),
    ):
        logger.info("%s %s", name, value)
