"""From a float checkpoint to a quantised one on disk, tensor by tensor.

The float model never exists as a whole: memory holds one float tensor, its packed form and the output shard that is being
filled. The target appears under its name when it is whole: until then everything lies in a hidden folder beside it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.checkpoint.adapter import is_adapter_folder
from ptuning.checkpoint.checkpoint import read_config
from ptuning.checkpoint.hub import resolve_folder
from ptuning.checkpoint.mapped_tensors import TensorFacts
from ptuning.checkpoint.placement import pick_device
from ptuning.checkpoint.shard_writer import ShardWriter
from ptuning.checkpoint.weight_checks import check_sizes, check_tensors
from ptuning.checkpoint.weight_files import WeightFiles, find_weights, read_json
from ptuning.core.atomic import remove_tree, replace_when_whole, writing
from ptuning.core.choices import PackedBits, WeightForm, allowed, values_of
from ptuning.core.errors import UserError
from ptuning.core.progress import OpenProgress, silent
from ptuning.core.reading import is_regular
from ptuning.model.config import ChatGLMConfig
from ptuning.model.network import ChatGLMNetwork
from ptuning.model.quantization import quantize_weight

logger = logging.getLogger(__name__)

_WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")
_SMALL_FILE = 64 * 2**20


@dataclass(frozen=True)
class QuantizationJob:
    """What is to be made of what.

    Attributes:
        source: folder of the float checkpoint.
        target: folder to be written.
        bits: 4 or 8.
        embeddings: whether ``word_embeddings`` and ``lm_head`` are quantised too.
        form: of the weight files, ``safetensors`` or ``bin``.
        shard_bytes: largest size of one weight file.
        device: where weights are rounded.
        config: of the source.
        files: its weight files.
        facts: what their headers say.
        quantised: names of the weights to quantise.
        packed_bytes: size of the result's tensors.
    """

    source: Path
    target: Path
    bits: int
    embeddings: bool
    form: WeightForm
    shard_bytes: int
    device: torch.device
    config: ChatGLMConfig
    files: WeightFiles
    facts: dict[str, TensorFacts]
    quantised: frozenset[str]
    packed_bytes: int

    @property
    def workplace(self) -> Path:
        """The hidden folder in which the target grows."""
        return self.target.with_name(f".{self.target.name}.unfinished")


@dataclass(frozen=True)
class QuantizedFolder:
    """What was written: the folder, its weight files, the size of its tensors and of the source's, in bytes."""

    folder: Path
    files: tuple[Path, ...]
    total_bytes: int
    source_bytes: int


def plan_quantization(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    bits: int,
    embeddings: bool = False,
    form: WeightForm = "safetensors",
    shard_bytes: int = 10**9,
    overwrite: bool = False,
    calibrated: bool = False,
    device: str | torch.device | None = "cpu",
    **hub: Any,
) -> QuantizationJob:
    """Check everything that can be checked before the first weight is read.

    Args:
        source: folder or hub name of a float ChatGLM-6B checkpoint, or ``tiny-chatglm``.
        target: folder to be written; must not exist, or be empty, unless ``overwrite``.
        bits: 4 or 8.
        embeddings: quantise ``word_embeddings`` and ``lm_head`` too (the INT4-QE form).
        form: ``safetensors`` or ``bin``.
        shard_bytes: largest size of one weight file.
        overwrite: replace a model folder of the target's name.
        calibrated: whether the layers wait on disk until the last one is done, which takes that much more room there.
        device: where weights are rounded; None takes the best there is.
        hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``.

    Raises:
        UserError: a quantised source, damaged or missing files, a target in the way, too little space on the disk.
    """
    if bits not in values_of(PackedBits) or isinstance(bits, bool):
        raise UserError(f"--bits {bits} was given; allowed are {allowed(PackedBits)}")
    if form not in values_of(WeightForm):
        raise UserError(f"--format {form} was given; allowed are {allowed(WeightForm)}")
    place = Path(os.path.abspath(os.path.expanduser(target)))
    small = resolve_folder(source, weights=False, **hub)
    _check_target(place, small, overwrite)
    if is_adapter_folder(small) and not is_regular(small / "config.json"):
        raise UserError(f"{source} holds a prefix, not a whole model: give its base model; a prefix is never quantised")
    config = read_config(small)
    if config.quantization_bit:
        raise UserError(
            f"{source} is quantised to {config.quantization_bit} bits already and cannot be turned into {bits} bits: give "
            "the float checkpoint that it was made from (published: THUDM/chatglm-6b)"
        )
    folder = resolve_folder(source, weights=True, **hub)
    files = find_weights(folder)
    if files is None:
        raise UserError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")
    facts = files.facts()
    check_sizes(config, facts, folder)
    check_tensors(empty_model(config, 0, False), facts, folder)
    packed = empty_model(config, bits, embeddings)
    names = {name for name, _ in packed.named_parameters()}
    quantised = frozenset(name for name in names if f"{name}_scale" in names)
    size = sum(_size_after(name, fact, bits, name in quantised) for name, fact in facts.items())
    _check_space(place, size * (2 if calibrated else 1))
    return QuantizationJob(
        folder, place, bits, embeddings, form, shard_bytes, pick_device(device), config, files, facts, quantised, size
    )


def empty_model(config: ChatGLMConfig, bits: int, embeddings: bool) -> ChatGLMNetwork:
    """The backbone that a configuration describes, at other bits, without its weights."""
    values = config.to_dict() | {"quantization_bit": bits, "quantization_embeddings": embeddings, "pre_seq_len": None}
    with torch.device("meta"):
        return ChatGLMNetwork(ChatGLMConfig.from_dict(values))


def _size_after(name: str, fact: TensorFacts, bits: int, quantised: bool) -> int:
    """Bytes of a tensor in the result, its scale included."""
    elements = math.prod(fact.shape)
    return elements * bits // 8 + 2 * fact.shape[0] if quantised else elements * fact.dtype.itemsize


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Refuse a target that would destroy something that nobody meant."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; name a folder for the quantised model")
    if target == source.resolve() or target.resolve() == source.resolve():
        raise UserError(f"{target} is the source itself; name another folder for the quantised model")
    if source.resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target} holds the source {source}; name another folder for the quantised model")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{target} exists and is not empty: add --overwrite to replace it, or name another folder")
    if not (target / "config.json").is_file():
        raise UserError(f"{target} is no model folder (it has no config.json), so --overwrite will not replace it")


def _check_space(target: Path, size: int) -> None:
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    needed, free = size + _SMALL_FILE // 8, shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"writing {target} needs about {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free there: make room, or name a "
            "folder on another disk"
        )


def quantize_checkpoint(
    job: QuantizationJob,
    progress: OpenProgress = silent,
    *,
    tensors: Iterable[tuple[str, Tensor]] | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> QuantizedFolder:
    """Write the target of a job.

    Args:
        job: from :func:`plan_quantization`.
        progress: opens a progress display.
        tensors: (name, tensor) of the result, made elsewhere; None rounds every weight to the nearest step.
        extra_files: texts by file name, to be put beside the weights.

    Raises:
        UserError: a weight with NaN or infinity, a damaged file.
        OutputError: a file cannot be written; nothing of the target stays.
    """
    work = job.workplace
    remove_tree(work)  # what a run left that was killed
    try:
        with writing(work):
            work.mkdir(parents=True)
        writer = ShardWriter(work, job.form, job.shard_bytes)
        for name, tensor in rounded_tensors(job, progress) if tensors is None else tensors:
            writer.add(name, tensor)
        files = writer.finish()
        _copy_small_files(job, work)
        for name, text in (extra_files or {}).items():
            with replace_when_whole(work / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        with writing(job.target):
            _put_in_place(work, job.target)
    finally:
        remove_tree(work)
    source_bytes = sum(path.stat().st_size for path in job.files.paths)
    return QuantizedFolder(job.target, tuple(job.target / path.name for path in files), writer.total_bytes, source_bytes)


def rounded_tensors(job: QuantizationJob, progress: OpenProgress = silent) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the result, every quantised weight rounded to the nearest step; all on the CPU, none mapped."""
    total = sum(math.prod(fact.shape) * fact.dtype.itemsize for fact in job.facts.values())
    with closing(progress("quantising", total, unit="B")) as display:
        for name, tensor in job.files.tensors():
            if name in job.quantised:
                try:
                    packed, scale = quantize_weight(tensor.to(job.device), job.bits)
                except UserError as error:
                    raise UserError(f"{job.source}: {name}: {error}") from error
                yield name, packed.cpu()
                yield f"{name}_scale", scale.cpu()
            else:
                yield name, tensor.clone()
            display.advance(tensor.numel() * tensor.element_size())


def _copy_small_files(job: QuantizationJob, folder: Path) -> None:
    """Everything of the source but its weights; ``config.json`` says what the weights are now."""
    for path in sorted(job.source.iterdir()):
        small = path.is_file() and not path.name.startswith(".") and path.stat().st_size <= _SMALL_FILE
        if small and path.name != "config.json" and not path.name.endswith(_WEIGHT_ENDINGS):
            with writing(folder / path.name):
                shutil.copyfile(path, folder / path.name)
    values = read_json(job.source / "config.json")
    values |= {"quantization_bit": job.bits, "quantization_embeddings": job.embeddings}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with replace_when_whole(folder / "config.json") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _put_in_place(result: Path, target: Path) -> None:
    """Give the finished folder its name; a folder that had the name goes when the new one stands there."""
    old = target.with_name(f".{target.name}.replaced")
    remove_tree(old)
    if target.exists():
        target.rename(old)
    try:
        result.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    remove_tree(old)
