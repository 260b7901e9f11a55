"""The training loss, computed where there is something to learn and nowhere else, a piece of the logits at a time.

Legend: B batch, T tokens, W positions before a label, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.core import limits
from ptuning.data.preprocess import IGNORE_INDEX
from ptuning.model.linear import Linear

_IN_THE_CACHE = 1 << 22  # bytes of logits that are turned into a gradient at a time


def target_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where something is predicted, and what.

    Args:
        labels: [B, T]; position t is predicted from t-1; -100 carries no loss.

    Returns:
        bool [B, T], True at the positions whose state predicts a label, and the labels [W] in their order.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    chosen = following != IGNORE_INDEX
    return chosen, following[chosen]


def target_loss(
    states: Tensor, targets: Tensor, head: Linear, num_items: Tensor | int | None = None, smoothing: float = 0.0
) -> Tensor:
    """Next-token cross entropy, equal to the published loss.

    Only the positions before a label are here, so logits of prompt and padding never exist; and of these only a piece at a
    time, whose gradient is taken to the states at once. For a 6B model all logits would be most of the memory. Logits are
    turned into float32 before the softmax.

    Args:
        states: [W, D] out of the backbone, at the positions of :func:`target_positions`.
        targets: [W].
        head: a linear module, [positions, D] to [positions, V].
        num_items: what to divide the sum by; None: the number of targets (the mean). A trainer gives the number of
            labels of a whole accumulation, so that its micro-batches weigh by their labels.
        smoothing: e of label smoothing, 0 or more, below 1: a target's loss is (1 - e) times its cross entropy plus e times
            the mean of -log p over the vocabulary.

    Returns:
        a float32 scalar; 0 (still attached to the graph) where there are no targets.
    """
    targets = targets.to(states.device)
    if any(weight.requires_grad for weight in head.parameters()):
        total = _cross_entropy(head(states), targets, smoothing)
    elif torch.is_grad_enabled() and states.requires_grad:
        total = _PiecewiseLoss.apply(states, targets, head, smoothing)
    else:
        total = states.new_zeros((), dtype=torch.float32)
        for piece, piece_targets in _pieces(head, states, targets):
            total += _cross_entropy(head(piece), piece_targets, smoothing)
    return total / (max(1, targets.numel()) if num_items is None else num_items)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)


def _pieces(head: Linear, states: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Equal pieces, each of at most ``limits.MAX_LOGITS_BYTES`` of logits; none where there are no targets."""
    count = -(-4 * head.out_features * len(targets) // limits.MAX_LOGITS_BYTES)
    step = -(-len(targets) // max(1, count))
    return list(zip(states.split(step), targets.split(step), strict=True)) if len(targets) else []


class _PiecewiseLoss(torch.autograd.Function):
    """Summed cross entropy of a frozen head. The gradient to the states is made in forward, piece by piece: no logits wait
    for backward, and the softmax is turned into its gradient where it stands."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Linear, smoothing: float) -> Tensor:
        gradient = torch.zeros_like(states)
        total = states.new_zeros((), dtype=torch.float32)
        done = 0
        for piece, piece_targets in _pieces(head, states, targets):
            with torch.enable_grad():
                leaf = piece.detach().requires_grad_()
                logits = head(leaf)
            shares = logits.detach().float()  # in float32 the logits' own memory: a linear's backward does not need them
            total += _softmax_gradient(shares, piece_targets, smoothing)
            gradient[done : done + len(piece)] = torch.autograd.grad(logits, leaf, shares.to(logits.dtype))[0]
            done += len(piece)
            del logits, shares  # otherwise they would be held while the next piece's logits are computed
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        # float16: a loss scale comes in before the gradient is rounded to its range.
        return (gradient * grad_output.float()).to(gradient.dtype), None, None, None


def _softmax_gradient(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Turn logits [W, V] in place into the gradient of their summed, smoothed cross entropy, and return that sum."""
    step = max(1, _IN_THE_CACHE // (4 * logits.shape[1])) if logits.is_cpu else len(targets)
    pieces = zip(logits.split(step), targets.split(step), strict=True)
    return torch.stack([_rows_gradient(*rows, smoothing) for rows in pieces]).sum()


def _rows_gradient(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """A row's loss is log(sum exp) - (1 - e) * (the target's logit) - e * (the mean logit)."""
    place = torch.arange(len(targets), device=targets.device)
    logits -= logits.amax(dim=-1, keepdim=True)
    target_logits = logits[place, targets]
    if smoothing:
        target_logits = (1.0 - smoothing) * target_logits + smoothing * logits.mean(dim=-1)
    sums = logits.exp_().sum(dim=-1, keepdim=True)
    logits /= sums
    if smoothing:
        logits -= smoothing / logits.shape[1]
    logits[place, targets] -= 1.0 - smoothing
    return (sums[:, 0].log() - target_logits).sum()
