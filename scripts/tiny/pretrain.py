"""Pretrains tiny-chatglm on the texts of scripts.tiny.corpus and writes it in the published folder layout.

Deterministic: fixed seeds, fixed order, fixed thread count. Bit-equal files are claimed for the same CPU type and the
same torch version only; elsewhere the last digits differ, and with them the trained weights.

Run: python -m scripts.tiny.pretrain [folder] [--steps N]   (default: ptuning/assets/tiny-chatglm)
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW, Muon

from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
from ptuning.model.config import ChatGLMConfig
from scripts.tiny.corpus import SEED, Sample, samples
from scripts.tiny.vocabulary import mark_whitespace

HIDDEN, LAYERS, HEADS = 256, 4, 4
STEPS = 700
TOKENS_A_BATCH = 2048
LENGTH_STEP = 8
PAD = 3
MATRIX_RATE, OTHER_RATE, WARMUP = 2e-2, 2e-3, 50
THREADS = 2


class Encoder:
    """Samples to ids in the GLM form: context, [gMASK] unless the context has a [MASK], <sop>, target, <eop>."""

    def __init__(self, file: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        self.mask, self.gmask, self.sop, self.eop = (
            self.pieces.piece_to_id(piece) for piece in ("[MASK]", "[gMASK]", "<sop>", "<eop>")
        )

    def encode(self, text: str) -> list[int]:
        """Text to ids; [MASK] in it becomes the mask token."""
        return self.pieces.encode(mark_whitespace(text))

    def row(self, sample: Sample) -> tuple[list[int], int]:
        """All ids of a sample, and how many of them are context (the ids before <sop>)."""
        context = self.encode(sample.context)
        if self.mask not in context:
            context.append(self.gmask)
        return [*context, self.sop, *self.encode(sample.target), self.eop], len(context)


def batches(encoder: Encoder) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of rows of similar length: ids, attention mask and labels, each [B, T], right padded.

    T is a multiple of LENGTH_STEP and B follows from it, so few shapes occur (oneDNN prepares a kernel for each).
    """
    waiting: dict[int, list[tuple[list[int], int]]] = {}
    for sample in samples():
        row = encoder.row(sample)
        length = -(-len(row[0]) // LENGTH_STEP) * LENGTH_STEP
        rows = waiting.setdefault(length, [])
        rows.append(row)
        if len(rows) == max(1, TOKENS_A_BATCH // length):
            yield collate(rows, length)
            rows.clear()


def collate(rows: list[tuple[list[int], int]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of (ids, context length), padded to `length`, as ids, attention mask and labels."""
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for i, (row, context) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, context + 1 : len(row)] = ids[i, context + 1 : len(row)]
    return ids, mask, labels


def new_model(encoder: Encoder) -> ChatGLMForConditionalGeneration:
    """A model with DeepNorm's initialisation, which fits the residual that is scaled by sqrt(2L)."""
    size = encoder.pieces.get_piece_size()
    config = ChatGLMConfig(
        vocab_size=-(-size // 64) * 64,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        inner_hidden_size=4 * HIDDEN,
        bos_token_id=encoder.sop,
        eos_token_id=encoder.eop,
        mask_token_id=encoder.mask,
        gmask_token_id=encoder.gmask,
        pad_token_id=PAD,
    )
    torch.manual_seed(SEED)
    model = ChatGLMForConditionalGeneration(config)
    gain = (8 * LAYERS) ** -0.25
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embeddings" not in name and "lm_head" not in name:
            nn.init.xavier_normal_(parameter, 1.0 if "query_key_value" in name else gain)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02 if "lm_head" in name else 0.1)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: a short warm-up, then down to a fiftieth in a straight line."""
    return min(1.0, (step + 1) / WARMUP) * max(0.02, 1 - step / steps)


def make_optimizers(model: ChatGLMForConditionalGeneration) -> tuple[Muon, AdamW]:
    """Muon needs about half as many steps here as AdamW alone; it is made for the matrices inside the layers."""
    inner: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (inner if parameter.dim() == 2 and ".layers." in name else other).append(parameter)
    muon = Muon(inner, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95)
    return muon, AdamW(other, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def train(model: ChatGLMForConditionalGeneration, encoder: Encoder, steps: int) -> None:
    """Muon on the matrices of the layers, AdamW on the rest, with bfloat16 products over float32 weights."""
    optimizers = make_optimizers(model)
    model.train()
    began, shown = time.monotonic(), 0.0
    for step, (ids, mask, labels) in enumerate(islice(batches(encoder), steps)):
        for optimizer, peak in zip(optimizers, (MATRIX_RATE, OTHER_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(step, steps)
        with sdpa_kernel(SDPBackend.MATH):  # faster than the fused kernel on a CPU for rows as short as these
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(ids, attention_mask=mask, labels=labels).loss
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        shown += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps}  loss {shown / 50:.3f}  {time.monotonic() - began:.0f} s", flush=True)
            shown = 0.0


def save(model: ChatGLMForConditionalGeneration, folder: Path) -> None:
    """Writes model.safetensors (float16), config.json and tokenizer_config.json."""
    weights = {name: tensor.half().contiguous() for name, tensor in sorted(model.state_dict().items())}
    (folder / "model.safetensors").write_bytes(serialise(weights, metadata={"format": "pt"}))
    config = model.config
    kept = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "inner_hidden_size": config.inner_hidden_size,
        "layernorm_epsilon": config.layernorm_epsilon,
        "max_sequence_length": config.max_sequence_length,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "mask_token_id": config.mask_token_id,
        "gmask_token_id": config.gmask_token_id,
        "pad_token_id": config.pad_token_id,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "use_cache": True,
    }
    tokens = {
        "name_or_path": "tiny-chatglm",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
    }
    for name, content in (("config.json", kept), ("tokenizer_config.json", tokens)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the arguments, trains, writes."""
    parser = argparse.ArgumentParser(
        description="Pretrain tiny-chatglm; ice_text.model must lie in the folder already."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("ptuning/assets/tiny-chatglm"))
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")  # else the kernels of all shapes pile up in memory
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    encoder = Encoder(arguments.folder / "ice_text.model")
    model = new_model(encoder)
    train(model, encoder, arguments.steps)
    save(model, arguments.folder)


if __name__ == "__main__":
    main()
