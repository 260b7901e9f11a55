"""Training on float32 and on bfloat16 frozen weights from the same start: how far the losses part over the steps.

tiny-chatglm and the built-in rows, AdamW on the prefix in float32 both times, the same rows and the same dropout.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import cell, json_line, table
from benchmarks.models import add_model_options, device_of, made_model, read_examples
from benchmarks.plain_habits import batch_of
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

ROWS = Path(__file__).resolve().parent.parent / "data" / "adgen-tiny" / "train.json"
HEADS = ("weights", "first loss", "mean of the last tenth", "final loss", "mean difference", "largest", "final difference")


def main(arguments: list[str]) -> int:
    """Train twice, print a table and one JSON line with both curves."""
    parser = argparse.ArgumentParser(prog="benchmark.sh half_loss", description=(__doc__ or "").splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prefix", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate")
    parser.add_argument("--rows", metavar="FILE", default=str(ROWS))
    parser.add_argument("--bits", type=int, choices=(0, 4, 8), default=0)
    options = parser.parse_args(arguments)
    options.device = str(device_of(options))
    curves = {dtype: losses(options, dtype) for dtype in ("float32", "bfloat16")}
    apart = [half - whole for half, whole in zip(curves["bfloat16"], curves["float32"], strict=True)]
    results: list[dict[str, Any]] = []
    for dtype, curve in curves.items():
        tail = curve[-max(1, len(curve) // 10) :]
        summary = {
            "weights": dtype, "first loss": curve[0], "mean of the last tenth": statistics.mean(tail),
            "final loss": curve[-1],
        }
        if dtype == "bfloat16":
            summary |= {
                "mean difference": statistics.mean(map(abs, apart)), "largest": max(map(abs, apart)),
                "final difference": apart[-1],
            }
        results.append(summary | {"losses": [round(loss, 5) for loss in curve]})
    print(table(HEADS, [[cell(result.get(head), 5) for head in HEADS] for result in results]))
    settings = {**vars(options), "rows": Path(options.rows).name}
    print(json_line("half_loss", settings, results))
    return 0


def losses(options: argparse.Namespace, dtype: str) -> list[float]:
    """The loss of every step on frozen weights of one dtype."""
    model = made_model(options.size, dtype, bits=options.bits, device=options.device)
    torch.manual_seed(1)
    model.attach_prefix(PrefixEncoder(prefix_config_of(model.config, options.prefix, False)))
    model.train()
    encoder = model.prefix_encoder
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=options.rate)
    rows = [(example.input_ids, example.labels) for example in read_examples(options.rows, 64, 96)]
    values = []
    for step in range(options.steps):
        chosen = [rows[place % len(rows)] for place in range(step * options.batch, (step + 1) * options.batch)]
        torch.manual_seed(step)  # of the dropout
        loss = model(**batch_of(chosen, model.config.pad_token_id, None, model.device)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        values.append(float(loss.detach()))
    return values
