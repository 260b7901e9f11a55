"""``ptuning quantize``: writes a quantised model folder in the published layout."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ptuning.plain.errors import UserError
from ptuning.plain.parsing import SettingsParser
from ptuning.plain.settings_file import SETTINGS_SUFFIXES


@dataclass
class QuantizeArguments:
    """What is written, where, and how the weights are rounded."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "SRC: folder or hub name of a float model, or tiny-chatglm.", "path": True},
    )
    output_dir: str | None = field(default=None, metadata={"help": "DST: folder to be written.", "path": True})
    bits: Literal[4, 8] | None = field(
        default=None,
        metadata={"help": "Bits of a weight. 4: a quarter of float16; 8: half of it.", "aliases": ("quantization_bit",)},
    )
    embeddings: bool = field(
        default=False,
        metadata={
            "help": "Quantise the word embeddings and the head too, as the published INT4-QE model.",
            "aliases": ("quantize_embeddings", "quantization_embeddings"),
        },
    )
    format: Literal["safetensors", "bin"] = field(
        default="safetensors", metadata={"help": "Of the weight files; bin is PyTorch's, for the published scripts."}
    )
    max_shard_size: str = field(
        default="1GB", metadata={"help": "Largest weight file; memory holds one such file while it is filled."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace a model folder that has the name DST.", "aliases": ("overwrite_output_dir",)},
    )
    device: str = field(default="cpu", metadata={"help": "Where weights are rounded: cpu, cuda, cuda:N, mps or auto."})
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of a hub model.", "aliases": ("revision",)}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where hub downloads are kept.", "path": True})
    token: str | None = field(default=None, metadata={"help": "Access token for private hub models."})
    local_files_only: bool = field(default=False, metadata={"help": "Never ask the hub."})


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, source or target that do not fit.
    """
    parser = SettingsParser(
        {"the model": QuantizeArguments},
        prog="ptuning quantize",
        description="Write a float ChatGLM-6B model as INT4 or INT8, in the published layout. Example: "
        "ptuning quantize THUDM/chatglm-6b chatglm-6b-int4 --bits 4",
        positional="SRC DST",
    )
    config, places, flags = split_words(argv)
    given = parser.parse([*config, *flags])
    named = given.values | dict(zip(("model_name_or_path", "output_dir"), places, strict=False))
    if len(places) > 2:
        raise UserError(f"{places[2]!r}: not expected here; ptuning quantize SRC DST takes two folders, then flags")
    settings: QuantizeArguments = given.build(QuantizeArguments, **named)
    for value, what in ((settings.model_name_or_path, "SRC"), (settings.output_dir, "DST")):
        if value is None:
            raise UserError(f"{what} is missing: ptuning quantize SRC DST --bits 4 (ptuning quantize --help explains them)")
    if settings.bits is None:
        raise UserError("--bits is missing; allowed are 4 and 8")
    write(settings)
    return 0


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """A settings file named first, the words before the first flag, and the flags."""
    words = list(argv)
    config = [words.pop(0)] if words and words[0].lower().endswith(SETTINGS_SUFFIXES) and words[0][0] != "-" else []
    places = []
    while words and not words[0].startswith("--") and words[0] != "-h" and not re.match(r"[A-Za-z_][\w-]*=", words[0]):
        places.append(words.pop(0))
    return config, places, words


def write(settings: QuantizeArguments) -> None:
    """Plan, write, and say what there is now."""
    from ptuning.tuned.quantize_checkpoint import plan_quantization, quantize_checkpoint
    from ptuning.tuned.shard_writer import parse_size

    job = plan_quantization(
        str(settings.model_name_or_path),
        str(settings.output_dir),
        bits=int(settings.bits or 0),
        embeddings=settings.embeddings,
        form=settings.format,
        shard_bytes=parse_size(settings.max_shard_size),
        overwrite=settings.overwrite,
        device=settings.device,
        revision=settings.model_revision,
        cache_dir=settings.cache_dir,
        token=settings.token,
        local_files_only=settings.local_files_only,
    )
    done = quantize_checkpoint(job, progress_bar)
    files = f"{len(done.files)} files" if len(done.files) > 1 else done.files[0].name
    print(
        f"{done.folder}: INT{job.bits}{' with quantised embeddings' if job.embeddings else ''}, "
        f"{done.total_bytes / 1e6:,.1f} MB in {files} (the source: {done.source_bytes / 1e6:,.1f} MB)"
    )


def progress_bar(title: str, total: int, unit: str) -> Callable[[int], None]:
    """A bar on standard error that closes itself at the end."""
    from tqdm.auto import tqdm

    scaled = unit == "B"
    bar: Any = tqdm(total=total, desc=title, unit=unit, unit_scale=scaled, file=sys.stderr, dynamic_ncols=True)

    def advance(amount: int) -> None:
        bar.update(min(amount, total - bar.n))
        if bar.n >= total:
            bar.close()

    return advance
