"""The prefix encoder: layout, dtype, dropout."""

import dataclasses

import pytest
import torch

from ptuning.model.prefix_encoder import PrefixConfig, PrefixEncoder

CONFIG = PrefixConfig(pre_seq_len=3, projection=False, num_layers=2, num_attention_heads=2, hidden_size=8)


def test_layout_is_slot_then_layer_then_key_or_value_then_head():
    encoder = PrefixEncoder(CONFIG).eval()
    numbered = torch.arange(3 * 2 * 2 * 8).float().view(3, 32)
    encoder.embedding.weight.data.copy_(numbered)
    pairs = encoder(torch.float32)
    assert len(pairs) == 2
    for layer, pair in enumerate(pairs):
        for which, tensor in enumerate(pair):
            assert tensor.shape == (1, 2, 3, 4)
            for slot in range(3):
                for head in range(2):
                    start = (2 * layer + which) * 8 + head * 4
                    assert torch.equal(tensor[0, head, slot], numbered[slot, start : start + 4])


@pytest.mark.parametrize("projection", [False, True])
def test_it_stays_float32_and_moves_with_its_model(projection):
    encoder = PrefixEncoder(dataclasses.replace(CONFIG, projection=projection))
    for change in (encoder.half, encoder.bfloat16, lambda: encoder.to(torch.float16), encoder.float):
        change()
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert encoder(torch.bfloat16)[0][0].dtype == torch.bfloat16
    assert next(encoder.to("meta").parameters()).device.type == "meta"


def test_autocast_does_not_round_the_projection():
    encoder = PrefixEncoder(dataclasses.replace(CONFIG, projection=True)).eval()
    with torch.no_grad():
        plain = encoder(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = encoder(torch.float32)
    assert all(torch.equal(a, b) for p, c in zip(plain, cast, strict=True) for a, b in zip(p, c, strict=True))


def test_dropout_acts_in_training_only():
    encoder = PrefixEncoder(dataclasses.replace(CONFIG, dropout=0.5))
    torch.manual_seed(0)
    keys = torch.cat([key.flatten() for key, _ in encoder.train()(torch.float32)])
    dropped = (keys == 0).float().mean().item()
    assert 0.2 < dropped < 0.8
    whole = torch.cat([key.flatten() for key, _ in encoder.eval()(torch.float32)])
    assert (whole != 0).all()
    kept = keys != 0
    torch.testing.assert_close(keys[kept], 2 * whole[kept])


def test_it_counts_as_fresh_until_trained_or_loaded():
    encoder = PrefixEncoder(CONFIG)
    encoder.eval()(torch.float32)
    assert encoder.fresh
    encoder.train()(torch.float32)
    assert not encoder.fresh
    loaded = PrefixEncoder(CONFIG)
    loaded.load_state_dict(encoder.state_dict())
    assert not loaded.fresh
