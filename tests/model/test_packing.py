"""Positions that nobody asks for are not computed, and the others come out as if they were."""

import pytest
import torch
from test_network import prompt, random_model

from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of


def batch(config, side, lengths=((5, 4), (9, 1), (2, 7))):
    """Rows of context and answer, padded; ids, mask, and labels on the answers' tokens."""
    rows = [prompt(config, length, answer, seed) for seed, (length, answer) in enumerate(lengths)]
    wide = max(map(len, rows))
    ids, mask, labels = (torch.full((len(rows), wide), value) for value in (3, 0, -100))
    for number, (row, (length, _)) in enumerate(zip(rows, lengths, strict=True)):
        first = 0 if side == "right" else wide - len(row)
        place = slice(first, first + len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
        labels[number, first + length + 2 : first + len(row)] = torch.tensor(row[length + 2 :])
    return ids, mask, labels


def with_prefix(model, length=3):
    torch.manual_seed(1)
    encoder = PrefixEncoder(prefix_config_of(model.config, length, False, dropout=0.0))
    encoder.fresh = False
    model.attach_prefix(encoder)
    return model


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prefix_length", [0, 3])
def test_kept_states_equal_those_of_all_positions(side, prefix_length):
    model = random_model()
    ids, mask, labels = batch(model.config, side)
    keep = labels != -100
    keep[1] = False
    prefix = with_prefix(model).prefix_key_values() if prefix_length else None
    with torch.no_grad():
        every = model.transformer(ids, mask, prefix_key_values=prefix).last_hidden_state
        some = model.transformer(ids, mask, prefix_key_values=prefix, keep=keep).last_hidden_state
    torch.testing.assert_close(some, every[keep])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_those_of_all_logits(side, checkpointing):
    model = with_prefix(random_model()).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, mask, labels = batch(model.config, side)
    weight = model.prefix_encoder.embedding.weight
    loss = model(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    ours, weight.grad = weight.grad, None
    logits = model(ids, attention_mask=mask).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, weight.grad)


def test_padding_that_no_mask_tells_of_is_left_out_as_well():
    model = random_model()
    ids, _, labels = batch(model.config, "right")
    rows = []
    model.transformer.layers[0].mlp.register_forward_hook(lambda module, given, made: rows.append(given[0].shape[0]))
    model(ids, labels=labels)
    needed = [9 + 2 - 1, 10 + 2 - 1, 9 + 2 - 1]  # the last token of a row predicts nothing
    assert rows == [sum(needed)]


def test_the_last_layer_ends_with_the_kept_positions():
    model = random_model()
    ids, mask, labels = batch(model.config, "right")
    rows = []
    model.transformer.layers[-1].mlp.register_forward_hook(lambda module, given, made: rows.append(given[0].shape[0]))
    model(ids, attention_mask=mask, labels=labels)
    assert rows == [int((labels != -100).sum())]


def test_logits_beside_a_loss_are_those_of_every_position():
    model = with_prefix(random_model())
    ids, mask, labels = batch(model.config, "right")
    with torch.no_grad():
        beside, alone = model(ids, attention_mask=mask, labels=labels), model(ids, attention_mask=mask)
        torch.testing.assert_close(beside.logits, alone.logits)
