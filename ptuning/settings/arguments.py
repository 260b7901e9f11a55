"""What a user can set about the model and the data: names, defaults and limits of every flag.

The names are those of the published ChatGLM-6B P-Tuning scripts, so that their command lines keep working. Settings of
the training loop itself are transformers' own and live in :mod:`ptuning.settings.training_arguments`. ``None`` always
means "the default", and 0 is a value.

A field's metadata holds its ``help`` text, and where it applies ``path`` (the value names a file or a folder),
``aliases`` (further flags with the same meaning), ``shown_as`` (the one of them that help shows first), ``shortcuts``
(flags without a value that stand for one) and the limits of its value (see :mod:`ptuning.settings.setting_limits`).
"""

# ruff: noqa: RUF009  # _setting makes the field itself

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ptuning.core.characters import check_encoding, shown
from ptuning.core.choices import (
    FORMATS_WITH_COLUMNS_OF_THEIR_OWN,
    DtypeChoice,
    GenerationName,
    LossOn,
    QuantizationBits,
    RowFormat,
    TruncatedReplies,
    Truncation,
)
from ptuning.core.errors import UserError
from ptuning.settings.answer_limits import MAX_TOKENS, SAMPLING, Bounds, checked
from ptuning.settings.setting_limits import Limits, check_fields

BUILT_IN_MODEL = "tiny-chatglm"
"""Name of the small backbone that ships inside the package."""

MAX_PROCESSES = 256
"""Processes that one setting may ask for."""

_MAX_BEAMS = 256
_ALL_ROWS = " (leave it out to use all rows)"


def _setting(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


def _at_least(flag: str, value: int | None, minimum: int) -> None:
    if value is not None and value < minimum:
        raise UserError(f"--{flag} {value}: must be {minimum} or more")


@dataclass
class ModelArguments:
    """Which backbone, which prefix, and how both are loaded. Bad values raise :class:`UserError`."""

    model_name_or_path: str | None = _setting(
        None,
        f"Folder or hub name of a ChatGLM-6B model (THUDM/chatglm-6b, THUDM/chatglm-6b-int4, ...), "
        f"or {BUILT_IN_MODEL} for the small built-in one.",
        path=True,
        aliases=("model",),
    )
    ptuning_checkpoint: str | None = _setting(
        None,
        "Folder of a trained prefix (checkpoint-N of this tool, of the published trainer, or of PEFT). Its length and "
        "form are read from it.",
        path=True,
    )
    pre_seq_len: int | None = _setting(
        None,
        "Length of the prefix in virtual tokens (published: 128). It is not the length of your text. More slots learn "
        "more and cost more memory; with --ptuning_checkpoint it is read from the checkpoint.",
        min=1,
        why=" (leave it out to use the base model without a prefix)",
    )
    prefix_projection: bool = _setting(
        False,
        "Train the prefix through a two-layer network. Far more weights while training; rarely better.",
    )
    quantization_bit: QuantizationBits | None = _setting(
        None,
        "Quantise the backbone's weights to 4 or 8 bits after loading; 0: never. Not given: as the model folder says. "
        "GPU memory of the 6B model for tuning: about 14 GB in float16, 9 GB with 8, 7 GB with 4.",
    )
    device: str = _setting(
        "auto", "auto (a GPU if there is one, then Apple's, then the CPU), cpu, cuda, cuda:N or mps."
    )
    dtype: DtypeChoice = _setting(
        "auto",
        "Number format of the frozen weights; auto takes what suits the device. The prefix is always float32.",
        aliases=("torch_dtype",),
    )
    model_revision: str = _setting("main", "Branch, tag or commit of a hub model.", aliases=("revision",))
    cache_dir: str | None = _setting(None, "Where hub downloads are kept (default: the hub's own cache).", path=True)
    token: str | None = _setting(None, "Access token for private hub models (default: the stored login).")
    local_files_only: bool = _setting(False, "Never ask the hub: use only what is on this disk.")
    tokenizer_name: str | None = _setting(
        None, "Folder or hub name of the tokenizer where it is not beside the weights.", path=True
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the flag."""
        check_fields(self)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", self.device):
            raise UserError(f"--device {shown(self.device)}: allowed are auto, cpu, cuda, cuda:N (N = 0, 1, ...) and mps")


@dataclass
class ServingArguments(ModelArguments):
    """The same where one backbone answers with any number of prefixes, each by its name."""

    ptuning_checkpoint: list[str] | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Prefixes to answer with: NAME=PATH, a checkpoint folder (its name is the folder's), or a folder of "
            "checkpoints. May be given again and again; the first is the default, the base model is always there as well.",
            "path": True,
            "repeat": True,
        },
    )


@dataclass
class DataArguments:
    """Where the rows lie, which columns count and how long texts may be. Lengths are in tokens."""

    train_file: str | None = _setting(
        None, "Training rows: .json (lines or one array), .jsonl, .csv, .tsv, .parquet.", path=True
    )
    validation_file: str | None = _setting(
        None, "Rows for the loss and the scores during training (with --do_eval or --eval_strategy).", path=True
    )
    test_file: str | None = _setting(None, "Rows to predict and score (--do_predict).", path=True)
    mix_file: str | None = _setting(
        None,
        "FILE:SHARE, for example general.json:0.2: rows of another file, in any form, mixed in so that they make up this "
        "share of the training rows (against forgetting).",
    )
    row_format: RowFormat = _setting(
        "auto",
        "Form of the rows. auto: the columns that are named, else by the keys: alpaca (instruction, input, output), "
        "sharegpt (conversations), OpenAI's messages, content/summary, prompt/response.",
    )
    encoding: str | None = _setting(None, "Encoding of the row files (gbk, utf-16, ...). Not given: UTF-8.")
    prompt_column: str | None = _setting(
        None, "Column of the question (ADGEN: content). Not given: the form of the rows is found by their keys.", free=True
    )
    response_column: str | None = _setting(None, "Column of the reply (ADGEN: summary).", free=True)
    history_column: str | None = _setting(
        None, "Column of the earlier rounds, [[question, reply], ...], for dialogue.", free=True
    )
    source_prefix: str = _setting("", "Text put in front of every question.", free=True)
    max_source_length: int = _setting(
        1024, "Longest prompt; of longer ones see --truncation. Memory and time grow with it (published ADGEN run: 64).",
        min=2,
        why=" (one token of text and [gMASK])",
    )
    max_target_length: int = _setting(
        128, "Longest reply, two end tokens included; of longer ones see --truncated_replies (published ADGEN run: 64).",
        min=3,
        why=" (one token of text and two that end it)",
    )
    truncation: Truncation = _setting(
        "smart",
        "What goes where a prompt is too long. smart: the oldest rounds, then the middle of the text, never the end of "
        "the question or the cue of the reply. published: the end of the prompt.",
    )
    cut_replies: TruncatedReplies | None = _setting(
        None,
        "Training rows whose reply is too long. open (default): truncated, without an end token, so that stopping there is "
        "not learnt. drop: left out. closed: truncated and ended, as published (default with --truncation published).",
        aliases=("truncated_replies",),
        shown_as="truncated_replies",
    )
    loss_on: LossOn = _setting(
        "last",
        "Replies of a dialogue that are learnt. all: every round becomes a training example with the rounds before it.",
    )
    val_max_target_length: int | None = _setting(
        None, "Longest reply in evaluation and prediction (default: max_target_length).", min=3
    )
    pad_to_max_length: bool = _setting(
        False, "Pad every row to the full length instead of the batch's longest row: same loss, slower."
    )
    ignore_pad_token_for_loss: bool = _setting(True, "Leave padding out of the loss.")
    max_train_samples: int | None = _setting(None, "Use only the first N training rows.", min=1, why=_ALL_ROWS)
    max_eval_samples: int | None = _setting(None, "Use only the first N validation rows.", min=1, why=_ALL_ROWS)
    max_predict_samples: int | None = _setting(None, "Use only the first N test rows.", min=1, why=_ALL_ROWS)
    overwrite_cache: bool = _setting(False, "Prepare the rows again even where prepared ones are on disk.")
    preprocessing_num_workers: int | None = _setting(
        None, "Processes that prepare rows (default: several where there are many rows).", min=1, max=MAX_PROCESSES
    )
    num_beams: int | None = _setting(None, "Beams when predicting (default 1).", min=1, max=_MAX_BEAMS)
    generation: GenerationName = _setting(
        "greedy",
        "How replies are drawn when predicting. greedy: the likeliest token, the same result every time. published: "
        "sampling with top_p 0.7 and temperature 0.95, as the published evaluation does.",
        shortcuts={"greedy": "greedy", "sampling": "published"},
    )
    compare_base: bool = _setting(
        False, "Predict the test rows with the base model as well, and show both scores side by side."
    )
    general_file: str | None = _setting(
        None,
        "A second, general set of rows (same columns), predicted with the base model and with the prefix: what tuning made "
        "the model forget.",
        path=True,
    )
    all_checkpoints: bool = _setting(
        False, "Evaluate every checkpoint of the run folder that is named, and show the scores over the steps."
    )
    overwrite_predictions: bool = _setting(
        False, "Predict every row again, even where an earlier run with the same settings left answers to resume from."
    )
    legacy_first_round: bool = _setting(
        False, "Wrap a first round as [Round 0] once a history column is set, as the published trainer did."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the flag; fill in val_max_target_length."""
        check_fields(self)
        if self.encoding is not None:
            check_encoding(self.encoding)
        _ = self.mix
        if self.row_format in FORMATS_WITH_COLUMNS_OF_THEIR_OWN and self.prompt_column is not None:
            raise UserError(
                f"--row_format {self.row_format} and --prompt_column {self.prompt_column} contradict each other: leave one "
                "out (this form has columns of its own)"
            )
        if self.cut_replies is None:
            self.cut_replies = "closed" if self.truncation == "published" else "open"
        if self.val_max_target_length is None:
            self.val_max_target_length = self.max_target_length

    @property
    def mix(self) -> tuple[str, float] | None:
        """File and share of ``mix_file``. Raises :class:`UserError` where it is not FILE:SHARE."""
        if self.mix_file is None:
            return None
        file, _, text = self.mix_file.rpartition(":")
        try:
            share = float(text)
        except ValueError:
            file = ""
        if not file.strip():
            raise UserError(f"--mix_file {shown(self.mix_file)}: write FILE:SHARE, for example general.json:0.2")
        if not 0 < share < 1:
            raise UserError(
                f"--mix_file {shown(self.mix_file)}: the share is {shown(text)}; allowed are numbers between 0 and 1 (0.2: "
                "every fifth training row comes from that file)"
            )
        return file, share


@dataclass
class AnswerArguments:
    """How a chat answers, in the terminal and on the web page; the defaults are those of the published chat."""

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        name: Limits(max=bounds.maximum) for name, bounds in SAMPLING.items() if bounds.whole
    }

    max_length: int = _setting(
        2048, "Limit of prompt (with its history) and answer together, in tokens; what the model can hold is the end of it."
    )
    max_new_tokens: int | None = _setting(None, "Limit of the answer alone, in tokens (default: what is left).")
    top_p: float = _setting(0.7, "Share of the probability that is sampled from.")
    top_k: int = _setting(50, "Sample from so many of the likeliest tokens; 0: from all.")
    temperature: float = _setting(0.95, "Of the sampling; 0 takes the likeliest token each time.")
    do_sample: bool = _setting(
        True, "False answers greedily, as --temperature 0 does.", shortcuts={"greedy": "False"}
    )
    repetition_penalty: float = _setting(1.0, "Above 1, tokens that were used already cost more.")
    no_repeat_ngram_size: int = _setting(0, "No run of so many tokens comes twice; 0: no such rule.")
    seed: int | None = _setting(None, "Of every answer: the same question after the same history has the same answer.")

    def __post_init__(self) -> None:
        """Refuse what no answer can be made with, with the range."""
        for name, bounds in SAMPLING.items():
            if getattr(self, name) is not None or name != "seed":
                checked(name, getattr(self, name), bounds)
        for name, minimum in (("max_length", 2), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None or name == "max_length":
                bounds = Bounds(float("-inf"), MAX_TOKENS, f"{minimum} to {MAX_TOKENS}", whole=True)
                _at_least(name, checked(name, value, bounds), minimum)
        if not isinstance(self.do_sample, bool):
            raise UserError(f"do_sample {shown(self.do_sample)} was given; allowed are true and false")


@dataclass
class RescoringArguments:
    """``ptuning evaluate --metrics-only FILE``: scores of answers that are there. Bad values raise :class:`UserError`."""

    metrics_only: str | None = _setting(
        None,
        "A predictions file to score without any model: generated_predictions.txt or .jsonl of this tool, of the published "
        "trainer or of LLaMA-Factory.",
        path=True,
    )
    output_dir: str | None = _setting(None, "Where predict_results.json and the report go (default: nowhere).", path=True)
