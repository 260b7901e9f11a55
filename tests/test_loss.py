"""The loss on target positions equals the loss over all positions."""

import pytest
import torch
from torch.nn import functional as F

from ptuning.tuned import loss as loss_module
from ptuning.tuned.loss import target_loss, target_positions


def frozen(size=20, dtype=torch.float32):
    return torch.nn.Linear(8, size, bias=False, dtype=dtype).requires_grad_(False)


def loss_of(hidden, labels, head, num_items=None):
    chosen, targets = target_positions(labels)
    return target_loss(hidden[chosen], targets, head, num_items)


def published(hidden, labels, head):
    logits = head(hidden)[:, :-1].float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


@pytest.mark.parametrize("learning", [False, True], ids=["frozen head", "learning head"])
@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_it_equals_the_published_formula(monkeypatch, pieces, learning):
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 7, 8, requires_grad=True), frozen().requires_grad_(learning)
    labels = torch.randint(0, 20, (3, 7))
    labels[0, :4], labels[2] = -100, -100
    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", 4 * 20 * 9 // pieces)
    ours, expected = loss_of(hidden, labels, head), published(hidden, labels, head)
    torch.testing.assert_close(ours, expected)
    for of in (hidden, head.weight) if learning else (hidden,):
        torch.testing.assert_close(*(torch.autograd.grad(loss, of, retain_graph=True)[0] for loss in (ours, expected)))


def test_large_logits_stay_finite():
    hidden = (torch.randn(1, 5, 8) * 1e4).requires_grad_()
    labels, head = torch.randint(0, 20, (1, 5)), frozen()
    ours, expected = loss_of(hidden, labels, head), published(hidden, labels, head)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (ours, expected)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_state_gives_a_broken_loss(value):
    hidden = torch.randn(1, 5, 8)
    hidden[0, 2, 3] = value
    hidden.requires_grad_()
    assert not torch.isfinite(loss_of(hidden, torch.randint(0, 20, (1, 5)), frozen()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    hidden, head = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True), frozen(dtype=dtype)
    labels = torch.randint(0, 20, (2, 5))
    ours, expected = loss_of(hidden, labels, head), published(hidden, labels, head)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, hidden, retain_graph=True)[0].float() for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=1e-3)


def test_a_loss_scale_reaches_the_gradient_before_float16_rounds_it():
    """Gradients below float16's range are what a trainer's loss scale is for."""
    hidden, head = torch.randn(1, 3, 8, dtype=torch.float16, requires_grad=True), frozen(dtype=torch.float16)
    loss = loss_of(hidden, torch.randint(0, 20, (1, 3)), head, num_items=10**7)
    scaled = torch.autograd.grad(loss * 65536, hidden)[0].float() / 65536
    assert 0 < scaled.abs().max() < torch.finfo(torch.float16).tiny


def test_it_is_divided_by_what_the_trainer_says():
    hidden, labels, head = torch.randn(2, 5, 8), torch.randint(0, 20, (2, 5)), frozen()
    torch.testing.assert_close(loss_of(hidden, labels, head, num_items=16), loss_of(hidden, labels, head) * 8 / 16)


def test_without_gradients_it_is_the_same():
    hidden, labels, head = torch.randn(2, 5, 8), torch.randint(0, 20, (2, 5)), frozen()
    with torch.no_grad():
        torch.testing.assert_close(loss_of(hidden, labels, head), published(hidden, labels, head))


def test_no_label_at_all_is_zero_and_still_has_a_gradient():
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    loss = loss_of(hidden, torch.full((1, 4), -100), frozen())
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
