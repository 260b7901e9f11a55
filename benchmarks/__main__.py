"""``python -m benchmarks NAME [options]``: run one benchmark."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "quantization": "products with packed weights: kernel x rows",
    "decode_6b": "a random 6.2B INT4 model on the CPU: loading, memory, prompt, decoding",
    "train": "one training step against the published trainer's habits",
    "evaluate": "an evaluation, one row at a time against the engine",
    "serving": "many clients of one engine, one prefix and many, against one answer at a time",
    "memory": "peak memory, measured beside what ptuning info predicts",
    "bare_tuning": "tuning on INT4 weights with no compiler and no PATH, beside float",
    "calibration": "float, INT4 rounded and INT4 calibrated: loss and divergence",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] not in BENCHMARKS:
        lines = "\n".join(f"  {name:14} {what}" for name, what in BENCHMARKS.items())
        print(f"usage: bash scripts/benchmark.sh NAME [options]; NAME is one of\n{lines}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
