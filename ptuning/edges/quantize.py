"""``ptuning quantize``: writes a quantised model folder in the published layout."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptuning.core.choices import PackedBits, RoundingMethod, WeightForm, allowed
from ptuning.core.errors import UserError
from ptuning.edges.output import print_line
from ptuning.edges.progress import open_progress
from ptuning.settings.arguments import BUILT_IN_MODEL
from ptuning.settings.parsing import SettingsParser
from ptuning.settings.setting_limits import check_path
from ptuning.settings.settings_file import SETTINGS_SUFFIXES


@dataclass
class QuantizeArguments:
    """What is written, where, and how the weights are rounded."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "SRC: folder or hub name of a float model, or tiny-chatglm.", "path": True},
    )
    output_dir: str | None = field(default=None, metadata={"help": "DST: folder to be written.", "path": True})
    bits: PackedBits | None = field(
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
    format: WeightForm = field(
        default="safetensors", metadata={"help": "Of the weight files; bin is PyTorch's, for the published scripts."}
    )
    method: RoundingMethod = field(
        default="rtn",
        metadata={
            "help": "rtn: every weight to the nearest step. gptq: calibrated on rows of text, of the same size and format, "
            "closer to the float model; takes longer, and resumes where it was stopped."
        },
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


@dataclass
class CalibrationArguments:
    """What the weights are calibrated on, with ``--method gptq``."""

    calibration_file: str | None = field(
        default=None,
        metadata={
            "help": "Rows with columns (.json, .jsonl, .csv, .parquet) or a .txt with one text a line; a few hundred texts "
            "like those that the model will see. Default for tiny-chatglm: the rows that ship.",
            "path": True,
        },
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the question (ADGEN: content).", "free": True}
    )
    response_column: str | None = field(
        default=None, metadata={"help": "Column of the reply (ADGEN: summary).", "free": True}
    )
    history_column: str | None = field(default=None, metadata={"help": "Column of the earlier rounds.", "free": True})
    calibration_rows: int = field(default=128, metadata={"help": "How many rows, taken evenly over the file.", "min": 1})
    max_source_length: int = field(
        default=256, metadata={"help": "Longest prompt in tokens; longer ones are truncated.", "min": 2}
    )
    max_target_length: int = field(
        default=256, metadata={"help": "Longest reply in tokens; longer ones are truncated.", "min": 3}
    )
    calibration_batch_size: int = field(default=8, metadata={"help": "Rows at a time; memory grows with it.", "min": 1})
    damping: float = field(default=0.01, metadata={"help": "Higher trusts the calibration rows less.", "above": 0, "max": 1})
    act_order: bool = field(default=True, metadata={"help": "Round the columns of the largest inputs first."})


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, source or target that do not fit.
    """
    parser = SettingsParser(
        {"the model": QuantizeArguments, "calibration (--method gptq)": CalibrationArguments},
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
        raise UserError(f"--bits is missing; allowed are {allowed(PackedBits)}")
    write(settings, given.build(CalibrationArguments))
    return 0


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """A settings file named first, the words before the first flag, and the flags."""
    words = list(argv)
    config = [words.pop(0)] if words and words[0].lower().endswith(SETTINGS_SUFFIXES) and words[0][0] != "-" else []
    places = []
    while words and not words[0].startswith("--") and words[0] != "-h" and not re.match(r"[A-Za-z_][\w-]*=", words[0]):
        places.append(check_path("folder", words.pop(0)))
    return config, places, words


def write(settings: QuantizeArguments, calibration: CalibrationArguments) -> None:
    """Plan, write, and say what there is now; one run at a time for each target."""
    from ptuning.core.output_folder import claimed

    target = Path(os.path.expanduser(str(settings.output_dir)))
    rows = calibration.calibration_file
    if rows is not None and target.is_dir() and Path(rows).resolve().is_relative_to(target.resolve()):
        raise UserError(f"--calibration_file {rows}: this lies in {target}, which will be replaced; name another folder")
    with claimed(target, flag="DST", beside=True):
        _write_claimed(settings, calibration)


def _write_claimed(settings: QuantizeArguments, calibration: CalibrationArguments) -> None:
    from ptuning.checkpoint.shard_writer import parse_size
    from ptuning.quantize.folder import plan_quantization, quantize_checkpoint

    calibrated = settings.method == "gptq"
    hub = {
        "revision": settings.model_revision,
        "cache_dir": settings.cache_dir,
        "token": settings.token,
        "local_files_only": settings.local_files_only,
    }
    job = plan_quantization(
        str(settings.model_name_or_path),
        str(settings.output_dir),
        bits=int(settings.bits or 0),
        embeddings=settings.embeddings,
        form=settings.format,
        shard_bytes=parse_size(settings.max_shard_size),
        overwrite=settings.overwrite,
        calibrated=calibrated,
        device=settings.device,
        **hub,
    )
    done = _calibrate(job, settings, calibration) if calibrated else quantize_checkpoint(job, open_progress)
    files = f"{len(done.files)} files" if len(done.files) > 1 else done.files[0].name
    print_line(
        f"{done.folder}: INT{job.bits}{' with quantised embeddings' if job.embeddings else ''}"
        f"{', calibrated' if calibrated else ''}, {done.total_bytes / 1e6:,.1f} MB in {files} "
        f"(the source: {done.source_bytes / 1e6:,.1f} MB)"
    )


def _calibrate(job: Any, settings: QuantizeArguments, calibration: CalibrationArguments) -> Any:
    """Read the rows and round the weights for them."""
    from ptuning.checkpoint.load import load_tokenizer
    from ptuning.data.calibration_rows import RowSettings, calibration_ids
    from ptuning.quantize.calibration import CalibrationSettings, calibrate_checkpoint

    if calibration.calibration_file is None and settings.model_name_or_path != BUILT_IN_MODEL:
        raise UserError(
            "--calibration_file is missing: --method gptq rounds the weights for texts like those that the model will see; "
            "name rows with columns (.json, .csv, .parquet) or a .txt with one text a line"
        )
    rows = RowSettings(
        file=calibration.calibration_file,
        prompt_column=calibration.prompt_column,
        response_column=calibration.response_column,
        history_column=calibration.history_column,
        count=calibration.calibration_rows,
        max_source_length=calibration.max_source_length,
        max_target_length=calibration.max_target_length,
    )
    ids = calibration_ids(load_tokenizer(job.source), rows)
    how = CalibrationSettings(calibration.damping, calibration.act_order, calibration.calibration_batch_size)
    return calibrate_checkpoint(job, ids, how, open_progress)
