"""Memory that is predicted from sizes alone, against numbers of parameters and against what is measured."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from allocated import peak_bytes

from ptuning.core import limits
from ptuning.core.errors import UserError
from ptuning.kernels import allocator, cpu, screening
from ptuning.kernels.packed import PackedWeight
from ptuning.memory.estimates import (
    Storage,
    answering_memory,
    head_bytes,
    head_is_shared,
    kept_by_allocator,
    loading_bytes,
    logits_bytes,
    screening_bytes,
    tuning_memory,
    unpacking_bytes,
    weight_bytes,
)
from ptuning.methods.prefix import prefix_cost
from ptuning.model.config import ChatGLMConfig
from ptuning.model.half_storage import HalfLinear
from ptuning.model.loss import target_loss
from ptuning.model.network import ChatGLMNetwork
from ptuning.model.quantization import quantize_weight
from ptuning.model.sizes import GIB, ModelSizes, PrefixSizes, prefix_numbers

TINY = {"vocab_size": 704, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 4, "inner_hidden_size": 128}
ODD = TINY | {"hidden_size": 48, "inner_hidden_size": 64}
SIX_BILLION = ModelSizes.from_config({})
PREFIX = prefix_cost(SIX_BILLION, PrefixSizes(128))
ADGEN = {"source": 64, "target": 64, "accumulation": 16}


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("values", [TINY, ODD, {}], ids=["tiny", "odd", "6b"])
def test_weights_are_those_of_the_model(values, dtype, bits, embeddings):
    config = ChatGLMConfig(**values, quantization_bit=bits, quantization_embeddings=embeddings)
    with torch.device("meta"):
        model = ChatGLMNetwork(config).to(dtype)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    storage = Storage(bits, embeddings and bits > 0, dtype.itemsize)
    assert weight_bytes(ModelSizes.from_config(values), storage) == held


@pytest.mark.parametrize("projection", [False, True])
def test_trained_numbers_are_those_of_the_prefix(projection):
    config = ChatGLMConfig(**TINY, pre_seq_len=5, prefix_projection=projection)
    encoder = ChatGLMNetwork(config).prefix_encoder
    states, trained = prefix_numbers(ModelSizes.from_config(TINY), PrefixSizes(5, projection))
    assert trained == sum(parameter.numel() for parameter in encoder.parameters())
    assert states == sum(key.numel() + value.numel() for key, value in encoder(torch.float32))


def test_published_sizes_of_the_6b_model():
    files = {bits: weight_bytes(SIX_BILLION, Storage(bits, False, 2, shared_head=True)) for bits in (0, 4, 8)}
    assert files[0] == pytest.approx(12.3e9, rel=0.02)
    assert files[4] == pytest.approx(3.9e9, rel=0.02)
    assert weight_bytes(SIX_BILLION, Storage(4, True, 2)) / GIB == pytest.approx(3.13, abs=0.02)


def test_a_head_that_is_the_embedding_is_told_from_the_size_of_the_files():
    storage = Storage(4, False, 2)
    shared, own = (weight_bytes(SIX_BILLION, Storage(4, False, 2, each)) for each in (True, False))
    assert head_is_shared(SIX_BILLION, storage, shared + 10**6)
    assert not head_is_shared(SIX_BILLION, storage, own + 10**6)
    assert not head_is_shared(SIX_BILLION, storage, None)


@pytest.mark.parametrize(
    ("storage", "batch", "checkpointing", "limit"),
    [
        (Storage(4, True, 2, device="accelerator"), 1, False, 4.2),
        (Storage(4, False, 2, device="accelerator"), 1, False, 5.8),
        (Storage(8, False, 2, device="accelerator"), 1, False, 8.4),
        (Storage(0, False, 2, device="accelerator"), 1, False, 13.6),
        (Storage(4, True, 2, device="accelerator"), 16, True, 7.0),
    ],
)
def test_tuning_the_6b_model_fits_small_cards(storage, batch, checkpointing, limit):
    """The figures that a GPU is to keep (and the published ones: 6.7, 9 and 14 GB) are within reach of the formulae."""
    estimate = tuning_memory(SIX_BILLION, storage, PREFIX, batch=batch, checkpointing=checkpointing, **ADGEN)
    assert estimate.total == sum(estimate.parts.values())
    assert weight_bytes(SIX_BILLION, storage) / GIB + 0.4 < estimate.total / GIB < limit * 1.02


def test_what_costs_memory_costs_memory():
    storage = Storage(4, False, 2)

    def tuning(**changes):
        settings = {"batch": 2, "source": 64, "target": 64} | changes
        return tuning_memory(SIX_BILLION, settings.pop("storage", storage), settings.pop("prefix", PREFIX), **settings).total

    least = tuning()
    for more in ({"batch": 4}, {"source": 128}, {"target": 128}, {"accumulation": 2},
                 {"prefix": prefix_cost(SIX_BILLION, PrefixSizes(256))},
                 {"prefix": prefix_cost(SIX_BILLION, PrefixSizes(128, True))},
                 {"storage": Storage(8, False, 2)}, {"storage": Storage(4, False, 4)}):
        assert tuning(**more) > least, more
    assert tuning(batch=8, checkpointing=True) < tuning(batch=8)
    short, long = (answering_memory(SIX_BILLION, storage, PREFIX, batch=1, length=n) for n in (512, 2048))
    assert long.parts["cache"] == 4 * short.parts["cache"] == 2 * 2 * 28 * 4096 * 2048


def test_answering_keeps_a_copy_of_a_screened_head():
    """A byte a weight of a float32 head where the native kernel is used; none beside half precision, or elsewhere."""

    def weights(*values, **more):
        storage = Storage(*values, **more)
        answering = answering_memory(SIX_BILLION, storage, PREFIX, batch=1, length=64)
        return answering.parts["weights"] - weight_bytes(SIX_BILLION, storage)

    assert weights(0, False, 4, native=True) == 130528 * 4096
    assert weights(4, False, 4, table_bytes=4, native=True) == 130528 * 4096
    assert weights(4, False, 4, table_bytes=2, native=True) == 0
    assert weights(4, True, 4, native=True) == 0
    assert weights(0, False, 2, native=True) == 0
    assert weights(0, False, 4) == 0
    assert weights(0, False, 4, native=True, device="accelerator") == 0


def test_loading_needs_the_largest_tensor_beside_the_weights():
    float_table = 130528 * 4096 * 2
    assert loading_bytes(SIX_BILLION, Storage(4, False, 2), 0) == float_table
    assert loading_bytes(SIX_BILLION, Storage(4, True, 2), 4) < float_table / 3


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"source": 0}, {"target": -1}])
def test_numbers_that_mean_nothing(wrong):
    with pytest.raises(UserError, match="must be 1 or more"):
        tuning_memory(SIX_BILLION, Storage(), PREFIX, **({"batch": 1, "source": 8, "target": 8} | wrong))
    with pytest.raises(UserError, match="pre_seq_len"):
        tuning_memory(SIX_BILLION, Storage(), prefix_cost(SIX_BILLION, PrefixSizes(0)), batch=1, source=8, target=8)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_the_measured_peak_is_within_15_percent():
    """A process of its own loads a model of 43 million weights and uses it; what it took over its baseline is compared."""
    from benchmarks.memory import ON_CPU, TOLERANCE, in_own_process

    tuning, answering = ON_CPU[1], ON_CPU[4]
    assert (tuning["use"], tuning["bits"], answering["use"], answering["bits"]) == ("tuning", 4, "answering", 0)
    with ThreadPoolExecutor(2) as both:
        for result in both.map(lambda case: in_own_process({**case, "device": "cpu"}), (tuning, answering)):
            assert abs(result["off_by"]) < TOLERANCE, result


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_a_size_that_no_model_has_is_not_taken_for_none(value):
    assert ModelSizes.from_config({"num_layers": None}).num_layers == 28
    with pytest.raises(UserError, match=r"num_layers is .*; must be a whole number, 1 or more"):
        ModelSizes.from_config({"num_layers": value})


# ---- formulas follow the constants that the work follows -----------------------------------------------------------------


def packed(bits):
    data = torch.randint(-128, 128, (1024, 1024 * bits // 8), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    return PackedWeight(data, torch.ones(1024, dtype=torch.float16), bits, 1024, 1024)


def unpack_for_a_product():
    weight, inputs = packed(4), torch.ones(2, 1024)
    return lambda: cpu.product(inputs, weight, None), lambda: unpacking_bytes(SMALL, Storage(4), "product", 2)


def unpack_for_a_gradient():
    weight, gradient = packed(8), torch.ones(2, 1024)
    return lambda: cpu.input_gradient(gradient, weight), lambda: unpacking_bytes(SMALL, Storage(8), "gradient", 2)


def round_a_checkpoint():
    weight = torch.ones(1024, 1024, dtype=torch.float16)
    return lambda: quantize_weight(weight, 4), lambda: loading_bytes(SMALL, Storage(4), 0)


def loss_of_a_frozen_head(dtype):
    head = torch.nn.Linear(16, 1000, bias=False, dtype=dtype).requires_grad_(False)
    states, targets = torch.randn(200, 16, dtype=dtype, requires_grad=True), torch.arange(200)
    return lambda: target_loss(states, targets, head), lambda: logits_bytes(200, 1000, dtype.itemsize)


def widen_a_head():
    head, states = HalfLinear(256, 2000, bias=False).half().requires_grad_(False), torch.randn(9, 256)
    sizes, storage = ModelSizes(2000, 256, 1, 1, 256), Storage(4, table_bytes=2)
    return lambda: head(states), lambda: head_bytes(sizes, storage, 9)


SMALL = ModelSizes(1024, 1024, 1, 1, 1024)


@pytest.mark.parametrize(
    ("name", "small", "work_and_formula"),
    [
        ("MAX_UNPACKED_CPU", 1 << 17, unpack_for_a_product),
        ("MAX_UNPACKED_ACROSS_CPU", 1 << 17, unpack_for_a_gradient),
        ("MAX_ROUNDED", 1 << 17, round_a_checkpoint),
        ("MAX_LOGITS_BYTES", 4 * 1000 * 25, lambda: loss_of_a_frozen_head(torch.float32)),
        ("MAX_LOGITS_BYTES", 4 * 1000 * 25, lambda: loss_of_a_frozen_head(torch.float16)),
        ("MAX_WIDENED", 1 << 16, widen_a_head),
    ],
)
def test_what_a_limit_changes_the_formula_changes_too(monkeypatch, name, small, work_and_formula):
    """A limit four times as high: the bytes that the work holds at a time grow by what the formula says, or a part of it."""
    peaks, terms = [], []
    work, formula = work_and_formula()
    for value in (small, 4 * small):
        monkeypatch.setattr(limits, name, value)
        peaks.append(peak_bytes(work))
        terms.append(formula())
    growth, expected = peaks[1] - peaks[0], terms[1] - terms[0]
    assert 0.5 * expected < growth < 1.05 * expected, (peaks, terms)


def test_a_head_is_screened_from_the_size_on_that_the_formula_knows(monkeypatch):
    """The formula counts the copy for exactly those heads that are screened, and as large as it is."""
    weight = torch.randn(64, 64)
    sizes, storage = ModelSizes(64, 64, 1, 1, 64), Storage(0, native=True)
    monkeypatch.setattr(limits, "MIN_SCREENED", 64 * 64)
    if not screening.fits(weight):
        pytest.skip("no C compiler, or a CPU without AVX2")
    assert screening_bytes(sizes, storage) == screening.ScreenedWeight(weight).bytes.nbytes
    monkeypatch.setattr(limits, "MIN_SCREENED", 64 * 64 + 1)
    assert not screening.fits(weight)
    assert screening_bytes(sizes, storage) == 0


@pytest.mark.parametrize("limit", [2**18, 2**21])
def test_the_allocator_is_told_the_size_that_the_formula_knows(monkeypatch, limit):
    told = []
    monkeypatch.setattr(allocator, "_mallopt", lambda what, value: told.append(value) or True)
    monkeypatch.setattr(limits, "MIN_RETURNED_BYTES_LEAN", limit)
    allocator.return_freed_memory.__wrapped__()
    assert told == [limit]
    for size in (limit - 1, limit):  # of the largest logits; the other parts are empty
        kept = kept_by_allocator(Storage(4), {"logits": 1000}, 0, size, SMALL)
        assert kept == (700 if size < limit else 0)
