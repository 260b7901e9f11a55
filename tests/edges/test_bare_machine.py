"""A quantised model is tuned and answers where there is nothing: no compiler, no PATH, no importable CUDA package."""

import os
from pathlib import Path

import pytest
from processes import forked_from_one
from runs import small_run

ROOT = Path(__file__).resolve().parents[2]
BITS = (4, 8)
ANSWERING = """
import sys, torch, ptuning

pytestmark = pytest.mark.slow
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


TUNING = "import sys; from ptuning.edges.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"


@pytest.fixture(scope="module")
def done(golden, rows_file, tmp_path_factory):
    """bits -> the processes that tuned and answered: forked from one that finds nothing."""
    place = tmp_path_factory.mktemp("bare")
    broken = place / "broken"
    broken.mkdir()
    for name in ("triton", "cpm_kernels"):
        (broken / f"{name}.py").write_text("raise ImportError('made unimportable')\n", encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if key not in ("PATH", "CC", "CXX", "CUDA_HOME", "CUDA_PATH")}
    environment = {**kept, "PATH": "", "PYTHONPATH": os.pathsep.join((str(broken), str(ROOT)))}
    cases = []
    for bits in BITS:
        settings = {"quantization_bit": bits, "pre_seq_len": 4, "max_steps": 3, "gradient_accumulation_steps": None}
        argv = small_run(golden / "model", rows_file, f"run-{bits}", **settings)
        cases += [(TUNING, argv, place), (ANSWERING, [golden / "model", f"run-{bits}/checkpoint-3", bits], place)]
    made = forked_from_one("import ptuning.training.run", cases, place, cwd=place, env=environment)
    return dict(zip(BITS, (made[:2], made[2:]), strict=True))


@pytest.mark.parametrize("bits", BITS)
def test_tuning_and_answering_need_no_compiler_and_no_cuda_package(done, bits):
    for process in done[bits]:
        assert process.returncode == 0, process.stderr[-2000:]
