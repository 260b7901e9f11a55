"""What the native kernel is handed and does not read: an exception that names it, never a crash, and nothing is changed."""

import pytest
import torch

from ptuning.core import limits
from ptuning.kernels import dispatch, native
from ptuning.kernels.packed import PackedWeight
from ptuning.kernels.screening import ScreenedWeight, fits


@pytest.fixture(autouse=True)
def kernel():
    if dispatch.start("native") is None:
        pytest.skip("no C compiler here; the reason is logged")


def weight(rows=6, columns=8, bits=4, **changes):
    data, scale = torch.zeros(rows, columns * bits // 8, dtype=torch.int8), torch.ones(rows, dtype=torch.float16)
    return PackedWeight(data, scale, bits, rows, columns)._replace(**changes)


def floats(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


PACKED = {
    "too few columns": (weight(), floats(2, 7), "inputs: .*needs torch.float32 \\[2, 8\\]"),
    "whole numbers": (weight(), floats(2, 8, dtype=torch.int64), "not in torch.int64"),
    "double": (weight(), floats(2, 8, dtype=torch.float64), "not in torch.float64"),
    "inputs elsewhere": (weight(), torch.ones(2, 8, device="meta"), "inputs: .*on meta"),
    "weight elsewhere": (weight(data=torch.empty(6, 4, dtype=torch.int8, device="meta")), floats(2, 8), "weight: .*on meta"),
    "weight of bytes without sign": (weight(data=torch.zeros(6, 4, dtype=torch.uint8)), floats(2, 8), "weight: .*uint8"),
    "claims more rows": (weight(data=torch.zeros(5, 4, dtype=torch.int8)), floats(2, 8), "weight: .*\\[6, 4\\]"),
    "claims more columns": (weight(data=torch.zeros(6, 2, dtype=torch.int8)), floats(2, 8), "weight: .*\\[6, 4\\]"),
    "columns apart": (weight(data=torch.zeros(6, 8, dtype=torch.int8)[:, ::2]), floats(2, 8), "weight: .*strides"),
    "other scales": (weight(scale=torch.ones(6)), floats(2, 8), "scale: .*needs torch.float16 \\[6\\]"),
    "too few scales": (weight(scale=torch.ones(5, dtype=torch.float16)), floats(2, 8), "scale: .*\\[6\\]"),
    "other bits": (weight(bits=8)._replace(bits=2), floats(2, 8), "INT4 .*and INT8"),
    "half a byte": (weight()._replace(columns=7), floats(2, 7), "even columns"),
    "tiles": (weight(lanes=16), floats(2, 8), "published form"),
}


@pytest.mark.parametrize("case", PACKED)
def test_products_refuse(case):
    packed, inputs, error = PACKED[case]
    with pytest.raises(ValueError, match=error):
        native.product(inputs, packed, None)


def test_a_bias_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"bias: .*\[6\]"):
        native.product(floats(2, 8), weight(), floats(5))


@pytest.mark.parametrize(
    ("packed", "gradient", "error"),
    [
        (weight(), floats(2, 7), r"gradient: .*\[2, 6\]"),
        (weight(), floats(2, 6, dtype=torch.float64), "not in torch.float64"),
        (weight(data=torch.zeros(5, 4, dtype=torch.int8)), floats(2, 6), "weight: "),
    ],
)
def test_gradients_refuse(packed, gradient, error):
    with pytest.raises(ValueError, match=error):
        native.input_gradient(gradient, packed)


@pytest.mark.parametrize(
    ("inputs", "half", "error"),
    [
        (floats(2, 7), floats(6, 8, dtype=torch.float16), "inputs: "),
        (floats(2, 8), floats(6, 8), "weight: .*float32"),
        (floats(2, 8), floats(8, 6, dtype=torch.float16).t(), "weight: .*strides"),
        (floats(2, 8), torch.ones(6, 8, dtype=torch.bfloat16, device="meta"), "weight: .*on meta"),
    ],
)
def test_half_products_refuse(inputs, half, error):
    with pytest.raises(ValueError, match=error):
        native.half_product(inputs, half)


def test_rows_of_a_weight_may_lie_apart():
    """What is not refused: a part of a larger weight."""
    whole = torch.randint(-8, 8, (6, 8), dtype=torch.int8)
    packed = weight(bits=8, data=whole, columns=8)
    apart = packed._replace(data=torch.cat((whole, whole), 1)[:, :8])
    assert torch.equal(native.product(floats(2, 8), apart, None), native.product(floats(2, 8), packed, None))


def test_scales_that_lie_apart_are_brought_together():
    packed = weight(bits=8, data=torch.ones(6, 8, dtype=torch.int8))
    spread = torch.arange(12.0).half()[::2]
    for _ in range(50):  # a copy must live as long as it is read
        assert native.product(floats(1, 8), packed._replace(scale=spread), None).tolist() == [[16.0 * i for i in range(6)]]


def test_torchs_default_dtype_does_not_matter():
    values, packed = floats(3, 8), weight(bits=8, data=torch.ones(6, 8, dtype=torch.int8))
    before = native.product(values, packed, None), native.gelu(values)
    torch.set_default_dtype(torch.float16)
    try:
        after = native.product(values, packed, None), native.gelu(values)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, before, after))


# ---- attention -----------------------------------------------------------------------------------------------------------


def attention(**changes):
    """Two rows of three slots with two heads of 16 and five columns."""
    given = {
        "fused": floats(2, 1, 96), "rotary": (floats(2, 1, 1, 16), floats(2, 1, 1, 16)), "keys": floats(3, 2, 5, 16),
        "values": floats(3, 2, 5, 16), "lengths": torch.tensor([1, 5]),
    }  # fmt: skip
    return given | changes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"lengths": torch.tensor([1, 6])}, r"lengths\[1\] is 6; a slot has 1 to 5 columns"),
        ({"lengths": torch.tensor([0, 5])}, r"lengths\[0\] is 0; "),
        ({"lengths": torch.tensor([3, -1])}, r"lengths\[1\] is -1; "),
        ({"lengths": torch.tensor([1, 2**62])}, r"lengths\[1\] is 4611686018427387904; "),
        ({"lengths": torch.tensor([1])}, r"lengths: .*\[2\]"),
        ({"lengths": torch.tensor([1, 5], dtype=torch.int32)}, "lengths: .*int32"),
        ({"lengths": torch.ones(2, dtype=torch.int64, device="meta")}, "lengths: .*on meta"),
        ({"fused": floats(2, 1, 95)}, "fused: "),
        ({"fused": floats(4, 1, 96), "lengths": torch.tensor([1] * 4)}, "3 slots .* for 4 rows"),
        ({"rotary": (floats(1, 1, 1, 16), floats(2, 1, 1, 16))}, "cosines: "),
        ({"rotary": (floats(2, 1, 1, 16), floats(2, 1, 1, 16, dtype=torch.bfloat16))}, "sines: .*bfloat16"),
        ({"keys": floats(3, 2, 5, 16, dtype=torch.float16)}, "keys: .*float16"),
        ({"keys": floats(3, 5, 2, 16).transpose(1, 2)}, "keys: .*strides"),
        ({"values": floats(3, 2, 4, 16)}, r"values: .*\[3, 2, 5, 16\]"),
        ({"keys": floats(3, 2, 5, 6), "values": floats(3, 2, 5, 6), "fused": floats(2, 1, 36)}, "head size of 6"),
    ],
)
def test_attention_refuses_and_changes_nothing(changes, error):
    given = attention(**changes)
    before = [given[name].clone() for name in ("keys", "values")]
    with pytest.raises(ValueError, match=error):
        native.attend(**given)
    assert all(map(torch.equal, before, (given["keys"], given["values"])))


def test_attention_takes_what_fits():
    assert native.attend(**attention()).mixed.shape == (2, 2, 1, 16)


# ---- screening -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def screened(monkeypatch):
    monkeypatch.setattr(limits, "MIN_SCREENED", 0)
    matrix = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    if not fits(matrix):
        pytest.skip("a CPU without AVX2")
    return ScreenedWeight(matrix)


@pytest.mark.parametrize(
    ("inputs", "k", "error"),
    [
        (floats(2, 32), 1, "inputs: "),
        (floats(2, 64, dtype=torch.float64), 1, "not in torch.float64"),
        (floats(2, 64), 41, "41 of 40 products"),
        (floats(2, 64), 0, "0 of 40 products"),
    ],
)
def test_screening_refuses(screened, inputs, k, error):
    with pytest.raises(ValueError, match=error):
        screened.likeliest(inputs, k)


@pytest.mark.parametrize(
    ("place", "other", "error"),
    [
        (0, torch.zeros(40, 64, dtype=torch.int8), r"bytes of the copy: .*\[48, 64\]"),
        (1, torch.zeros(2, 48), r"factors of the copy: .*\[3, 48\]"),
        (2, torch.zeros(48, dtype=torch.int64), "sums of the copy: .*int64"),
    ],
)
def test_a_copy_of_another_size_is_refused(screened, place, other, error):
    copy = list(screened.copy)
    copy[place] = other
    with pytest.raises(ValueError, match=error):
        native.screen_copy(screened.weight, tuple(copy))
    screened.copy = tuple(copy)
    with pytest.raises(ValueError, match=error):
        screened.likeliest(floats(2, 64), 1)


@pytest.mark.parametrize(
    "matrix", [floats(40, 48), floats(40, 64, dtype=torch.float64), floats(64, 40).t(), torch.ones(40, 64, device="meta")]
)
def test_a_weight_that_cannot_be_screened_is_refused(screened, matrix):
    with pytest.raises(ValueError, match=r"cannot be screened here|weight: "):
        native.screen_copy(matrix, screened.copy)


def test_room_that_is_too_small_is_refused(screened):
    values, places = torch.empty(2, 3), torch.empty(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="in room for 50 numbers"):
        native.screen(floats(2, 64), screened.weight, screened.copy, torch.empty(50), values, places)
