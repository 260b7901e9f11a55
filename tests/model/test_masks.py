"""Masks of a batch, written out by hand."""

import pytest
import torch

from ptuning.core.errors import UserError
from ptuning.model.masks import SEES_ALL, cached_mask, published_mask, sequence_mask
from ptuning.model.positions import context_lengths

SOP, GMASK, PAD = 9, 8, 3


def prefix_lm_mask(ids, real, prefix):
    return sequence_mask(context_lengths(ids, SOP), ids, real, prefix)


def test_the_context_is_seen_by_all_and_the_answer_is_causal():
    seen = prefix_lm_mask(torch.tensor([[20, GMASK, SOP, 22]]), None, 0)
    assert seen.allowed[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert not seen.blind.any()


def test_padding_is_hidden_as_a_column_and_blind_as_a_row():
    real = torch.tensor([[False, True, True, True]])
    seen = prefix_lm_mask(torch.tensor([[PAD, GMASK, SOP, 22]]), real, 0)
    assert seen.allowed[0, 0, 1:].int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert seen.blind[0, 0, :, 0].tolist() == [True, False, False, False]


def test_every_row_sees_every_prefix_slot():
    real = torch.tensor([[False, True, True, True]])
    seen = prefix_lm_mask(torch.tensor([[PAD, GMASK, SOP, 22]]), real, 2)
    assert seen.allowed.shape == (1, 1, 4, 6)
    assert seen.allowed[..., :2].all()
    assert seen.blind is None


def test_one_new_token_without_padding_needs_no_mask():
    assert cached_mask(None, 1, 10, 3, torch.device("cpu")) == (None, None)


def test_several_new_tokens_are_causal_behind_the_cache():
    seen = cached_mask(None, 2, 4, 0, torch.device("cpu"))
    assert seen.allowed[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_the_additive_form_is_the_bool_one():
    real = torch.tensor([[False, True, True, True]])
    mask = prefix_lm_mask(torch.tensor([[PAD, GMASK, SOP, 22]]), real, 0)
    for dtype in (torch.float32, torch.float16):
        bias = mask.additive(dtype)
        assert bias.dtype == dtype
        assert torch.equal(bias == 0, mask.allowed)
        assert torch.isneginf(bias[~mask.allowed]).all()
    assert SEES_ALL.additive(torch.float32) is None


def test_the_published_mask_is_turned_and_cut_to_the_new_tokens():
    hidden = torch.tensor([[[[False, True, True], [False, False, True], [False, False, False]]]])
    assert torch.equal(published_mask(hidden, 2, 3), ~hidden[:, :, 1:])
    with pytest.raises(UserError, match="4-D attention_mask must be bool"):
        published_mask(hidden.long(), 2, 3)


def test_without_a_context_all_is_causal():
    mask = sequence_mask(torch.tensor([0]), torch.tensor([[20, 21, 22]]), None, 0)
    assert torch.equal(mask.allowed[0, 0], torch.ones(3, 3, dtype=torch.bool).tril())
