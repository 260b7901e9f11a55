"""The loss on target positions equals the loss over all positions."""

import torch
from torch.nn import functional as F

from ptuning.tuned.loss import target_loss


def test_it_equals_the_published_formula():
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 7, 8, requires_grad=True), torch.nn.Linear(8, 20, bias=False)
    labels = torch.randint(0, 20, (3, 7))
    labels[0, :4], labels[2] = -100, -100
    expected = F.cross_entropy(head(hidden)[:, :-1].reshape(-1, 20), labels[:, 1:].reshape(-1), ignore_index=-100)
    ours = target_loss(hidden, labels, head)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (ours, expected)))


def test_half_precision_logits_are_summed_in_float32():
    hidden, head = torch.randn(2, 5, 8, dtype=torch.bfloat16), torch.nn.Linear(8, 20, bias=False, dtype=torch.bfloat16)
    loss = target_loss(hidden, torch.randint(0, 20, (2, 5)), head)
    assert loss.dtype == torch.float32


def test_no_label_at_all_is_zero_and_still_has_a_gradient():
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    loss = target_loss(hidden, torch.full((1, 4), -100), torch.nn.Linear(8, 20))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
