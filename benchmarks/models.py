"""The models that benchmarks measure, under one vocabulary of sizes, and the rows that go through them.

Every model has the special ids of the built-in tokenizer, so one tokenizer and one set of rows serve all sizes.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import IDS
from ptuning.checkpoint.hub import embedded_folder
from ptuning.checkpoint.load import load_tokenizer
from ptuning.core.errors import UserError
from ptuning.data.preprocess import Example, training_example
from ptuning.data.rows import read_rows
from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
from ptuning.engine.load import load_model
from ptuning.kernels.cpu import has_fast_bfloat16
from ptuning.kernels.onednn import prefer_onednn_products
from ptuning.model.config import ChatGLMConfig
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    "mid": {"hidden_size": 1024, "inner_hidden_size": 4096, "num_layers": 8, "num_attention_heads": 16},
    "6b": {"hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28, "num_attention_heads": 32},
}
"""tiny: the built-in tiny-chatglm. mid and 6b: random weights, vocabulary 130528."""
_VOCABULARY = 130528
_DEVIATION = 0.02
_INTEGER_DEVIATION = {4: 4.61, 8: 73.9}  # of the integers of that many bits, each equally likely


def add_model_options(parser: argparse.ArgumentParser, size: str = "tiny") -> None:
    """The options that every benchmark of a model has: ``--size`` and ``--device``."""
    parser.add_argument("--size", choices=tuple(SIZES), default=size, help="tiny-chatglm, or random weights in two sizes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        SystemExit: cuda, where there is none.
    """
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise SystemExit("--device cuda was given, and torch finds no CUDA device here; allowed are cpu and auto")
    return torch.device("cuda" if there and options.device != "cpu" else "cpu")


def default_dtypes(device: torch.device) -> list[str]:
    """Of float weights, where nobody named any: float16 and bfloat16 on a GPU; float32 on a CPU, and bfloat16 beside it
    where the CPU multiplies that in hardware (elsewhere one step takes as long as dozens in float32)."""
    if device.type == "cuda":
        return ["float16", "bfloat16"]
    return ["float32", "bfloat16"] if has_fast_bfloat16() else ["float32"]


def made_model(
    size: str,
    dtype: str,
    *,
    prefix: int = 0,
    bits: int = 0,
    device: torch.device | str = "cpu",
    positions: int | None = None,
) -> Any:
    """A frozen model in eval mode, with a random prefix (no dropout) where one is asked for.

    Random packed weights are made as integers: float ones never exist.

    Args:
        size: a key of ``SIZES``.
        dtype: of the activations, and of the weights of a float model.
        prefix: P; 0 for none.
        bits: 0, 4 or 8.
        device: where it goes.
        positions: ``max_sequence_length``, if not the default.
    """
    if size == "tiny":
        model: Any = load_model(embedded_folder(), device=device, dtype=dtype, quantization_bit=bits)
    else:
        model = _random_model(SIZES[size], getattr(torch, dtype), bits, torch.device(device))
        if model.device.type == "cpu" and model.dtype == torch.float32:
            prefer_onednn_products()  # as load_model does
    if positions is not None:
        model.config.max_sequence_length = positions
    if prefix:
        torch.manual_seed(0)
        model.attach_prefix(random_encoder(model.config, prefix))
    return model.eval()


def random_encoder(config: ChatGLMConfig, length: int, deviation: float = 0.5) -> PrefixEncoder:
    """A prefix without dropout that counts as loaded."""
    encoder = PrefixEncoder(prefix_config_of(config, length, False, dropout=0.0))
    torch.nn.init.normal_(encoder.embedding.weight, std=deviation)
    encoder.fresh = False
    return encoder.eval()


def _random_model(sizes: dict[str, int], dtype: torch.dtype, bits: int, device: torch.device) -> Any:
    config = ChatGLMConfig(vocab_size=_VOCABULARY, quantization_bit=bits, **sizes, **IDS)  # type: ignore[arg-type]
    with torch.device("meta"):
        model: Any = ChatGLMForConditionalGeneration(config)
    model = model.to(dtype)
    if bits and device.type == "cpu":  # as load_model leaves them: float16, as published
        for module in (model.lm_head, model.transformer.word_embeddings):
            module.weight = torch.nn.Parameter(module.weight.to(torch.float16), requires_grad=False)
    model = model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dtype == torch.int8:
            parameter.random_(-127, 128) if bits == 8 else parameter.random_(-128, 128)
        elif name.endswith("weight_scale"):
            parameter.fill_(_DEVIATION / _INTEGER_DEVIATION[bits])
        elif "layernorm.weight" in name:
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(0, _DEVIATION)
    return model


def bytes_a_token(model: Any) -> int:
    """Bytes of weights that one step of decoding reads: everything but the embedding, which gives one row."""
    tensors = [*model.transformer.layers.parameters(), *model.transformer.final_layernorm.parameters()]
    tensors += list(model.lm_head.parameters())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def tokenizer() -> Any:
    """The built-in one."""
    return load_tokenizer(embedded_folder())


def read_examples(file: str, source: int, target: int) -> list[Example]:
    """Rows of a file (ADGEN's columns, or a form found by its keys) as training examples of the built-in tokenizer."""
    words = tokenizer()
    try:
        rows = read_rows(file, prompt_column="content", response_column="summary")
    except UserError:
        rows = read_rows(file)
    return [training_example(words, row, max_source_length=source, max_target_length=target) for row in rows]


def made_prompts(count: int, target: int = 64, file: str | None = None) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many new tokens each may have.

    With a file they are its rows: a prompt is the row's, and the answer may be as long as the row's reply. Otherwise they
    are made-up ids with lengths as in ADGEN: prompts of 16 to 64 ids, answers of three quarters of ``target`` to all of it
    (random weights never end an answer).
    """
    if file is not None:
        if not Path(file).is_file():
            raise SystemExit(f"{file}: no such file of rows")
        examples = read_examples(file, 64, target)[:count]
        labelled = [sum(label != -100 for label in example.labels) - 1 for example in examples]  # one is of <sop>
        return [example.input_ids[: -size] for example, size in zip(examples, labelled, strict=True)], labelled
    draw, ends = random.Random(0), [IDS["gmask_token_id"], IDS["bos_token_id"]]
    prompts = [[draw.randrange(100, 1500) for _ in range(draw.randint(14, 62))] + ends for _ in range(count)]
    return prompts, [draw.randint(max(1, 3 * target // 4), target) for _ in range(count)]
