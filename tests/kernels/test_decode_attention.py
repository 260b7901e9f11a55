"""The native attention of one new token of every row: what torch turns and attends to, over the row's own columns."""

import pytest
import torch

from ptuning.engine.prefix_attention import attention_with_sum
from ptuning.kernels import dispatch, native
from ptuning.model.rotary import apply_rotary, rotary_table


@pytest.fixture(autouse=True)
def kernel():
    if dispatch.start("native") is None:
        pytest.skip("no C compiler here; the reason is logged")


def slots(rows, heads, columns, size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    made = (torch.empty(rows, heads, columns, size).normal_(generator=draw) for _ in range(2))
    return torch.empty(rows, heads, 1, size).normal_(generator=draw), *made


def attend(query, keys, values, lengths, rotary=None):
    """The kernel where the last column of every row is the new token's, which it puts there itself."""
    rows, heads, _, size = query.shape
    last = torch.tensor(lengths) - 1
    at = (torch.arange(rows), slice(None), last)
    fused = torch.stack((query[:, :, 0], keys[at], values[at]), dim=2).reshape(rows, 1, 3 * heads * size)
    keys, values = keys.clone(), values.clone()
    keys[at] = values[at] = torch.nan
    rotary = rotary or (torch.ones(rows, 1, 1, size), torch.zeros(rows, 1, 1, size))
    made = native.attend(fused, rotary, keys, values, torch.tensor(lengths))
    return made, keys, values


def wanted(query, keys, values, lengths):
    parts = [
        attention_with_sum(query[[row]].double(), keys[[row], :, :length].double(), values[[row], :, :length].double(), None)
        for row, length in enumerate(lengths)
    ]
    return torch.cat([mixed for mixed, _ in parts]), torch.cat([total for _, total in parts])


@pytest.mark.parametrize(
    ("heads", "size", "columns", "lengths"),
    [
        (1, 16, 4, [1]),
        (2, 32, 9, [1, 9, 4, 7]),
        (3, 80, 70, [70, 3, 31]),
        (4, 64, 256, [256, 255, 8]),
        (2, 128, 700, [257, 700, 512, 1, 300]),
        (1, 256, 40, [40]),
    ],
)
@pytest.mark.parametrize("loud", [1.0, 12.0])
def test_attention_over_the_columns_of_every_row(heads, size, columns, lengths, loud):
    query, keys, values = slots(len(lengths) + 2, heads, columns, size)
    query = loud * query[: len(lengths)]
    (turned, mixed, sums), _, _ = attend(query, keys, values, lengths)
    assert torch.equal(turned, query)
    right, right_sums = wanted(query, keys, values, lengths)
    assert mixed.shape == query.shape
    assert sums.shape == query.shape[:3]
    torch.testing.assert_close(mixed.double(), right, rtol=1e-5, atol=2e-6 * loud)
    torch.testing.assert_close(sums.double(), right_sums, rtol=1e-6, atol=2e-6 * loud)


@pytest.mark.parametrize("size", [16, 64, 80])
def test_the_new_token_is_turned_and_put_in_its_place(size):
    """Each row by its own position; the columns before it stay as they are."""
    query, keys, values = slots(3, 2, 20, size)
    lengths = [1, 20, 7]
    rotary = rotary_table(torch.tensor([[5, 1], [40, 0], [0, 17]])[:, :, None], size)
    (turned, mixed, _), made_keys, made_values = attend(query, keys, values, lengths, rotary)
    torch.testing.assert_close(turned, apply_rotary(query, *rotary), rtol=1e-6, atol=1e-6)
    for row, length in enumerate(lengths):
        own = [table[[row]] for table in rotary]
        new = apply_rotary(keys[[row], :, length - 1 : length], *own)
        torch.testing.assert_close(made_keys[[row], :, length - 1 : length], new, rtol=1e-6, atol=1e-6)
        assert torch.equal(made_values[row], values[row])
        for kept in (slice(0, length - 1), slice(length, None)):
            assert torch.equal(made_keys[row, :, kept], keys[row, :, kept])
    right, _ = wanted(turned, made_keys, made_values, lengths)
    torch.testing.assert_close(mixed.double(), right, rtol=1e-5, atol=2e-6)


def test_what_stands_behind_a_row_is_not_looked_at():
    query, keys, values = slots(2, 2, 30, 32)
    clean, _, _ = attend(query, keys, values, [10, 30])
    keys[0, :, 10:], values[0, :, 10:] = torch.nan, torch.inf
    for made, before in zip(attend(query, keys, values, [10, 30])[0], clean, strict=True):
        assert torch.equal(made, before)


@pytest.mark.parametrize("where", ["query", "keys", "values"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 299])
def test_numbers_that_are_not_finite_show_in_their_row_alone(where, bad, column):
    query, keys, values = slots(2, 2, 300, 32)
    clean = attend(query, keys, values, [300, 300])[0].mixed
    {"query": query[0, 1, 0], "keys": keys[0, 1, column], "values": values[0, 1, column]}[where][5] = bad
    mixed = attend(query, keys, values, [300, 300])[0].mixed
    assert not torch.isfinite(mixed[0, 1]).all()
    assert torch.equal(mixed[1], clean[1])
    assert torch.equal(mixed[0, 0], clean[0, 0])


def test_scores_far_apart_vanish():
    """A score of a hundred below the highest weighs nothing, and nothing underflows to nonsense."""
    query, keys, values = torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 600, 16), torch.ones(1, 1, 600, 16)
    keys[0, 0, 450] = 1000.0
    values[0, 0, 450] = 5.0
    (_, mixed, sums), _, _ = attend(query, keys, values, [600])
    assert mixed.flatten().tolist() == [5.0] * 16
    assert sums.item() == 4000.0


def test_sizes_that_it_takes():
    assert native.attends(64)
    assert native.attends(256)
    assert not native.attends(257)
    assert not native.attends(512)
    assert not native.attends(2)
