"""Float, INT4 rounded to the nearest step, and INT4 calibrated (``--method gptq``): how far from float each of them is.

Two models: tiny-chatglm, calibrated on some of the texts it was pretrained on and tuned for, and measured on others; and a
mid-size random model with input channels of very different sizes (what makes trained models hard to round), calibrated on
and measured with rows that follow simple rules.

Measured on held-out texts only: the loss on their replies; the divergence from float, which is the loss beyond float's own
when texts are drawn from the float model; and the squared error of the logits, relative. A loss on given texts may also
go *down* by rounding, by chance, where the model was not trained to the end on such texts: the divergence cannot.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.machine import json_line, table
from ptuning.checkpoint.hub import embedded_folder
from ptuning.checkpoint.load import load_tokenizer
from ptuning.data.preprocess import training_example
from ptuning.data.rows import read_rows
from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
from ptuning.engine.load import load_model
from ptuning.model.config import ChatGLMConfig
from ptuning.quantize.calibration import calibrate_checkpoint
from ptuning.quantize.folder import plan_quantization, quantize_checkpoint

ROOT = Path(__file__).resolve().parent.parent
MID: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 512, "num_layers": 6, "num_attention_heads": 8, "inner_hidden_size": 2048,
    "bos_token_id": 89, "eos_token_id": 90, "mask_token_id": 85, "gmask_token_id": 86, "pad_token_id": 3,
}
Row = tuple[list[int], int]
"""Ids, and the index of their ``<sop>``."""


def main(arguments: list[str]) -> int:
    """Measure, print a table and one JSON line; 1 where calibration closes less than half of a gap."""
    parser = argparse.ArgumentParser(prog="benchmarks calibration", description=__doc__)
    parser.add_argument("--rows", type=int, default=256, help="calibration rows")
    parser.add_argument("--held_out", type=int, default=1000, help="rows that are measured")
    parser.add_argument("--embeddings", action="store_true", help="quantise embedding and head too")
    parser.add_argument("--quick", action="store_true", help="tiny-chatglm only")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory() as place:
        models = [("tiny-chatglm", embedded_folder(), tiny_rows(options.rows, options.held_out))]
        if not options.quick:
            models.append(("random, 20 M", random_checkpoint(Path(place) / "mid"), rule_rows(options.rows, 200)))
        for name, folder, (calibration, held_out) in models:
            results += compare(name, folder, calibration, held_out, Path(place) / name, options.embeddings)
    heads = ("model", "weights", "loss", "loss - float", "divergence", "gap closed", "logit error")
    print(table(heads, [_row(result) for result in results]))
    settings = {"rows": options.rows, "held_out": options.held_out, "embeddings": options.embeddings, "bits": 4}
    print(json_line("calibration", settings, results))
    return 1 if any(result.get("gap_closed", 1.0) < 0.5 for result in results) else 0


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    closed = f"{result['gap_closed']:.0%}" if "gap_closed" in result else ""
    return (
        result["model"], result["weights"], f"{result['loss']:.5f}", f"{result['loss_gap']:+.5f}",
        f"{result['divergence']:.6f}", closed, f"{result['logit_error']:.2e}",
    )


def compare(
    name: str, folder: Path, calibration: Sequence[Row], held_out: Sequence[Row], place: Path, embeddings: bool
) -> list[dict[str, Any]]:
    """One line for float, nearest and calibrated each; ``gap_closed`` is the share of the divergence that is gone."""
    nearest = plan_quantization(folder, place / "nearest", bits=4, embeddings=embeddings)
    quantize_checkpoint(nearest)
    calibrated = plan_quantization(folder, place / "calibrated", bits=4, embeddings=embeddings, calibrated=True)
    calibrate_checkpoint(calibrated, [ids for ids, _ in calibration])
    exact = load_model(folder, device="cpu", dtype="float32")
    results: list[dict[str, Any]] = []
    for weights, where in (("float", folder), ("nearest", nearest.target), ("calibrated", calibrated.target)):
        model = load_model(where, device="cpu", dtype="float32")
        results.append({"model": name, "weights": weights, **measure(model, exact, held_out)})
    for result in results:
        result["loss_gap"] = result["loss"] - results[0]["loss"]
    results[2]["gap_closed"] = 1 - results[2]["divergence"] / results[1]["divergence"]
    return results


@torch.no_grad()
def measure(
    model: ChatGLMForConditionalGeneration, exact: ChatGLMForConditionalGeneration, rows: Sequence[Row], batch: int = 50
) -> dict[str, float]:
    """Loss, divergence from ``exact`` and relative squared error of the logits, over the replies."""
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    ordered = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(ordered), batch):
        some = ordered[start : start + batch]
        longest = max(len(ids) for ids, _ in some)
        ids = torch.tensor([[*row, *[3] * (longest - len(row))] for row, _ in some])
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in some])
        column = torch.arange(longest)
        scored = (column >= torch.tensor([sop for _, sop in some])[:, None]) & (column < real.sum(1, keepdim=True) - 1)
        targets = ids.roll(-1, 1)[scored]
        ours, theirs = (each(ids, attention_mask=real).logits[scored].float() for each in (model, exact))
        ours_log, theirs_log = ours.log_softmax(-1), theirs.log_softmax(-1)
        sums += torch.stack([
            F.nll_loss(ours_log, targets, reduction="sum"),
            (theirs_log.exp() * (theirs_log - ours_log)).sum(),
            (ours - theirs).square().sum(),
            theirs.square().sum(),
        ]).double()
        count += len(targets)
    loss, divergence, error, size = sums.tolist()
    return {"loss": loss / count, "divergence": divergence / count, "logit_error": error / size}


def tiny_rows(calibration: int, held_out: int) -> tuple[list[Row], list[Row]]:
    """Pretraining texts and tuning rows, half and half; those that are measured do not occur among the others."""
    from scripts.tiny.corpus import samples
    from scripts.tiny.pretrain import Encoder

    encoder = Encoder(embedded_folder() / "ice_text.model")
    texts = [encoder.row(sample) for sample in islice(samples(), 4 * (calibration + held_out))]
    tokenizer = load_tokenizer(embedded_folder())
    parts: list[list[Row]] = []
    seen: set[tuple[int, ...]] = set()
    for count, file in ((calibration, "train"), (held_out, "test")):
        part: list[Row] = []
        while len(part) < count // 2:
            ids, context = texts.pop()
            if tuple(ids) not in seen:
                part.append((ids, context))
                seen.add(tuple(ids))
        rows = read_rows(
            ROOT / "data" / "adgen-tiny" / f"{file}.json", prompt_column="content", response_column="summary",
            max_samples=count - len(part),
        )
        for row in rows:
            example = training_example(tokenizer, row, max_source_length=64, max_target_length=64)
            part.append((example.input_ids, sum(label < 0 for label in example.labels)))
        parts.append(part)
    return parts[0], parts[1]


def rule_rows(calibration: int, held_out: int) -> tuple[list[Row], list[Row]]:
    """Rows of ids in which each follows from the one before."""
    draw = random.Random(0)
    rows: list[Row] = []
    for _ in range(calibration + held_out):
        first, step, length = draw.randrange(100, 4000), draw.choice((1, 3, 7, 20)), draw.randrange(24, 64)
        ids = [100 + (first + step * place) % 3900 for place in range(length)]
        middle = length // 2
        rows.append(([*ids[:middle], 86, 89, *ids[middle:], 90], middle + 1))
    return rows[:calibration], rows[calibration:]


def random_checkpoint(folder: Path) -> Path:
    """A float model of random weights with bold channels."""
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**MID))
    for name, parameter in model.named_parameters():
        if "layernorm.weight" in name and "final" not in name:
            parameter.data.mul_(torch.exp(0.8 * torch.randn(parameter.shape)))
        elif name.endswith("weight") and parameter.dim() == 2:
            parameter.data.normal_(0, parameter.shape[1] ** -0.5)
    model.half().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
