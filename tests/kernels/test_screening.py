"""The largest products of a head without multiplying with all of it: those of the whole product, or an honest refusal."""

import pytest
import torch

from ptuning.core import limits
from ptuning.engine.head import Head
from ptuning.kernels import dispatch
from ptuning.kernels.screening import ScreenedWeight, fits

KINDS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    """Small weights are screened, too, where the library can do it at all."""
    monkeypatch.setattr(limits, "MIN_SCREENED", 0)
    if not fits(torch.zeros(16, 32)):
        pytest.skip("no C compiler, or a CPU without AVX2")


@pytest.fixture
def configured():
    yield dispatch.configure
    dispatch.configure()


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.empty(*shape).normal_(generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(weight, inputs, wanted):
    """Values are the K largest of the exact products, in falling order, and every place has its value."""
    found = ScreenedWeight(weight).likeliest(inputs, wanted)
    assert found is not None
    exact = inputs.double() @ weight.double().T
    scale = inputs.double().norm(dim=-1, keepdim=True) * weight.double().norm(dim=-1).max()
    error = 1e-6 * scale + 64 * 2.0**-149  # float32's rounding, among its smallest numbers, too
    largest = exact.topk(wanted, dim=-1).values
    assert found.values.shape == found.places.shape == largest.shape
    assert ((found.values - largest).abs() <= error).all()
    assert ((exact.gather(1, found.places) - found.values).abs() <= error).all()
    assert (found.values.diff(dim=-1) <= 0).all()
    assert all(len(set(row)) == wanted for row in found.places.tolist())
    return found


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(("outputs", "columns"), [(1, 32), (50, 32), (700, 96), (3001, 1024)])
def test_the_largest_of_the_whole_product(dtype, outputs, columns):
    weight = normal(outputs, columns, dtype=dtype)
    for rows in (1, 2, 3, 4, 5, 8, 33):
        for wanted in {1, min(7, outputs), min(50, outputs)}:
            check(weight, normal(rows, columns, seed=rows), wanted)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("of", ["activations", "rows", "columns", "both"])
def test_numbers_of_very_different_sizes(rows, of):
    """Single values a thousand times as large as the others leave little of what a byte can tell apart."""
    weight, inputs = normal(2000, 256), normal(rows, 256, seed=1)
    if of in ("activations", "both"):
        inputs[:, 7] *= 1000
    if of == "rows":
        weight[::3] *= 1e-3
        weight[5] *= 1000
    if of in ("columns", "both"):
        weight[:, 7] *= 1000
    for wanted in (1, 20):
        check(weight, inputs, wanted)


def test_rows_that_their_bytes_do_not_tell_apart():
    """Rows apart by less than a byte's step: the largest is found by float products."""
    weight = normal(1, 512).repeat(600, 1) + 1e-4 * normal(600, 512, seed=1)
    found = check(weight, normal(3, 512, seed=2), 5)
    assert len(set(found.places[:, 0].tolist())) > 1


def test_of_equal_products_the_lower_place_comes_first():
    weight = normal(40, 64)
    weight[[5, 11, 30]] = 3 * weight[[2]].sign()
    found = check(weight, weight[[5]], 3)
    assert found.places.tolist() == [[5, 11, 30]]
    assert len(set(found.values[0].tolist())) == 1


def test_a_row_that_is_not_finite_is_told_and_harms_no_other():
    weight, inputs = normal(300, 64), normal(4, 64, seed=1)
    alone = ScreenedWeight(weight).likeliest(inputs, 2)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = inputs.clone()
        broken[2, 60] = bad
        found = ScreenedWeight(weight).likeliest(broken, 2)
        assert torch.isnan(found.values[2]).all()
        for row in (0, 1, 3):
            assert torch.equal(found.values[row], alone.values[row])
            assert torch.equal(found.places[row], alone.places[row])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_weight_that_cannot_be_bounded_is_multiplied_whole(bad):
    weight = normal(300, 64)
    weight[123, 5] = bad
    made = ScreenedWeight(weight)
    assert not made.usable
    assert made.likeliest(normal(1, 64), 1) is None


def test_activations_too_large_to_be_bounded_are_multiplied_whole():
    assert ScreenedWeight(normal(300, 64)).likeliest(1e20 * normal(2, 64), 1) is None


def test_where_all_rows_are_alike_nothing_is_screened():
    """More than 4096 rows could be the largest."""
    assert ScreenedWeight(torch.ones(9000, 32)).likeliest(torch.ones(1, 32), 1) is None
    found = ScreenedWeight(torch.zeros(300, 32)).likeliest(normal(2, 32), 2)
    assert found.places.tolist() == [[0, 1]] * 2


@pytest.mark.parametrize("tiny", [1e-30, 1e-42])
def test_numbers_whose_squares_vanish(tiny):
    weight = normal(300, 64)
    weight[::2] *= tiny
    check(weight, normal(2, 64, seed=3), 3)
    check(tiny * normal(30, 64), normal(2, 64, seed=3), 1)
    check(normal(30, 64), tiny * normal(2, 64, seed=3), 1)


def test_what_is_screened():
    assert fits(normal(40, 64))
    assert fits(normal(40, 64, dtype=torch.float16))
    assert not fits(normal(40, 48))
    assert not fits(torch.zeros(40, 64, dtype=torch.int8))
    assert not fits(normal(64, 40).T)


def test_small_weights_are_not(monkeypatch):
    monkeypatch.undo()
    assert not fits(normal(1000, 1024))
    assert fits(normal(8192, 512))


def test_no_kernel_no_screening(configured):
    configured(kernel="reference")
    assert not fits(normal(40, 64))


class Wants:
    """A choice of the likeliest token that tells which way it was asked."""

    wanted = 1

    def __init__(self):
        self.ways = []

    def choose(self, logits):
        self.ways.append("all")
        return logits.argmax(-1)

    def choose_among(self, values, tokens):
        self.ways.append("some")
        return tokens[:, 0]


def head_of(weight):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return Head(linear)


def test_a_head_of_half_precision_takes_memory_only_where_it_is_allowed(configured):
    weight, inputs = normal(300, 64, dtype=torch.float16), normal(2, 64, seed=1)
    configured(memory="lean")
    head, choice = head_of(weight), Wants()
    head.linear = lambda states: states @ weight.float().T
    head.linear.weight = weight
    head.choose(choice, inputs)
    configured(memory="fast:0.0000191")  # 19,100 bytes; the copy takes 19,200
    head._looked = False
    head.choose(choice, inputs)
    configured(memory="fast:0.001")
    before = dispatch.RESIDENT.taken
    head._looked = False
    tokens = head.choose(choice, inputs)
    assert choice.ways == ["all", "all", "some"]
    assert tokens.tolist() == (inputs @ weight.float().T).argmax(-1).tolist()
    assert dispatch.RESIDENT.taken == before + 300 * 64
    del head
    assert dispatch.RESIDENT.taken == before


def test_a_head_that_is_never_told_apart_is_given_up():
    head, choice = head_of(torch.ones(9000, 32)), Wants()
    for _ in range(6):
        head.choose(choice, torch.ones(1, 32))
    assert choice.ways == ["all"] * 6
    assert head._copy is None


def test_other_dtypes_go_through_the_whole_head():
    head, choice = head_of(normal(300, 64, dtype=torch.bfloat16)), Wants()
    head.choose(choice, normal(2, 64, dtype=torch.bfloat16))
    assert choice.ways == ["all"]
