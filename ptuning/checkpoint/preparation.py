"""From settings to what a run loads: tokenizer and model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptuning.checkpoint.adapter import read_adapter
from ptuning.checkpoint.hub import resolve_folder
from ptuning.checkpoint.load import load_answering_model, load_model, load_tokenizer
from ptuning.checkpoint.weights import read_config
from ptuning.core.errors import UserError
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.model.config import ChatGLMConfig
from ptuning.settings.arguments import ModelArguments

if TYPE_CHECKING:
    from ptuning.methods.method import TuningMethod
    from ptuning.model.answering import AnsweringModel
    from ptuning.model.network import ChatGLMForConditionalGeneration

def base_model_name(model: ModelArguments) -> str:
    """The backbone to load: the flag, or what the prefix checkpoint says of itself.

    Raises:
        UserError: neither tells.
    """
    if model.model_name_or_path is not None:
        return model.model_name_or_path
    base = read_adapter(model.ptuning_checkpoint).settings.get("base_model") if model.ptuning_checkpoint else None
    if not base:
        raise UserError(
            f"--model_name_or_path is missing, and {model.ptuning_checkpoint} does not say which base model it belongs to"
        )
    return str(base)


def model_config(model: ModelArguments) -> ChatGLMConfig:
    """The configuration of the backbone to load; nothing else of it is read."""
    folder = resolve_folder(
        base_model_name(model),
        weights=False,
        revision=model.model_revision,
        cache_dir=model.cache_dir,
        token=model.token,
        local_files_only=model.local_files_only,
    )
    return read_config(folder)


def prepare_tokenizer(model: ModelArguments) -> ChatGLMTokenizer:
    """The tokenizer of a run."""
    return load_tokenizer(
        model.tokenizer_name or base_model_name(model),
        revision=model.model_revision,
        cache_dir=model.cache_dir,
        token=model.token,
        local_files_only=model.local_files_only,
    )


def prepare_model(model: ModelArguments, *, new: TuningMethod | None = None) -> ChatGLMForConditionalGeneration:
    """The model of a run, with what ``--ptuning_checkpoint`` holds.

    Args:
        model: which, and how it is loaded.
        new: what training attaches freshly where no checkpoint is given; otherwise ``--pre_seq_len`` is only held against
            the checkpoint.
    """
    with_prefix = new is not None or model.ptuning_checkpoint is not None
    loaded = load_model(
        **_loading(model),
        ptuning_checkpoint=model.ptuning_checkpoint,
        pre_seq_len=model.pre_seq_len if with_prefix else None,
        # False is also what a flag says that nobody gave: only True can contradict a checkpoint.
        prefix_projection=(model.prefix_projection or None) if with_prefix else None,
    )
    if new is not None and model.ptuning_checkpoint is None:
        new.attach_new(loaded, model)
    elif new is not None and not new.is_active(loaded):
        raise UserError(f"{model.ptuning_checkpoint} does not hold {new.words.one}, which is what this run trains")
    return loaded


def prepare_answering_model(model: ModelArguments) -> AnsweringModel:
    """The base model for an engine alone, which reads prefixes by itself; it loads no more than that needs."""
    return load_answering_model(**_loading(model))


def _loading(model: ModelArguments) -> dict[str, Any]:
    """Keywords of both ways to load: which model, and how."""
    return {
        "path": base_model_name(model),
        "quantization_bit": model.quantization_bit,
        "device": model.device,
        "dtype": model.dtype,
        "revision": model.model_revision,
        "cache_dir": model.cache_dir,
        "token": model.token,
        "local_files_only": model.local_files_only,
    }
