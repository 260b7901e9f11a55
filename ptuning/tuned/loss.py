"""The training loss, computed where there is something to learn and nowhere else.

Legend: B batch, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ptuning.tuned.preprocess import IGNORE_INDEX


def target_loss(
    hidden_states: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], num_items: Tensor | int | None = None
) -> Tensor:
    """Next-token cross entropy, equal to the published loss.

    Only the positions before a label reach the head, so logits of prompt and padding never exist; for a 6B model
    they would be most of the memory. Logits are turned into float32 before the softmax.

    Args:
        hidden_states: [B, T, D] out of the backbone.
        labels: [B, T]; position t is predicted from t-1; -100 carries no loss.
        head: [positions, D] to [positions, V].
        num_items: what to divide the sum by; None: the number of labels here (the mean). A trainer gives the number of
            labels of a whole accumulation, so that its micro-batches weigh by their labels.

    Returns:
        a float32 scalar; 0 (still attached to the graph) where nothing carries a label.
    """
    wanted = labels[:, 1:].to(hidden_states.device)
    chosen = wanted != IGNORE_INDEX
    logits = head(hidden_states[:, :-1][chosen]).float()
    total = F.cross_entropy(logits, wanted[chosen], reduction="sum")
    if num_items is None:
        return total / chosen.sum().clamp_min(1)
    return total / num_items
