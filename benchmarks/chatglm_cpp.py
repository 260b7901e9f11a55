"""The same prompt and decode on the PyPI package chatglm-cpp, with a random q4_0 model of the same shape.

The file layout is that of chatglm-cpp 0.4.2: a header of sizes, the SentencePiece model, then named tensors, each aligned to
16 bytes; q4_0 holds 32 weights in 18 bytes, a float16 scale and 16 bytes of nibbles.
"""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

import ptuning
from ptuning.model.config import ChatGLMConfig

_F32, _Q4_0, _CHATGLM = 0, 2, 1
_BLOCK, _BLOCK_BYTES, _ALIGNMENT = 32, 18, 16

# Runs in the Python that has the package.
_INSIDE = """
import json, resource, statistics, sys, time
import chatglm_cpp
from chatglm_cpp import _C
path, prompt, new, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
start = time.perf_counter()
model = _C.Pipeline(path).model
loaded = time.perf_counter() - start
config = _C.GenerationConfig(max_length=2048, do_sample=False)
def run(tokens):
    ids = list(range(10, 10 + prompt - 2)) + [130001, 130004]
    past, times = 0, []
    for _ in range(tokens):
        start = time.perf_counter()
        following = model.generate_next_token(ids, None, config, past, prompt)
        times.append(time.perf_counter() - start)
        past = len(ids)
        ids.append(following)
    return times
run(2)
runs = [run(1 + new) for _ in range(2)]
first = statistics.median(times[0] for times in runs)
token = statistics.median(time for times in runs for time in times[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps({"load s": loaded, "prompt tokens/s, batch 1": prompt / first,
                  "decode tokens/s, batch 1": 1 / token, "peak GB": peak}))
"""


def measure(python: str, sizes: dict[str, int], prompt: int, new: int) -> dict[str, Any]:
    """Write a model, load it in a process of its own, and time it.

    Args:
        python: an interpreter that has the package.
        sizes: of the model, names as in ``ChatGLMConfig``.
        prompt: tokens of the prompt.
        new: tokens to decode.

    Returns:
        rates, and the peak of resident memory (the file is mapped, and counts page by page).
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        with path.open("wb") as file:
            _write(file, ChatGLMConfig(**sizes))  # type: ignore[arg-type]
        size = path.stat().st_size
        command = [python, "-c", _INSIDE, str(path), str(prompt), str(new), str(torch.get_num_threads())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    return {"model": "chatglm-cpp, q4_0", "file GB": size / 1e9, **measured, "peak / file": measured["peak GB"] * 1e9 / size}


def _write(file: BinaryIO, config: ChatGLMConfig) -> None:
    hidden, inner, heads = config.hidden_size, config.inner_hidden_size, config.num_attention_heads
    file.write(b"ggml" + struct.pack("i", _CHATGLM))
    values = (2, _Q4_0, config.vocab_size, hidden, heads, heads, config.num_layers, inner)
    file.write(struct.pack("8i", *values) + struct.pack("f", config.layernorm_epsilon) + struct.pack("i", 0))
    file.write(struct.pack("f3i", 10000.0, config.max_sequence_length, config.eos_token_id, config.pad_token_id))
    pieces = (Path(ptuning.__file__).parent / "assets" / "tiny-chatglm" / "ice_text.model").read_bytes()
    file.write(struct.pack("i", len(pieces)) + pieces)
    _matrix(file, "transformer.word_embeddings.weight", config.vocab_size, hidden)
    for index in range(config.num_layers):
        name = f"transformer.layers.{index}"
        _norm(file, f"{name}.input_layernorm", hidden)
        _linear(file, f"{name}.attention.query_key_value", 3 * hidden, hidden)
        _linear(file, f"{name}.attention.dense", hidden, hidden)
        _norm(file, f"{name}.post_attention_layernorm", hidden)
        _linear(file, f"{name}.mlp.dense_h_to_4h", inner, hidden)
        _linear(file, f"{name}.mlp.dense_4h_to_h", hidden, inner)
    _norm(file, "transformer.final_layernorm", hidden)


def _head(file: BinaryIO, name: str, shape: tuple[int, ...], kind: int) -> None:
    file.write(struct.pack("i", len(name)) + name.encode())
    file.write(struct.pack(f"{len(shape) + 2}i", len(shape), *shape, kind))
    file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)


def _vector(file: BinaryIO, name: str, value: float, size: int) -> None:
    _head(file, name, (size,), _F32)
    file.write(torch.full((size,), value).numpy().tobytes())


def _norm(file: BinaryIO, name: str, size: int) -> None:
    _vector(file, f"{name}.weight", 1.0, size)
    _vector(file, f"{name}.bias", 0.0, size)


def _linear(file: BinaryIO, name: str, rows: int, columns: int) -> None:
    _matrix(file, f"{name}.weight", rows, columns)
    _vector(file, f"{name}.bias", 0.0, rows)


def _matrix(file: BinaryIO, name: str, rows: int, columns: int) -> None:
    _head(file, name, (rows, columns), _Q4_0)
    blocks = torch.randint(0, 256, (rows * columns // _BLOCK, _BLOCK_BYTES), dtype=torch.uint8)
    blocks[:, :2] = torch.tensor([0.02 / 4.61], dtype=torch.float16).view(torch.uint8)
    file.write(blocks.numpy().tobytes())
