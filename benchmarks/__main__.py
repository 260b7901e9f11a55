"""``python -m benchmarks NAME [options]``: run one benchmark."""

from __future__ import annotations

import importlib
import sys
import warnings

BENCHMARKS = {
    "train": "one training step against the published trainer's habits and peft",
    "half_loss": "200 training steps on float32 and on bfloat16 frozen weights: how far the losses part",
    "generate": "reading a prompt and decoding: the engine, our generate, the published way",
    "evaluate": "an evaluation: the published way, our generate, the engine at several batch sizes",
    "quantization": "products with packed weights: kernel x rows",
    "serving": "many clients of one engine, one prefix and many, against one answer at a time",
    "startup": "seconds to --help, to the first prompt of a chat, to the first step of a training",
    "growth": "cost against prompt length, batch, prefix length and number of prefixes",
    "decode_6b": "a random 6.2B INT4 model on the CPU: loading, memory, prompt, decoding",
    "memory": "peak memory, measured beside what ptuning info predicts",
    "bare_tuning": "tuning on INT4 weights with no compiler and no PATH, beside float",
    "calibration": "float, INT4 rounded and INT4 calibrated: loss and divergence",
    "profile_step": "the operators that a training step and a decode step spend their time in",
    "all": "the first eight one after the other, with modest settings, their JSON lines in one file",
    "record": "write the JSON lines of all into the tables of docs/performance.md",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] not in BENCHMARKS:
        lines = "\n".join(f"  {name:14} {what}" for name, what in BENCHMARKS.items())
        print(
            f"usage: bash scripts/benchmark.sh NAME [--size tiny|mid|6b] [options]; NAME is one of\n{lines}", file=sys.stderr
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    # Habits of the published trainer have names that transformers calls deprecated, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    name = "everything" if arguments[0] == "all" else arguments[0]
    return int(importlib.import_module(f"benchmarks.{name}").main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
