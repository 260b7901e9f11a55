"""Head and embedding in half precision under wider activations."""

import pytest
import torch
from checkpoints import make_checkpoint

import ptuning
from ptuning.kernels import dispatch
from ptuning.model.half_storage import HalfEmbedding, HalfLinear


@pytest.fixture(params=["auto", "cpu"])
def kernel(request, monkeypatch):
    """Both ways of few rows, where both are there."""
    monkeypatch.setenv(dispatch.KERNEL_VARIABLE, request.param)
    dispatch.configure()
    yield request.param
    dispatch._configured.clear()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_product_and_gradient(kernel, stored, wide, rows, monkeypatch):
    monkeypatch.setattr("ptuning.core.limits.MAX_WIDENED", 1 << 9)  # several pieces
    torch.manual_seed(0)
    made = HalfLinear(64, 50, bias=False).to(stored).requires_grad_(False)
    inputs = torch.randn(rows, 64).to(wide).requires_grad_()
    out = made(inputs)
    weight = made.weight.double()
    assert out.dtype == wide
    closeness = {torch.float32: 2e-6, torch.float16: 2**-9, torch.bfloat16: 2**-7}[wide]
    torch.testing.assert_close(out.double(), inputs.double() @ weight.t(), rtol=closeness, atol=closeness)
    gradient = torch.randn(rows, 50).to(wide)
    out.backward(gradient)
    torch.testing.assert_close(inputs.grad.double(), gradient.double() @ weight, rtol=closeness, atol=closeness * 8)
    assert made.weight.grad is None


def test_a_quantised_model_keeps_the_head_as_it_is_stored(kernel, tmp_path):
    folder = make_checkpoint(tmp_path / "m", dtype=torch.float16)
    model = ptuning.load_model(folder, quantization_bit=4, device="cpu", dtype="float32")
    head, embedding = model.lm_head, model.transformer.word_embeddings
    assert isinstance(head, HalfLinear)
    assert isinstance(embedding, HalfEmbedding)
    assert head.weight.dtype == embedding.weight.dtype == torch.float16
    assert model.dtype == torch.float32
    ids = torch.tensor([[100, 101, model.config.gmask_token_id, model.config.bos_token_id]])
    with torch.no_grad():
        logits = model(ids).logits
        wide = ptuning.load_model(folder, quantization_bit=4, device="cpu", dtype="float32").float()
        assert wide.lm_head.weight.dtype == torch.float32
        torch.testing.assert_close(logits, wide(ids).logits, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = ptuning.load_model(tmp_path / "saved", device="cpu", dtype="float32")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
