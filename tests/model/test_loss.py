"""The loss on target positions equals the loss over all positions."""

import pytest
import torch
from torch.nn import functional as F

from ptuning.core import limits
from ptuning.model.loss import target_loss, target_positions


def frozen(size=20, dtype=torch.float32):
    return torch.nn.Linear(8, size, bias=False, dtype=dtype).requires_grad_(False)


def loss_of(hidden, labels, head, num_items=None, smoothing=0.0):
    chosen, targets = target_positions(labels)
    return target_loss(hidden[chosen], targets, head, num_items, smoothing)


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
    monkeypatch.setattr(limits, "MAX_LOGITS_BYTES", 4 * 20 * 9 // pieces)
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


def smoothed(hidden, labels, head, smoothing, num_items=None):
    """Label smoothing as transformers defines it, of the positions that predict something."""
    scores = -torch.log_softmax(head(hidden)[:, :-1].float(), dim=-1)
    wanted = labels[:, 1:]
    there = wanted != -100
    exact = scores.gather(-1, wanted.clamp(min=0)[..., None])[..., 0][there].sum()
    even = scores.mean(dim=-1)[there].sum()
    return ((1 - smoothing) * exact + smoothing * even) / (there.sum() if num_items is None else num_items)


@pytest.mark.parametrize("learning", [False, True], ids=["frozen head", "learning head"])
@pytest.mark.parametrize("pieces", [1, 3, 100])
@pytest.mark.parametrize(("smoothing", "num_items"), [(0.1, None), (0.99, None), (1e-9, None), (0.3, 37)])
def test_smoothed_labels_equal_the_formula(monkeypatch, pieces, learning, smoothing, num_items):
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 7, 8, requires_grad=True), frozen().requires_grad_(learning)
    labels = torch.randint(0, 20, (3, 7))
    labels[0, :4], labels[2] = -100, -100
    monkeypatch.setattr(limits, "MAX_LOGITS_BYTES", 4 * 20 * 9 // pieces)
    ours = loss_of(hidden, labels, head, num_items, smoothing)
    expected = smoothed(hidden, labels, head, smoothing, num_items)
    torch.testing.assert_close(ours, expected)
    for of in (hidden, head.weight) if learning else (hidden,):
        torch.testing.assert_close(*(torch.autograd.grad(loss, of, retain_graph=True)[0] for loss in (ours, expected)))
    with torch.no_grad():
        torch.testing.assert_close(loss_of(hidden, labels, head, num_items, smoothing), expected)


def test_almost_no_smoothing_is_no_smoothing():
    hidden, labels, head = torch.randn(2, 9, 8, requires_grad=True), torch.randint(0, 20, (2, 9)), frozen()
    losses = loss_of(hidden, labels, head, smoothing=1e-9), loss_of(hidden, labels, head)
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in losses), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_labels_are_smoothed_in_float32(dtype):
    hidden, head = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True), frozen(dtype=dtype)
    labels = torch.randint(0, 20, (2, 5))
    ours, expected = loss_of(hidden, labels, head, smoothing=0.2), smoothed(hidden, labels, head, 0.2)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, hidden, retain_graph=True)[0].float() for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=1e-3)


def test_a_vocabulary_like_the_large_one_is_smoothed_exactly():
    """Many rows and tokens: the pieces that are turned into gradients are smaller than those that are multiplied."""
    torch.manual_seed(1)
    hidden, head = torch.randn(1, 70, 8, requires_grad=True), frozen(40_000)
    labels = torch.randint(0, 40_000, (1, 70))
    ours, expected = loss_of(hidden, labels, head, smoothing=0.1), smoothed(hidden, labels, head, 0.1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (ours, expected)))
