"""``load_model`` and ``load_tokenizer``: from a name to a model, of whatever class the caller gives, and its tokenizer."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ptuning.checkpoint.hub import EMBEDDED_MODEL, resolve_folder
from ptuning.checkpoint.placement import free_bytes, parse_dtype, pick_device
from ptuning.checkpoint.prefix_checkpoint import PrefixCheckpoint, is_prefix_folder, read_prefix
from ptuning.checkpoint.weight_files import read_json, read_small_file
from ptuning.checkpoint.weights import from_pretrained, read_config
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import expanded, is_regular, shortened
from ptuning.data.tokenizer import ChatGLMTokenizer
from ptuning.data.tokenizer_settings import ADDED_FILE, CONFIG_FILE, SPECIAL_FILE
from ptuning.kernels.allocator import return_freed_memory
from ptuning.kernels.dispatch import best_cpu_dtype
from ptuning.kernels.dispatch import settings as kernel_settings
from ptuning.kernels.onednn import prefer_onednn_products
from ptuning.model.config import ChatGLMConfig
from ptuning.model.families import family_of
from ptuning.model.sizes import ModelSizes, PrefixSizes, prefix_numbers, size_text

if TYPE_CHECKING:
    from ptuning.model.answering import AnsweringModel, PrefixedModel

Model = TypeVar("Model", bound="PrefixedModel")
logger = logging.getLogger(__name__)

_TOKENIZER_SETTINGS = (CONFIG_FILE, SPECIAL_FILE, ADDED_FILE)


def load_tokenizer(path: str | os.PathLike[str], **hub: Any) -> ChatGLMTokenizer:
    """Load the tokenizer of a model folder.

    Args:
        path: folder, hub name, or ``tiny-chatglm``.
        hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``.

    Raises:
        UserError: a missing or damaged ``ice_text.model``, or one of another vocabulary than ``config.json``.
    """
    folder = resolve_folder(path, weights=False, **hub)
    config = read_config(folder) if is_regular(folder / "config.json") else None
    family = family_of({} if config is None else config)
    file = folder / family.tokenizer_file
    if not is_regular(file):
        raise UserError(f"{file} is missing; the tokenizer of ChatGLM-6B is one SentencePiece file of that name")
    read_small_file(file)
    for name in _TOKENIZER_SETTINGS:
        if is_regular(folder / name):
            read_json(folder / name)
    tokenizer: ChatGLMTokenizer = family.tokenizer.from_pretrained(str(folder))
    tokenizer.prompt_form = family.prompt_form
    if config is not None:
        check_vocabulary(tokenizer, config, folder)
    return tokenizer


def check_vocabulary(tokenizer: ChatGLMTokenizer, config: ChatGLMConfig, where: Path | str) -> None:
    """Refuse a tokenizer and a model of different releases.

    Raises:
        UserError: with the ids and sizes of both.
    """
    special_ids = family_of(config).special_ids.items()
    pairs = [(name, getattr(tokenizer, key), getattr(config, key)) for name, key in special_ids]
    wrong = [f"{name} is {mine} in the tokenizer and {its} in config.json" for name, mine, its in pairs if mine != its]
    if wrong or len(tokenizer) > config.vocab_size:
        raise UserError(
            f"tokenizer and model in {where} are of different releases: {'; '.join(wrong) or 'sizes differ'}; the tokenizer "
            f"has {len(tokenizer)} pieces{_release(len(tokenizer))}, the model {config.vocab_size} "
            f"rows{_release(config.vocab_size)}. Take ice_text.model, tokenizer_config.json and the weights from one release"
        )


def _release(size: int) -> str:
    if size > 150000:
        return " (the first release, with 20000 image tokens)"
    return " (the release without image tokens)" if size > 130000 else ""


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
    return _load(  # type: ignore[no-any-return]
        kind, path, ptuning_checkpoint, quantization_bit, device, dtype, pre_seq_len, prefix_projection, hub
    )


def load_answering_model(
    path: str | os.PathLike[str],
    *,
    ptuning_checkpoint: str | os.PathLike[str] | None = None,
    quantization_bit: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **hub: Any,
) -> AnsweringModel:
    """Load a model for the engine alone, without importing transformers' ``PreTrainedModel``.

    Arguments and errors are those of :func:`load_model`; ``hub`` takes ``revision``, ``cache_dir``, ``token`` and
    ``local_files_only``.

    Returns:
        the model in eval mode, with the same weights and the same numbers as the whole model.
    """
    from ptuning.model.answering import AnsweringModel

    return _load(  # type: ignore[no-any-return]
        AnsweringModel, path, ptuning_checkpoint, quantization_bit, device, dtype, None, None, hub
    )


def _load(
    kind: type[PrefixedModel],
    path: Any,
    ptuning_checkpoint: Any,
    quantization_bit: int | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    pre_seq_len: int | None,
    prefix_projection: bool | None,
    hub: dict[str, Any],
) -> Any:
    """What :func:`load_model` says, for one kind of model."""
    path, ptuning_checkpoint = _base_of(path, ptuning_checkpoint)
    prefix = None
    if ptuning_checkpoint is not None:
        prefix = read_prefix(ptuning_checkpoint, pre_seq_len=pre_seq_len, prefix_projection=prefix_projection)
    small = resolve_folder(path, weights=False, **hub)  # checked before 13 GB are fetched
    config = read_config(small)
    if is_regular(small / family_of(config).tokenizer_file):
        load_tokenizer(small)
    if prefix is not None:
        prefix.encoder(config)  # refuses a prefix of another model before any weight is read
    place, wanted = pick_device(device), parse_dtype(dtype)
    if prefix is None and pre_seq_len is not None:
        _ask_for_new_prefix(config, pre_seq_len, prefix_projection, place)
    if place.type == "cpu":
        wanted = _settle_on_cpu(config, config.quantization_bit or quantization_bit, wanted)
    model = from_pretrained(
        kind, path, config=config, quantization_bit=quantization_bit, device=place, dtype=wanted, **hub
    )
    _settle_loaded(model, path)
    if prefix is not None:
        attach_checkpoint(model, prefix)
    return model


def _ask_for_new_prefix(
    config: ChatGLMConfig, pre_seq_len: int, prefix_projection: bool | None, place: torch.device
) -> None:
    if isinstance(pre_seq_len, bool) or not isinstance(pre_seq_len, int) or pre_seq_len < 1:
        raise UserError(f"pre_seq_len {pre_seq_len} was given; allowed is 1 or more (leave it out for no prefix)")
    sizes = ModelSizes.from_config(config.to_dict())
    _, trained = prefix_numbers(sizes, PrefixSizes(pre_seq_len, bool(prefix_projection)))
    needed, free = _BYTES_OF_TRAINED * trained, free_bytes(place)
    if free is not None and needed > max(free, _ALWAYS_TRIED):
        raise UserError(
            f"--pre_seq_len {pre_seq_len}: the prefix alone would take {size_text(needed)} while it is trained, and "
            f"{size_text(free)} are free; usual are 8 to 256"
        )
    config.pre_seq_len, config.prefix_projection = pre_seq_len, bool(prefix_projection)


_BYTES_OF_TRAINED = 16  # a number, its gradient and the optimiser's two moments, in float32
_ALWAYS_TRIED = 2**30  # bytes; what is free is a guess, and smaller prefixes are rarely what makes the difference


def _settle_on_cpu(config: ChatGLMConfig, bits: int | None, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype to load in; a lean quantised model also has freed memory given back."""
    if bits and kernel_settings().memory == "lean":
        return_freed_memory()
    return cpu_dtype(config, bits) if dtype is None else dtype


def _settle_loaded(model: Any, path: Any) -> None:
    """Its name, and on a CPU where its products are made."""
    model.name_or_path = model.config.name_or_path = os.fspath(path)
    if model.device.type == "cpu" and model.dtype == torch.float32:
        prefer_onednn_products()


def cpu_dtype(config: ChatGLMConfig, quantization_bit: int | None = None) -> torch.dtype | None:
    """The dtype that a CPU should use when nobody chose one; None is the checkpoint's own.

    In place of float16 a float model gets float32, and a quantised one what its kernels are best with on this CPU, see
    :func:`ptuning.kernels.dispatch.best_cpu_dtype`.
    """
    if config.dtype not in (torch.float16, "float16", None):
        return None
    return best_cpu_dtype() if quantization_bit else torch.float32


def _base_of(path: Any, ptuning_checkpoint: Any) -> tuple[Any, Any]:
    """A prefix folder given as the model stands for its base model plus itself."""
    folder = expanded(path)
    if not os.path.isdir(folder) or not is_prefix_folder(folder):
        return path, ptuning_checkpoint
    prefix = read_prefix(folder)
    base = prefix.settings.get("base_model")
    if ptuning_checkpoint is None and base:
        if ("/" not in base or os.path.isabs(base)) and base != EMBEDDED_MODEL and not os.path.isdir(base):
            raise UserError(
                f"{path} holds a prefix for the model {shortened(base)}, which is not there (working directory "
                f"{working_directory()}): give its base model as --model_name_or_path and this folder as "
                "--ptuning_checkpoint"
            )
        return base, folder
    raise UserError(
        f"{path} holds a prefix ({prefix.pre_seq_len} tokens), not a whole model: give the base model as "
        f"--model_name_or_path and this folder as --ptuning_checkpoint"
    )


def attach_checkpoint(model: PrefixedModel, prefix: PrefixCheckpoint) -> None:
    """Put the prefix of a checkpoint on a loaded model, in place of an earlier one.

    Raises:
        UserError: a prefix for a model of other sizes.
    """
    stated = prefix.settings.get("base_fingerprint")
    if stated and model.base_fingerprint and stated != model.base_fingerprint:
        logger.warning(
            "the prefix in %s was trained on other weights of the same size (%s, fingerprint %s) than %s (fingerprint %s): "
            "its answers may be poor",
            prefix.path, prefix.settings.get("base_model"), stated, model.config.name_or_path, model.base_fingerprint,
        )
    model.attach_prefix(prefix.encoder(model.config))
    model.prompt_settings = prefix.prompt_settings
    logger.info(
        "Loading prefix_encoder weight from %s: %d tokens, %d layers%s",
        prefix.path, prefix.pre_seq_len, model.config.num_layers, ", projection" if prefix.projection else "",
    )


