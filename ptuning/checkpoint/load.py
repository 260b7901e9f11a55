"""From an opened checkpoint to a model that answers or is tuned."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ptuning.checkpoint.adapter import attach_adapter
from ptuning.checkpoint.checkpoint import Checkpoint, choose_quantization, open_checkpoint, read_tokenizer
from ptuning.checkpoint.hub import resolve_folder
from ptuning.checkpoint.placement import check_new_prefix, chosen_dtype, pick_device
from ptuning.checkpoint.weights import build
from ptuning.core.errors import UserError
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.kernels.onednn import prefer_onednn_products
from ptuning.settings.arguments import ModelArguments

if TYPE_CHECKING:
    from ptuning.methods.method import TuningMethod
    from ptuning.model.answering import AnsweringModel, PrefixedModel

Model = TypeVar("Model", bound="PrefixedModel")
logger = logging.getLogger(__name__)


# ---- doors ---------------------------------------------------------------------------------------------------------------


def load_tokenizer(path: str | os.PathLike[str], **hub: Any) -> ChatGLMTokenizer:
    """Load the tokenizer of a model folder.

    Args:
        path: folder, hub name, or ``tiny-chatglm``.
        hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``.

    Raises:
        UserError: a missing or damaged ``ice_text.model``, or one of another vocabulary than ``config.json``.
    """
    return read_tokenizer(resolve_folder(path, weights=False, **hub))


def load_model(
    kind: type[Model],
    path: str | os.PathLike[str],
    *,
    ptuning_checkpoint: str | os.PathLike[str] | None = None,
    quantization_bit: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
    **hub: Any,
) -> Model:
    """Load a model of one class, with a prefix where one is given.

    Args:
        kind: class of the model.
        path: and everything else is as in :func:`ptuning.load_model`; ``hub`` takes ``revision``, ``cache_dir``, ``token``
            and ``local_files_only``.

    Returns:
        the model in eval mode; only its prefix (if any) is trainable.

    Raises:
        UserError: one clear message for every folder, file or flag that does not fit, before weights are read.
    """
    opened = open_checkpoint(
        path, ptuning_checkpoint, pre_seq_len=pre_seq_len, prefix_projection=prefix_projection, **hub
    )
    return load(
        kind, opened, quantization_bit=quantization_bit, device=device, dtype=dtype, pre_seq_len=pre_seq_len,
        prefix_projection=prefix_projection,
    )


def prepare_model(
    kind: type[Model], opened: Checkpoint, settings: ModelArguments, *, new: TuningMethod | None = None
) -> Model:
    """The model of a run, with what was opened with it.

    Args:
        kind: class of the model.
        opened: which model.
        settings: how it is loaded.
        new: what training attaches freshly where no checkpoint was opened.

    Raises:
        UserError: a checkpoint of another method than ``new``.
    """
    model = load(
        kind, opened, **_how(settings),
        pre_seq_len=settings.pre_seq_len if new is not None else None, prefix_projection=settings.prefix_projection,
    )  # fmt: skip
    if new is not None and opened.adapter is None:
        new.attach_new(model, settings)
    elif new is not None and not new.is_active(model):
        raise UserError(f"{settings.ptuning_checkpoint} does not hold {new.words.one}, which is what this run trains")
    return model


def prepare_answering_model(opened: Checkpoint, settings: ModelArguments) -> AnsweringModel:
    """The model for an engine alone; it loads no more than that needs."""
    from ptuning.model.answering import AnsweringModel

    return load(AnsweringModel, opened, **_how(settings))


def _how(settings: ModelArguments) -> dict[str, Any]:
    return {"quantization_bit": settings.quantization_bit, "device": settings.device, "dtype": settings.dtype}


# ---- the way down --------------------------------------------------------------------------------------------------------


def load(
    kind: type[Model],
    opened: Checkpoint,
    *,
    quantization_bit: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
) -> Model:
    """Load a model of one kind; what does not fit is refused before weights are fetched or read.

    Args:
        kind: class of the model.
        opened: which model, and its prefix.
        quantization_bit: see :func:`load_model`; likewise ``device`` and ``dtype``.
        pre_seq_len: length of a new prefix, where none was opened.
        prefix_projection: whether that has a projection.
    """
    config, adapter = opened.new_config(), opened.adapter
    place = pick_device(device)
    dtype = chosen_dtype(config, quantization_bit, place, dtype)
    if adapter is not None:
        adapter.check_model(config)
    elif pre_seq_len is not None:
        check_new_prefix(config, pre_seq_len, prefix_projection, place)
        config.pre_seq_len, config.prefix_projection = pre_seq_len, bool(prefix_projection)
    config.quantization_bit = choose_quantization(config.quantization_bit, quantization_bit, opened.folder)
    opened.check_tokenizer()
    files = opened.weights()
    model: Model = build(kind, config, files, name=opened.name, device=place, dtype=dtype)
    if place.type == "cpu" and model.dtype == torch.float32:
        prefer_onednn_products()
    if adapter is not None:
        attach_adapter(model, adapter)
    return model
