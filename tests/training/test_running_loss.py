"""Means of the loss between log lines, and after a resume."""

import json

import torch

from ptuning.training.running_loss import RunningLoss


def test_a_state_that_went_through_json_goes_on_exactly():
    torch.manual_seed(0)
    losses = torch.rand(20, dtype=torch.float32) * 7
    whole, halves = RunningLoss(), RunningLoss()
    seen = []
    for step, loss in enumerate(losses, 1):
        whole.add(loss)
        halves.add(loss)
        if step == 13:
            halves = RunningLoss(json.loads(json.dumps(halves.state())))
        if step % 5 == 0:
            seen.append((whole.drain(step), halves.drain(step)))
    assert all(one == other for one, other in seen)
    torch.testing.assert_close(seen[1][0], losses[5:10].mean().item(), rtol=1e-6, atol=0)
    assert whole.whole_mean(20) == halves.whole_mean(20)
    torch.testing.assert_close(whole.whole_mean(20), losses.mean().item(), rtol=1e-6, atol=0)
