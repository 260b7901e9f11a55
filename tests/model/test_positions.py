"""Positions and masks of a batch, written out by hand."""

import torch

from ptuning.model.positions import (
    SequenceState,
    build_position_ids,
    continue_positions,
    prefix_lm_visibility,
    step_visibility,
)

SOP, MASK, GMASK, PAD = 9, 7, 8, 3


def positions(rows, pads=None):
    real = None if pads is None else torch.tensor([[False] * pad + [True] * (len(rows[0]) - pad) for pad in pads])
    return build_position_ids(torch.tensor(rows), real, SOP, MASK, GMASK)


def test_context_counts_and_the_answer_stays_at_the_mask():
    assert positions([[20, 21, GMASK, SOP, 22, 23]]).tolist() == [[[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]]


def test_a_mask_in_the_middle_is_where_the_answer_stands():
    assert positions([[20, MASK, 21, SOP, 22]]).tolist() == [[[0, 1, 2, 1, 1], [0, 0, 0, 1, 2]]]


def test_gmask_goes_before_mask():
    assert positions([[MASK, 21, GMASK, SOP, 22]]).tolist() == [[[0, 1, 2, 2, 2], [0, 0, 0, 1, 2]]]


def test_left_padding_is_not_counted():
    rows = [[PAD, PAD, 20, GMASK, SOP, 22], [20, 21, 22, GMASK, SOP, 22]]
    assert positions(rows, [2, 0]).tolist() == [
        [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 2]],
        [[0, 1, 2, 3, 3, 3], [0, 0, 0, 0, 1, 2]],
    ]


def test_new_tokens_go_on_in_the_block():
    state = SequenceState(torch.tensor([[[2], [3]]]), None)
    assert continue_positions(state, 2).tolist() == [[[2, 2], [4, 5]]]


def test_the_context_is_seen_by_all_and_the_answer_is_causal():
    seen = prefix_lm_visibility(torch.tensor([[20, GMASK, SOP, 22]]), None, SOP, 0)
    assert seen.allowed[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert not seen.blind.any()


def test_padding_is_hidden_as_a_column_and_blind_as_a_row():
    real = torch.tensor([[False, True, True, True]])
    seen = prefix_lm_visibility(torch.tensor([[PAD, GMASK, SOP, 22]]), real, SOP, 0)
    assert seen.allowed[0, 0, 1:].int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert seen.blind[0, 0, :, 0].tolist() == [True, False, False, False]


def test_every_row_sees_every_prefix_slot():
    real = torch.tensor([[False, True, True, True]])
    seen = prefix_lm_visibility(torch.tensor([[PAD, GMASK, SOP, 22]]), real, SOP, 2)
    assert seen.allowed.shape == (1, 1, 4, 6)
    assert seen.allowed[..., :2].all()
    assert seen.blind is None


def test_one_new_token_without_padding_needs_no_mask():
    assert step_visibility(None, 1, 10, 3, torch.device("cpu")) == (None, None)


def test_several_new_tokens_are_causal_behind_the_cache():
    seen = step_visibility(None, 2, 4, 0, torch.device("cpu"))
    assert seen.allowed[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
