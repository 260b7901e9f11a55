"""What a user can set about the model and the data: names, defaults and limits of every flag.

The names are those of the published ChatGLM-6B P-Tuning scripts, so that their command lines keep working. Settings of
the training loop itself are transformers' own and live in :mod:`ptuning.loops.training_arguments`. ``None`` always
means "the default", and 0 is a value.

A field's metadata holds its ``help`` text, and where it applies ``path`` (the value names a file or a folder),
``aliases`` (further flags with the same meaning) and ``shortcuts`` (flags without a value that stand for one).
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from ptuning.plain.errors import UserError

BUILT_IN_MODEL = "tiny-chatglm"
"""Name of the small backbone that ships inside the package."""


def _setting(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


def _at_least(flag: str, value: int | None, least: int, why: str = "") -> None:
    if value is not None and value < least:
        raise UserError(f"--{flag} {value}: must be {least} or more{why}")


def _one_of(flag: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        names = ", ".join("(not given)" if item is None else str(item) for item in allowed)
        raise UserError(f"--{flag} {value}: allowed are {names}")


@dataclass
class ModelArguments:
    """Which backbone, which prefix, and how both are loaded. Bad values raise :class:`UserError`."""

    model_name_or_path: str | None = _setting(
        None,
        f"Folder or hub name of a ChatGLM-6B model (THUDM/chatglm-6b, THUDM/chatglm-6b-int4, ...), "
        f"or {BUILT_IN_MODEL} for the small built-in one.",
        path=True,
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
    )
    prefix_projection: bool = _setting(
        False,
        "Train the prefix through a two-layer network. Far more weights while training; rarely better.",
    )
    quantization_bit: Literal[0, 4, 8] | None = _setting(
        None,
        "Quantise the backbone's weights to 4 or 8 bits after loading; 0: never. Not given: as the model folder says. "
        "GPU memory of the 6B model for tuning: about 14 GB in float16, 9 GB with 8, 7 GB with 4.",
    )
    device: str = _setting(
        "auto", "auto (a GPU if there is one, then Apple's, then the CPU), cpu, cuda, cuda:N or mps."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = _setting(
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
        _at_least("pre_seq_len", self.pre_seq_len, 1, " (leave it out to use the base model without a prefix)")
        _one_of("quantization_bit", self.quantization_bit, (None, 0, 4, 8))
        _one_of("dtype", self.dtype, ("auto", "float32", "float16", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UserError(f"--device {self.device}: allowed are auto, cpu, cuda, cuda:N (N = 0, 1, ...) and mps")


@dataclass
class DataArguments:
    """Where the rows lie, which columns count and how long texts may be. Lengths are in tokens."""

    train_file: str | None = _setting(
        None, "Training rows: .json (lines or one array), .jsonl, .csv, .parquet.", path=True
    )
    validation_file: str | None = _setting(
        None, "Rows for the loss and the scores during training (with --do_eval or --eval_strategy).", path=True
    )
    test_file: str | None = _setting(None, "Rows to predict and score (--do_predict).", path=True)
    prompt_column: str | None = _setting(None, "Column of the question (ADGEN: content).")
    response_column: str | None = _setting(None, "Column of the wanted reply (ADGEN: summary).")
    history_column: str | None = _setting(None, "Column of the earlier rounds, [[question, reply], ...], for dialogue.")
    source_prefix: str = _setting("", "Text put in front of every question.")
    max_source_length: int = _setting(
        1024, "Longest prompt; longer ones are cut. Memory and time grow with it (published ADGEN run: 64)."
    )
    max_target_length: int = _setting(
        128, "Longest reply, two end tokens included; longer ones are cut (published ADGEN run: 64)."
    )
    val_max_target_length: int | None = _setting(
        None, "Longest reply in evaluation and prediction (default: max_target_length)."
    )
    pad_to_max_length: bool = _setting(
        False, "Pad every row to the full length instead of the batch's longest row: same loss, slower."
    )
    ignore_pad_token_for_loss: bool = _setting(True, "Leave padding out of the loss.")
    max_train_samples: int | None = _setting(None, "Use only the first N training rows.")
    max_eval_samples: int | None = _setting(None, "Use only the first N validation rows.")
    max_predict_samples: int | None = _setting(None, "Use only the first N test rows.")
    overwrite_cache: bool = _setting(False, "Prepare the rows anew even where prepared ones lie on disk.")
    preprocessing_num_workers: int | None = _setting(None, "Processes that prepare rows (default: this one).")
    num_beams: int | None = _setting(None, "Beams when predicting (default 1).")
    generation: Literal["greedy", "published"] = _setting(
        "greedy",
        "How replies are drawn when predicting. greedy: the likeliest token, the same result every time. published: "
        "sampling with top_p 0.7 and temperature 0.95, as the published evaluation does.",
        shortcuts={"greedy": "greedy", "sampling": "published"},
    )
    compare_base: bool = _setting(
        False, "Predict the test rows with the base model as well, and show both scores side by side."
    )
    legacy_first_round: bool = _setting(
        False, "Wrap a first round as [Round 0] once a history column is set, as the published trainer did."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the flag; fill in val_max_target_length."""
        _at_least("max_source_length", self.max_source_length, 2, " (one token of text and [gMASK])")
        _at_least("max_target_length", self.max_target_length, 3, " (one token of text and two that end it)")
        _at_least("val_max_target_length", self.val_max_target_length, 3)
        for name in ("train", "eval", "predict"):
            _at_least(f"max_{name}_samples", getattr(self, f"max_{name}_samples"), 1, " (leave it out to use all rows)")
        _at_least("preprocessing_num_workers", self.preprocessing_num_workers, 1)
        _at_least("num_beams", self.num_beams, 1)
        _one_of("generation", self.generation, ("greedy", "published"))
        if self.val_max_target_length is None:
            self.val_max_target_length = self.max_target_length
