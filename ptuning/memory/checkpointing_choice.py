"""Whether a tuning run computes its activations twice (gradient checkpointing): only where memory would not do without."""

from __future__ import annotations

from dataclasses import dataclass

from ptuning.memory.estimates import MemoryEstimate, Storage, tuning_memory
from ptuning.methods.method import TuningCost
from ptuning.model.sizes import ModelSizes, size_text

USED_SHARE = 0.85
"""Of the free memory, as much as a prediction may take; the rest is for what it misses."""


@dataclass(frozen=True)
class CheckpointingChoice:
    """What was decided.

    Attributes:
        on: whether activations are computed twice.
        message: for the user, with both figures and how to decide otherwise; None where it stays off.
    """

    on: bool
    message: str | None = None


def choose_checkpointing(
    sizes: ModelSizes,
    storage: Storage,
    tuned: TuningCost,
    *,
    batch: int,
    source: int,
    target: int,
    accumulation: int,
    free: int | None,
) -> CheckpointingChoice:
    """Decide for a model that is loaded, with what will be trained.

    It is on where a step is predicted to need more than ``USED_SHARE`` of what is free, and less with checkpointing than
    without: the worst moment may be one that checkpointing does not touch.

    Args:
        sizes: of the backbone; with ``storage``, ``tuned``, ``batch``, ``source``, ``target`` and ``accumulation`` as in
            :func:`ptuning.memory.estimates.tuning_memory`.
        storage: of the backbone.
        tuned: to be trained.
        batch: rows of one micro-step.
        source: tokens of the longest prompt.
        target: tokens of the longest reply.
        accumulation: micro-steps of an optimiser step.
        free: bytes that are free now, with the model in memory; None: unknown, and it stays off.
    """
    without, with_it = (
        _to_come(
            tuning_memory(
                sizes, storage, tuned, batch=batch, source=source, target=target, accumulation=accumulation,
                checkpointing=checkpointing,
            ),
            tuned,
        )
        for checkpointing in (False, True)
    )
    if free is None or without <= USED_SHARE * free or with_it >= without:
        return CheckpointingChoice(False)
    message = (
        f"gradient checkpointing is on: a step would need about {size_text(without)} beside the model, with it "
        f"{size_text(with_it)}, and {size_text(free)} are free. Steps take longer, gradients are the same; "
        "--gradient_checkpointing false turns it off"
    )
    if with_it > USED_SHARE * free:
        message += ". Memory may not do even so: a smaller --per_device_train_batch_size needs less"
    return CheckpointingChoice(True, message)


def _to_come(estimate: MemoryEstimate, tuned: TuningCost) -> int:
    """Bytes of an estimate that are not taken yet once the model is loaded with what will be trained."""
    return estimate.total - estimate.parts["weights"] - estimate.parts[tuned.noun]
