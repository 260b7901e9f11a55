"""Positions of a batch, written out by hand."""

import torch

from ptuning.model.positions import advance, build_position_ids, continue_positions

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
    assert continue_positions(torch.tensor([[[2], [3]]]), (0, 1), 2).tolist() == [[[2, 2], [4, 5]]]


def test_positions_of_running_rows_move_on_in_place():
    standing = torch.tensor([[2, 3], [7, 1]])
    advance(standing[1:], (0, 1))
    assert standing.tolist() == [[2, 3], [7, 2]]
    advance(standing, (1, 0))
    assert standing.tolist() == [[3, 3], [8, 2]]
