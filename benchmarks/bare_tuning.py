"""Tuning a prefix on INT4 weights where there is nothing (no PATH, no compiler, no CUDA package), beside float tuning.

Both tune and score tiny-chatglm by ``configs/tiny.yaml``, as ``bash scripts/train.sh`` does, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import json_line, table

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = 0.10
_SCORES = {"BLEU-4": "predict_bleu-4", "ROUGE-1": "predict_rouge-1", "ROUGE-L": "predict_rouge-l"}


def main(arguments: list[str]) -> int:
    """Tune twice, print a table and one JSON line; 1 where an INT4 score is more than 10 % below the float one."""
    parser = argparse.ArgumentParser(prog="benchmarks bare_tuning", description=__doc__)
    parser.add_argument("--max_steps", type=int, default=240)
    parser.add_argument("--max_predict_samples", type=int, default=200)
    options = parser.parse_args(arguments)
    flags = [word for name, value in vars(options).items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as place:
        results = [
            {"weights": "float", **tune(Path(place) / "float", flags, bare=False)},
            {"weights": "INT4, bare machine", **tune(Path(place) / "int4", [*flags, "--quantization_bit", "4"], bare=True)},
        ]
    heads = ("weights", *_SCORES, "seconds")
    print(table(heads, [[result[head] for head in heads] for result in results]))
    print(json_line("bare_tuning", vars(options), results))
    exact, packed = results
    return 1 if any(packed[name] < (1 - ALLOWED) * exact[name] for name in _SCORES) else 0


def tune(place: Path, flags: list[str], *, bare: bool) -> dict[str, Any]:
    """Scores of one run; ``bare`` takes PATH, compilers and CUDA packages away."""
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if bare:
        for name in ("triton", "cpm_kernels"):
            (place / f"{name}.py").write_text("raise ImportError('made unimportable')\n", encoding="utf-8")
        hidden = ("PATH", "CC", "CXX", "CUDA_HOME", "CUDA_PATH")
        environment = {key: value for key, value in environment.items() if key not in hidden}
        environment |= {"PATH": "", "PYTHONPATH": os.pathsep.join((str(place), str(ROOT)))}
    command = [sys.executable, "-m", "ptuning", "train", str(ROOT / "configs" / "tiny.yaml"), *flags]
    command += ["--output_dir", str(place / "run"), "--compare_base", "False", "--do_eval", "False", "--device", "cpu"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    scores = json.loads((place / "run" / "predict_results.json").read_text(encoding="utf-8"))
    rounded = {name: round(scores[key], 2) for name, key in _SCORES.items()}
    return {**rounded, "seconds": round(time.perf_counter() - start)}
