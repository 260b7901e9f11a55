"""What each verb loads: a dependency that it does not need is neither waited for nor trusted.

Two processes fork one child for every case: one that has imported nothing yet, for verbs that need no model, and one that
has torch and transformers, which bring packages of their own (more or fewer in every release). Only what came behind that
counts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptuning.edges.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
HEAVY = {
    "accelerate", "aiohttp", "cpm_kernels", "datasets", "fastapi", "gradio", "httpx", "huggingface_hub", "jieba", "jinja2",
    "matplotlib", "nltk", "numpy", "pandas", "peft", "PIL", "prometheus_client", "prompt_toolkit", "pyarrow", "pydantic",
    "requests", "rouge_chinese", "sacrebleu", "safetensors", "scipy", "sentencepiece", "sklearn", "starlette", "sympy",
    "tensorboard", "torch", "torch._dynamo", "torch._inductor", "tqdm", "transformers", "transformers.modeling_utils",
    "transformers.trainer", "triton", "uvicorn", "wandb", "yaml",
}
TRANSFORMERS = {
    "accelerate", "httpx", "huggingface_hub", "jinja2", "numpy", "peft", "PIL", "requests", "safetensors", "sentencepiece",
    "sympy", "torch", "torch._dynamo", "torch._inductor", "tqdm", "transformers", "transformers.modeling_utils", "triton",
    "yaml",
}
"""What importing transformers' TrainingArguments may bring: it imports what it finds installed, peft and accelerate too."""
SCORES = {"jieba", "nltk", "numpy", "rouge_chinese", "sacrebleu"}
SERVER = {"fastapi", "pydantic", "prometheus_client", "starlette", "uvicorn"}
READING = {"huggingface_hub", "safetensors", "sentencepiece", "tqdm"}
WHOLE_MODEL = {
    "accelerate", "peft", "sympy", "torch._dynamo", "torch._inductor", "transformers.modeling_utils", "triton",
}
"""What transformers' PreTrainedModel brings."""

# Words of the command → what it may load. Paths below TMP are the test's.
WITHOUT_A_MODEL = {
    "": set(),
    "--version": set(),
    "trian": set(),
    **{f"{verb} --help": TRANSFORMERS if verb in ("train", "evaluate") else set() for verb in VERBS},
    "evaluate --metrics-only TMP/answers.jsonl": SCORES,
    "serve --port 70000": set(),
    "web --auth :": set(),
    "chat --no_such_flag": set(),
}
WITH_A_MODEL = {
    "info tiny-chatglm --train --pre_seq_len 8": READING,
    "inspect TMP/rows.jsonl": READING,
    "chat --device cpu --max_new_tokens 4": READING,
    "serve --device cpu --port 0": READING | SERVER,
    "web --device cpu --port 0": READING | SERVER | {"gradio", "httpx", "pandas", "pyarrow"},
    "quantize tiny-chatglm TMP/int4 --bits 4": READING | WHOLE_MODEL,
    "evaluate --model_name_or_path tiny-chatglm --device cpu --test_file TMP/rows.jsonl --max_target_length 4 "
    "--output_dir TMP/run": READING | WHOLE_MODEL | SCORES,
}
RUN = """
import json, logging, os, signal, sys, threading
cases, heavy, first = json.loads(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
for name in first:
    __import__(name)
if "transformers" in first:
    from transformers import PreTrainedConfig, PreTrainedTokenizer
before = set(sys.modules)

class StopWhenListening(logging.Handler):
    def emit(self, record):
        if "listening on" in record.getMessage():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

for case in cases:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        told = os.dup(1)
        os.dup2(2, 1)
        question, typed = os.pipe()
        os.write(typed, "你好\\n".encode())
        os.close(typed)
        os.dup2(question, 0)
        from ptuning.edges.cli import main
        logging.getLogger("ptuning").addHandler(StopWhenListening())
        try:
            code = main(case.split())
        except SystemExit as error:
            code = error.code or 0
        loaded = [name for name in heavy if name in sys.modules and name not in before]
        os.write(told, (json.dumps([case, code, loaded]) + "\\n").encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("imports")
    row = json.dumps({"prompt": "你好", "response": "好"}, ensure_ascii=False)
    (made / "rows.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    (made / "answers.jsonl").write_text('{"labels": "好", "predict": "好"}\n', encoding="utf-8")
    return made


@pytest.mark.parametrize(
    ("cases", "first"), [(WITHOUT_A_MODEL, ""), (WITH_A_MODEL, "torch transformers")], ids=["no model", "a model"]
)
def test_a_verb_loads_what_it_needs(cases, first, folder):
    words = [case.replace("TMP", str(folder)) for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(words), " ".join(sorted(HEAVY)), first],
        capture_output=True, text=True, encoding="utf-8", timeout=280, cwd=ROOT, check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [case for case, _, _ in results] == words
    wrong = {
        case: (code, sorted(set(loaded) - allowed))
        for (case, code, loaded), allowed in zip(results, cases.values(), strict=True)
        if set(loaded) - allowed or code != (0 if is_fine(case) else 2)
    }
    assert not wrong


def is_fine(case):
    return case not in ("trian", "serve --port 70000", "web --auth :", "chat --no_such_flag")
