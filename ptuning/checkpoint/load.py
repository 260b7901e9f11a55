"""``load_model`` and ``load_tokenizer``: from a name to something that answers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ptuning.checkpoint.adapter import attach_adapter, is_adapter_folder, read_adapter
from ptuning.checkpoint.hub import EMBEDDED_MODEL, resolve_folder
from ptuning.checkpoint.placement import free_bytes, parse_dtype, pick_device
from ptuning.checkpoint.weight_files import read_json, refuse_pointer
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
from ptuning.model.sizes import ModelSizes, PrefixSizes, prefix_numbers, size_text

if TYPE_CHECKING:
    from ptuning.model.answering import AnsweringModel, PrefixedModel
    from ptuning.model.network import ChatGLMForConditionalGeneration

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "ice_text.model"
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
    file = folder / TOKENIZER_FILE
    if not is_regular(file):
        raise UserError(f"{file} is missing; the tokenizer of ChatGLM-6B is one SentencePiece file of that name")
    refuse_pointer(file)
    config = read_config(folder) if is_regular(folder / "config.json") else None
    for name in _TOKENIZER_SETTINGS:
        if is_regular(folder / name):
            read_json(folder / name)
    tokenizer = ChatGLMTokenizer.from_pretrained(str(folder))
    if config is not None:
        check_vocabulary(tokenizer, config, folder)
    return tokenizer


def check_vocabulary(tokenizer: ChatGLMTokenizer, config: ChatGLMConfig, where: Path | str) -> None:
    """Refuse a tokenizer and a model of different releases.

    Raises:
        UserError: with the ids and sizes of both.
    """
    pairs = (
        ("<sop>", tokenizer.bos_token_id, config.bos_token_id),
        ("<eop>", tokenizer.eos_token_id, config.eos_token_id),
        ("[gMASK]", tokenizer.gmask_token_id, config.gmask_token_id),
    )
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
    path: str | os.PathLike[str],
    *,
    ptuning_checkpoint: str | os.PathLike[str] | None = None,
    quantization_bit: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> ChatGLMForConditionalGeneration:
    """Load a ChatGLM-6B model, with a prefix where one is given.

    Args:
        path: folder or hub name of the model, ``tiny-chatglm``, or a prefix checkpoint that names its base model.
        ptuning_checkpoint: prefix checkpoint: ours, the published ``pytorch_model.bin``, or a PEFT adapter folder.
        quantization_bit: 4 or 8 quantises float weights while they are read; None or 0 keeps what the checkpoint holds.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps``; None or ``auto`` takes the best there is.
        dtype: ``float32``, ``float16``, ``bfloat16``; None or ``auto`` is the checkpoint's own. On a CPU, where float16
            products are an order slower, float16 becomes float32, or bfloat16 for a quantised model where that is
            faster (see :func:`cpu_dtype`).
        pre_seq_len: without a checkpoint, a new prefix of so many tokens, to be trained; with one, held against the file.
        prefix_projection: likewise.
        revision: branch, tag or commit on the hub; ``cache_dir``, ``token`` and ``local_files_only`` as transformers'.

    Returns:
        the model in eval mode; only its prefix (if any) is trainable.

    Raises:
        UserError: one clear message for every folder, file or flag that does not fit, before weights are read.
    """
    from ptuning.model.network import ChatGLMForConditionalGeneration

    return _load(  # type: ignore[no-any-return]
        ChatGLMForConditionalGeneration, path, ptuning_checkpoint, quantization_bit, device, dtype, pre_seq_len,
        prefix_projection,
        {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only},
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
    adapter = None
    if ptuning_checkpoint is not None:
        adapter = read_adapter(ptuning_checkpoint, pre_seq_len=pre_seq_len, prefix_projection=prefix_projection)
    small = resolve_folder(path, weights=False, **hub)  # checked before 13 GB are fetched
    config = read_config(small)
    if is_regular(small / TOKENIZER_FILE):
        load_tokenizer(small)
    if adapter is not None:
        adapter.check_model(config)  # before any weight is read
    place, wanted = pick_device(device), parse_dtype(dtype)
    if adapter is None and pre_seq_len is not None:
        _ask_for_new_prefix(config, pre_seq_len, prefix_projection, place)
    if place.type == "cpu":
        wanted = _settle_on_cpu(config, config.quantization_bit or quantization_bit, wanted)
    model = from_pretrained(
        kind, path, config=config, quantization_bit=quantization_bit, device=place, dtype=wanted, **hub
    )
    _settle_loaded(model, path)
    if adapter is not None:
        attach_adapter(model, adapter)
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
    """A tuned folder given as the model stands for its base model plus itself."""
    folder = expanded(path)
    if not os.path.isdir(folder) or not is_adapter_folder(folder):
        return path, ptuning_checkpoint
    adapter = read_adapter(folder)
    base, words = adapter.settings.get("base_model"), adapter.method.words
    if ptuning_checkpoint is None and base:
        if ("/" not in base or os.path.isabs(base)) and base != EMBEDDED_MODEL and not os.path.isdir(base):
            raise UserError(
                f"{path} holds {words.one} for the model {shortened(base)}, which is not there (working directory "
                f"{working_directory()}): give its base model as --model_name_or_path and this folder as "
                "--ptuning_checkpoint"
            )
        return base, folder
    tokens = f" ({adapter.slots} tokens)" if adapter.slots else ""
    raise UserError(
        f"{path} holds {words.one}{tokens}, not a whole model: give the base model as "
        f"--model_name_or_path and this folder as --ptuning_checkpoint"
    )
