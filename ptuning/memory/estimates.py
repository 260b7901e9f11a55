"""How much memory a model needs, from its sizes alone: weights, prefix, optimiser, activations, cache.

Legend: B batch, T tokens of a row, P prefix slots, L layers, N heads, D hidden, I inner size, V vocabulary, s bytes of an
activation (2 or 4), n = 2LDP numbers in the keys and values of a prefix, m trained numbers (n without projection).

**Weights.** A block has 4D^2 + 2DI weights in its linears, stored in 4, 2, 1 or 1/2 bytes, for the quantised ones 2 bytes
of scale per output row, and 3D + D + I + D numbers of bias and 4D of layer norms, in s bytes. Embedding and head have VD
each. The published INT4 file keeps one storage for both.

**Prefix.** Trained in float32: 4m for the numbers, 4m for gradients, 8m for AdamW's two moments. Its keys and values take
sn; dropout keeps a mask of n bytes.

**Activations that wait for backward**, per layer (frozen weights, so a linear keeps nothing):
inputs of the two layer norms, rotated queries and the output of attention, 4sBTD; the input of GELU, sBTI; keys and values
with the prefix in front, 2sB(P+T)D; the mask as attention wants it, sBT(P+T). With gradient checkpointing only a layer's
input stays, sBTD; while one layer is recomputed, its activations and the prefix itself (sn) are there.

**Loss.** Logits exist for target tokens only, at most R a row, and of these as many at a time as make 128 MB in float32, W:
4WV, which become their own gradient; beside them a half-precision model has them and their gradient in its dtype, 2sWV.

**When the peak comes.** Either when backward begins (activations, loss, and the gradients of the earlier micro-steps), or
when it ends and all gradients of the prefix come together: the gradients per layer and the same stacked, 2sn, or the
stacked ones in float32 and after dropout, 8n. AdamW itself is fused and needs nothing more.

**Answering.** Keys and values of all tokens so far, 2sLBTD; those of the prefix once, sn; the widest moment of one layer,
either while the prompt is read or at the last token; logits of one position in several float32 copies, 28BV; where the
native kernel screens a float32 head, the head once more in bytes, VD.

**The allocator.** On a CPU, glibc keeps freed pieces of less than 32 MB: 0.7 of what comes and goes, as measured. A
quantised model has it give back pieces from 0.5 MB on (ptuning.kernels.allocator); without what it keeps, the other parts
add up to what is measured.

Not counted: Python and its libraries (about 0.5 GB on a CPU, 0.5 GB of driver context on a GPU).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ptuning.core import limits
from ptuning.core.errors import UserError
from ptuning.methods.method import TuningCost
from ptuning.model.sizes import ModelSizes

_KEPT_SHARE = 0.7
"""Of pieces that are freed, glibc keeps so much, and nothing of those that it always returns (ptuning.core.limits)."""


@dataclass(frozen=True)
class Storage:
    """How a model lies in memory.

    Attributes:
        bits: 0 (float), 4 or 8.
        embeddings: whether embedding and head are quantised too.
        float_bytes: s, of a float weight and of an activation, 2 or 4.
        shared_head: whether the head is the embedding's storage.
        device: ``cpu`` or an accelerator.
        table_bytes: of a number of a float embedding or head, where these stay as stored while the rest is wider; 0: s.
        native: whether the native kernel multiplies (CPU).
    """

    bits: int = 0
    embeddings: bool = False
    float_bytes: int = 4
    shared_head: bool = False
    device: str = "cpu"
    table_bytes: int = 0
    native: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, in the order in which a table shows them; the parts are those of the worst moment.

    Attributes:
        parts: name to bytes.
        moment: which moment that is.
    """

    parts: dict[str, int]
    moment: str
    total: int = field(init=False)

    def __post_init__(self) -> None:
        """Add the parts up."""
        object.__setattr__(self, "total", sum(self.parts.values()))


def stored_bytes(weights: int, rows: int, bits: int, float_bytes: int) -> int:
    """Bytes of a matrix: packed with a float16 scale per row, or float."""
    return weights * bits // 8 + 2 * rows if bits else weights * float_bytes


def weight_bytes(sizes: ModelSizes, storage: Storage) -> int:
    """Bytes of all weights of a backbone with its head."""
    s, hidden = storage.float_bytes, sizes.hidden_size
    block = stored_bytes(sizes.linear_weights, sizes.linear_rows, storage.bits, s)
    block += (sizes.linear_rows + 4 * hidden) * s
    bits = storage.bits if storage.embeddings else 0
    table = stored_bytes(sizes.embedding_weights, sizes.vocab_size, bits, storage.table_bytes or s)
    return sizes.num_layers * block + (1 if storage.shared_head else 2) * table + 2 * hidden * s


def head_is_shared(sizes: ModelSizes, storage: Storage, file_bytes: int | None) -> bool:
    """Whether weight files of this size can only be those of a model whose head is its embedding.

    Args:
        sizes: of the model.
        storage: as it lies in the files (float16 or the dtype of ``config.json``).
        file_bytes: size of all weight files; None where they are not here.
    """
    if not file_bytes:
        return False
    bits = storage.bits if storage.embeddings else 0
    table = stored_bytes(sizes.embedding_weights, sizes.vocab_size, bits, storage.float_bytes)
    return file_bytes < weight_bytes(sizes, storage) - table // 2


def loading_bytes(sizes: ModelSizes, storage: Storage, source_bits: int, source_float_bytes: int = 2) -> int:
    """Bytes that loading needs beside the weights that are loaded already: the tensor that is being read."""
    table = stored_bytes(
        sizes.embedding_weights, sizes.vocab_size, source_bits if storage.embeddings else 0, source_float_bytes
    )
    linear = stored_bytes(sizes.largest_linear, sizes.hidden_size, source_bits, source_float_bytes)
    rounding = 0
    if storage.bits and not source_bits:
        largest = sizes.embedding_weights if storage.embeddings else sizes.largest_linear
        rounding = 4 * limits.ROUNDED_COPIES * min(limits.MAX_ROUNDED, largest)
    return max(table + (rounding if storage.embeddings else 0), linear + rounding)


def answering_memory(
    sizes: ModelSizes, storage: Storage, tuned: TuningCost, *, batch: int, length: int, prompt: int | None = None
) -> MemoryEstimate:
    """Memory of ``generate``.

    Args:
        sizes: of the backbone.
        storage: of the backbone.
        tuned: of what is attached; of nothing, where nothing is.
        batch: B, rows answered at a time.
        length: T, tokens of prompt and answer together.
        prompt: tokens of the prompt; None: all of them.
    """
    _positive(batch_size=batch, max_length=length)
    s, hidden = storage.float_bytes, sizes.hidden_size
    tokens = length if prompt is None else min(prompt, length)
    read, per_token = batch * tokens, 2 * s * batch * hidden
    # One block reading the prompt: attention (float32 copies while turning), or the MLP around GELU; and its residual.
    attention = read * hidden * (4 * s + 12) + per_token * (tuned.slots + tokens)
    mlp = 2 * s * read * sizes.inner_hidden_size
    reading = {
        "activations": max(attention, mlp) + 3 * s * read * hidden,
        "cache": sizes.num_layers * per_token * tokens,
        "unpacking": unpacking_bytes(sizes, storage, "product", read),
    }
    # One block at the last token: keys and values once more with the new ones, and with those of the slots.
    stepping = {
        "activations": per_token * (length + tuned.slots),
        "cache": sizes.num_layers * per_token * length,
        "unpacking": unpacking_bytes(sizes, storage, "product", batch),
    }
    worst = max(reading, stepping, key=lambda parts: sum(parts.values())) | {"logits": 28 * batch * sizes.vocab_size}
    weights = weight_bytes(sizes, storage) + screening_bytes(sizes, storage)
    fixed = {"weights": weights, tuned.noun: 4 * tuned.trained + s * tuned.states}
    passing = {name: size for name, size in worst.items() if name != "cache"}
    kept = kept_by_allocator(storage, passing, s * read * sizes.inner_hidden_size, 4 * batch * sizes.vocab_size, sizes)
    return MemoryEstimate(fixed | worst | {"allocator": kept}, "answering")


def tuning_memory(
    sizes: ModelSizes,
    storage: Storage,
    tuned: TuningCost,
    *,
    batch: int,
    source: int,
    target: int,
    accumulation: int = 1,
    checkpointing: bool = False,
) -> MemoryEstimate:
    """Memory of tuning with AdamW over a frozen backbone, at its worst moment.

    Args:
        sizes: of the backbone.
        storage: of the backbone.
        tuned: to be trained.
        batch: B, rows of one micro-step.
        source: tokens of a prompt (max_source_length).
        target: R, tokens of a reply (max_target_length).
        accumulation: micro-steps of an optimiser step.
        checkpointing: gradient checkpointing.
    """
    _positive(per_device_train_batch_size=batch, max_source_length=source, max_target_length=target)
    if tuned.trained < 1:
        raise UserError(tuned.missing)
    s, hidden, layers = storage.float_bytes, sizes.hidden_size, sizes.num_layers
    states, trained = tuned.states, tuned.trained
    rows, seen = batch * (source + target), batch * (tuned.slots + source + target)
    kept = s * (rows * (4 * hidden + sizes.inner_hidden_size) + 2 * seen * hidden + rows * seen // batch)
    outputs = 4 * states if tuned.projected else 0  # of the projection, in float32
    activations = layers * s * rows * hidden + kept + s * states if checkpointing else layers * kept
    passing = 3 * s * rows * sizes.inner_hidden_size  # around GELU, forwards or backwards
    loss = logits_bytes(batch * target, sizes.vocab_size, s) + head_bytes(sizes, storage, batch * target)
    at_start = {"activations": activations + states + outputs + s * states, "logits and loss": loss}
    at_end = {"activations": states + outputs + passing + max(2 * s, 8) * states, "logits and loss": 0}
    fixed = {
        "weights": weight_bytes(sizes, storage),
        tuned.noun: 4 * trained,
        "gradients": 4 * trained if accumulation > 1 else 0,
        "optimiser": 8 * trained,
        "unpacking": unpacking_bytes(sizes, storage, "gradient", rows),
    }
    worst, moment = max(
        ((at_start, "when backward begins"), (at_end, f"when the {tuned.noun} gets its gradient")),
        key=lambda pair: sum(pair[0].values()),
    )
    passes = worst | {"unpacking": fixed["unpacking"]}
    computed = rows - batch  # nothing is after the last label
    kept_back = kept_by_allocator(
        storage, passes, s * computed * sizes.inner_hidden_size, min(loss, 4 * batch * target * sizes.vocab_size), sizes
    )
    return MemoryEstimate(fixed | worst | {"allocator": kept_back}, moment)


def logits_bytes(targets: int, vocabulary: int, float_bytes: int) -> int:
    """What the loss of so many target tokens holds at a time: equal pieces of their logits, in float32 and in s bytes."""
    pieces = -(-4 * vocabulary * targets // limits.MAX_LOGITS_BYTES)
    beside = 2 * float_bytes if float_bytes < 4 else 0
    return -(-targets // pieces) * vocabulary * (4 + beside)


def head_bytes(sizes: ModelSizes, storage: Storage, targets: int) -> int:
    """What a half-precision head holds on a CPU while it multiplies: a piece of it in float32, and what came of that."""
    if storage.device != "cpu" or not storage.bits or storage.embeddings:
        return 0
    rows = min(sizes.vocab_size, max(1, limits.MAX_WIDENED // sizes.hidden_size))
    return 4 * rows * (sizes.hidden_size + min(targets, limits.MAX_LOGITS_BYTES // (4 * sizes.vocab_size)))


def screening_bytes(sizes: ModelSizes, storage: Storage) -> int:
    """The copy of a float32 head in bytes with which a CPU finds the likeliest tokens (ptuning.kernels.screening)."""
    wide = storage.float_bytes == 4 and (storage.table_bytes or 4) == 4 and not (storage.bits and storage.embeddings)
    screened = storage.device == "cpu" and storage.native and wide and sizes.embedding_weights >= limits.MIN_SCREENED
    return sizes.embedding_weights if screened else 0


def kept_by_allocator(
    storage: Storage, passing: Mapping[str, int], largest_activation: int, largest_logits: int, sizes: ModelSizes
) -> int:
    """What a CPU's allocator keeps of parts that come and go.

    Args:
        storage: of the backbone; its device and whether it is quantised count.
        passing: name to bytes.
        largest_activation: bytes of the largest single tensor among the activations, [B, T, I].
        largest_logits: likewise among the logits.
        sizes: of the backbone.
    """
    if storage.device != "cpu":
        return 0
    limit, activation = limits.MIN_RETURNED_BYTES, largest_activation
    if storage.bits:  # most activations are [B, T, D]
        limit, activation = limits.MIN_RETURNED_BYTES_LEAN, largest_activation * sizes.hidden_size // sizes.inner_hidden_size
    pieces = {"activations": activation, "unpacking": 4 * largest_activation // storage.float_bytes}
    returned = {name for name in passing if pieces.get(name, largest_logits) >= limit}
    return int(_KEPT_SHARE * sum(size for name, size in passing.items() if name not in returned))


def unpacking_bytes(sizes: ModelSizes, storage: Storage, what: str, rows: int) -> int:
    """What the kernels of quantised linears hold while they multiply.

    On a CPU a few pieces; the native kernel the activations of so many rows in another order, in float32 (the widest ones
    where only one of the two [B, T, I] around GELU is left). Elsewhere one linear.
    """
    if not storage.bits:
        return 0
    if storage.device != "cpu":
        return sizes.largest_linear * storage.float_bytes
    if not storage.native:
        # A piece, its float form and what comes of it.
        return 8 * limits.MAX_UNPACKED_CPU if what == "product" else 6 * limits.MAX_UNPACKED_ACROSS_CPU
    wide = 4 if what == "gradient" else 0 if storage.float_bytes == 4 else 6  # bytes beside the two of GELU
    return rows * (wide * sizes.inner_hidden_size + 4 * sizes.hidden_size)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"--{name} {value}: must be 1 or more")
