"""``ptuning.load_model``: from a name to something that answers."""

from __future__ import annotations

import os

import torch

from ptuning.checkpoint import load
from ptuning.engine.chat_model import ChatGLMForConditionalGeneration


def load_model(
    path: str | os.PathLike[str],
    *,
    ptuning_checkpoint: str | os.PathLike[str] | None = None,
    quantization_bit: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> ChatGLMForConditionalGeneration:
    """Load a ChatGLM-6B model, with a prefix where one is given.

    Args:
        path: folder or hub name of the model, ``tiny-chatglm``, or a prefix checkpoint that names its base model.
        ptuning_checkpoint: prefix checkpoint: ours, the published ``pytorch_model.bin``, or a PEFT adapter folder.
        quantization_bit: 4 or 8 quantises float weights while they are read; None or 0 keeps what the checkpoint holds.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps``; None or ``auto`` takes the best there is.
        dtype: ``float32``, ``float16``, ``bfloat16``; None or ``auto`` is the checkpoint's own. On a CPU, where float16
            products are an order slower, float16 becomes float32, or bfloat16 for a quantised model where that is
            faster (see :func:`ptuning.checkpoint.load.cpu_dtype`).
        pre_seq_len: without a checkpoint, a new prefix of so many tokens, to be trained; with one, held against the file.
        prefix_projection: likewise.
        revision: branch, tag or commit on the hub; ``cache_dir``, ``token`` and ``local_files_only`` as transformers'.

    Returns:
        the model in eval mode; only its prefix (if any) is trainable.

    Raises:
        UserError: one clear message for every folder, file or flag that does not fit, before weights are read.
    """
    return load.load_model(
        ChatGLMForConditionalGeneration, path, ptuning_checkpoint=ptuning_checkpoint, quantization_bit=quantization_bit,
        device=device, dtype=dtype, pre_seq_len=pre_seq_len, prefix_projection=prefix_projection, revision=revision,
        cache_dir=cache_dir, token=token, local_files_only=local_files_only,
    )  # fmt: skip
