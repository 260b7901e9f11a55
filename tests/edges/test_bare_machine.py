"""A quantised model is tuned and answers where there is nothing: no compiler, no PATH, no importable CUDA package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ANSWERING = """
import sys, torch, ptuning
for name in ("triton", "cpm_kernels"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
for dtype in ("float32", "bfloat16", "float16"):
    model = ptuning.load_model(
        sys.argv[1], ptuning_checkpoint=sys.argv[2], quantization_bit=int(sys.argv[3]), device="cpu", dtype=dtype
    )
    ids = torch.tensor([[100, 101, 102, model.config.gmask_token_id, model.config.bos_token_id]])
    made = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert made.shape[1] > ids.shape[1], made
"""


@pytest.mark.parametrize("bits", [4, 8])
def test_tuning_and_answering_need_no_compiler_and_no_cuda_package(golden, golden_cases, tmp_path, bits):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("triton", "cpm_kernels"):
        (broken / f"{name}.py").write_text("raise ImportError('made unimportable')\n", encoding="utf-8")
    rows = [{"content": row["prompt"], "summary": row["response"]} for row in golden_cases["train_rows"]]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "train.json").write_text(lines, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if key not in ("PATH", "CC", "CXX", "CUDA_HOME", "CUDA_PATH")}
    environment = {**kept, "PATH": "", "PYTHONPATH": os.pathsep.join((str(broken), str(ROOT)))}

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]

    settings = {
        "model_name_or_path": golden / "model",
        "train_file": "train.json",
        "prompt_column": "content",
        "response_column": "summary",
        "output_dir": "run",
        "pre_seq_len": 4,
        "quantization_bit": bits,
        "max_source_length": 24,
        "max_target_length": 32,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": "2e-2",
        "device": "cpu",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    run("-m", "ptuning", "train", "--do_train", "True", *flags)
    run("-c", ANSWERING, str(golden / "model"), "run/checkpoint-3", str(bits))
