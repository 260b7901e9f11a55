"""Kernels of the quantised linear: each gives the dense product, whatever the shape, the form in memory or the setting."""

import copy
import io
import logging
import shutil
import subprocess

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ptuning.core import limits
from ptuning.core.errors import UserError
from ptuning.kernels import cpu, dispatch
from ptuning.kernels.cuda_source import NAMES, SOURCE
from ptuning.kernels.packed import PackedWeight, dequantize_weight, tile_int4, untile_int4
from ptuning.model.quantization import QuantizedLinear, quantize_weight

SHAPES = [(1, 2), (7, 6), (64, 64), (100, 96), (130, 1024), (513, 2048), (0, 8)]
# Of the largest result: float32 sums in another order; half precision is rounded twice (operator, then scale and bias).
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
bits_of_both = pytest.mark.parametrize("bits", [4, 8])
all_dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@pytest.fixture(autouse=True)
def default_settings(monkeypatch):
    """Every test starts from the default settings, with the cpu kernel on a CPU, and leaves none behind."""
    monkeypatch.setenv(dispatch.KERNEL_VARIABLE, "cpu")
    monkeypatch.delenv(dispatch.MEMORY_VARIABLE, raising=False)
    dispatch.configure()
    yield
    dispatch._configured.clear()


def packed_weight(bits, rows, columns, seed=0):
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    if rows > 5:
        values[3] = 0
    data, scale = quantize_weight(values, bits)
    return PackedWeight(data, scale, bits, rows, columns)


def forms(weight):
    """The same weight in every form that may lie in memory."""
    found = {"published": weight}
    if weight.bits == 4:
        for lanes in (16, 32):
            found[f"{lanes} lanes"] = weight._replace(data=tile_int4(weight.data, lanes), lanes=lanes)
    for dtype in (torch.float32, torch.bfloat16):
        found[f"resident {dtype}"] = weight._replace(resident=cpu.integers(weight, dtype))
    return found


def agree(made, exact, dtype, slack=1):
    assert made.dtype == dtype
    assert made.shape == exact.shape
    if exact.numel():
        error = (made.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)
        assert error <= TOLERANCE[dtype] * slack, float(error)


def check(kernel, weight, dtype, rows, device="cpu", slack=1):
    """Forward and input gradient of one kernel against float64."""
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, weight.columns, generator=generator).to(device, dtype)
    gradient = torch.randn(rows, weight.rows, generator=generator).to(device, dtype)
    bias = torch.randn(weight.rows, generator=generator).to(device, dtype)
    published = untile_int4(weight.data, weight.rows) if weight.lanes else weight.data
    dense = dequantize_weight(published, weight.scale, weight.bits).double()
    assert kernel.refuse(weight, inputs) is None
    exact = inputs.double() @ dense.t()
    agree(kernel.product(inputs, weight, None), exact, dtype, slack)
    agree(kernel.product(inputs, weight, bias), exact + bias.double(), dtype, slack)
    agree(kernel.input_gradient(gradient, weight), gradient.double() @ dense, dtype, slack)


# ---- forms in memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [16, 32])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 4096)], ids=str)
def test_the_tiled_form_gives_the_published_bytes_back(shape, lanes):
    data = packed_weight(4, *shape).data
    tiles = tile_int4(data, lanes)
    assert tiles.shape == (-(-shape[0] // (2 * lanes)), shape[1], lanes)
    assert torch.equal(untile_int4(tiles, shape[0]), data)


def test_the_tiled_form_is_the_one_of_torchs_operator():
    lanes = cpu.tile_lanes()
    if not lanes:
        pytest.skip(f"torch has no fast INT4 operator for {torch.backends.cpu.get_cpu_capability()}")
    weight = packed_weight(4, 192, 256)
    values = dequantize_weight(weight.data, torch.ones(192), 4).to(torch.int32) + 8
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    assert torch.equal(theirs.flatten(), tile_int4(weight.data, lanes).flatten())


@bits_of_both
def test_a_resident_copy_holds_the_integers(bits):
    weight = packed_weight(bits, 65, 96)
    values = dequantize_weight(weight.data, torch.ones(65), bits)
    for form in forms(weight).values():
        assert torch.equal(cpu.integers(form, torch.bfloat16).float(), values)


# ---- agreement -----------------------------------------------------------------------------------------------------------


@bits_of_both
@all_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_kernels_give_the_dense_product(bits, dtype, shape):
    weight = packed_weight(bits, *shape)
    for form in forms(weight).values():
        for rows in (0, 1, 5, 33):
            check(dispatch.CPU, form, dtype, rows)
            check(dispatch.REFERENCE, form, dtype, rows)


@bits_of_both
def test_weights_cut_in_pieces_give_the_dense_product(bits, monkeypatch):
    """As above, with pieces so small that every loop runs several times and ends in a shorter piece."""
    monkeypatch.setattr(limits, "MAX_UNPACKED_CPU", 1 << 11)
    monkeypatch.setattr(limits, "MAX_UNPACKED_ACROSS_CPU", 1 << 11)
    for form in forms(packed_weight(bits, 150, 96)).values():
        for dtype in TOLERANCE:
            check(dispatch.CPU, form, dtype, 40)
            check(dispatch.REFERENCE, form, dtype, 40)


@bits_of_both
def test_golden_weights(golden_tensors, bits):
    data, scale = golden_tensors[f"quant.int{bits}.packed"], golden_tensors[f"quant.int{bits}.scale"]
    dense = golden_tensors[f"quant.int{bits}.dequantised"]
    weight = PackedWeight(data, scale, bits, *dense.shape)
    inputs = torch.randn(3, dense.shape[1], generator=torch.Generator().manual_seed(0))
    for kernel in (dispatch.REFERENCE, dispatch.CPU):
        for form in forms(weight).values():
            torch.testing.assert_close(kernel.product(inputs, form, None), inputs @ dense.t(), rtol=0, atol=1e-5)


@bits_of_both
@all_dtypes
def test_triton_kernels_give_the_dense_product_under_the_interpreter(bits, dtype):
    pytest.importorskip("triton", reason="Triton is not installed")
    from ptuning.kernels import triton_kernels

    if not triton_kernels._is_interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1")
    kernel = dispatch.Kernel("triton", triton_kernels.product, triton_kernels.input_gradient, triton_kernels.refuse)
    dispatch._prove(kernel, *triton_kernels.start())
    for shape in ((1, 2), (7, 6), (100, 96), (33, 600)):
        weight = packed_weight(bits, *shape)
        for rows in (1, 5, 16, 33):
            check(kernel, weight, dtype, rows, slack=2 if dtype == torch.bfloat16 else 1)
        if dtype != torch.bfloat16:  # the interpreter cuts to bfloat16 where a GPU rounds
            made = triton_kernels.unpack(weight.data, weight.scale, bits, dtype)
            assert torch.equal(made, dequantize_weight(weight.data, weight.scale, bits, dtype))


@pytest.mark.gpu
@bits_of_both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["triton", "cpm"])
def test_gpu_kernels_give_the_dense_product(name, dtype, bits):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    kernel = dispatch.start(name)
    if kernel is None:
        pytest.skip(f"the {name} kernel cannot start here; its reason is logged")
    for shape in (*SHAPES[:-1], (4096, 4096)):
        weight = packed_weight(bits, *shape)
        weight = weight._replace(data=weight.data.cuda(), scale=weight.scale.cuda())
        for rows in (1, 5, 16, 33, 200):
            check(kernel, weight, dtype, rows, device="cuda")
    module = __import__(dispatch._MODULES[name], fromlist=["unpack"])
    made = module.unpack(weight.data, weight.scale, bits, dtype)
    assert torch.equal(made, dequantize_weight(weight.data, weight.scale, bits, dtype))


def test_the_cuda_source_compiles(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    (tmp_path / "unpack.cu").write_text(SOURCE, encoding="ascii")
    command = [nvcc, "-ptx", "-arch=compute_80", "-Werror", "all-warnings", "unpack.cu", "-o", "unpack.ptx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = (tmp_path / "unpack.ptx").read_text(encoding="ascii")
    for name in NAMES.values():
        assert f".entry {name}(" in made


# ---- the form in memory of a linear --------------------------------------------------------------------------------------


def linear(rows=300, columns=512, bits=4, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return QuantizedLinear.from_linear(torch.nn.Linear(columns, rows), bits).to(dtype).eval()


def turned(rows=300, columns=512):
    """A linear whose weight lies in memory in the operator's form, and its published bytes."""
    if not cpu.tile_lanes():
        pytest.skip("torch has no fast INT4 operator for this CPU")
    made = linear(rows, columns)
    bytes_before = made.weight.detach().clone()
    with torch.no_grad():
        made(torch.randn(1, columns).bfloat16())
    assert made._tiles is not None
    return made, bytes_before


def test_decoding_holds_one_copy_and_only_that():
    made, before = turned()
    assert "weight" not in dict(made.named_parameters())
    tiles = -(-300 // (2 * cpu.tile_lanes())) * 2 * cpu.tile_lanes()
    assert made._tiles.nbytes == tiles * 512 // 2
    assert torch.equal(made.weight, before)
    assert made._tiles is None
    assert list(dict(made.named_parameters())) == ["weight", "weight_scale", "bias"]


@pytest.mark.parametrize(
    "look",
    [
        lambda made: made.state_dict()["weight"],
        lambda made: copy.deepcopy(made).weight,
        lambda made: made.to(torch.float32).weight,
        lambda made: torch.load(saved(made), weights_only=False).weight,
        lambda made: linear().load_state_dict(made.state_dict()) and made.weight,
    ],
    ids=["state_dict", "deepcopy", "to", "torch.save", "load_state_dict"],
)
def test_whoever_looks_finds_the_published_bytes(look):
    made, before = turned()
    assert torch.equal(look(made), before)


def saved(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return stream


def test_a_turned_linear_takes_other_weights():
    made, _ = turned()
    other = linear(300, 512)
    with torch.no_grad():
        other.weight.copy_(-other.weight.clone())
    made.load_state_dict(other.state_dict())
    inputs = torch.randn(1, 512).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(made(inputs), other(inputs))


def test_a_turned_linear_multiplies_many_rows_and_gives_gradients():
    made, _ = turned()
    fresh = linear()
    for rows in (3, 50):
        results = []
        for module in (made, fresh):
            generator = torch.Generator().manual_seed(rows)
            inputs = torch.randn(rows, 512, generator=generator).bfloat16().requires_grad_()
            out = module(inputs)
            out.float().square().sum().backward()
            results.append((out, inputs.grad))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6 * other.abs().max().item())
    assert made._tiles is not None  # it was not turned back for this
    assert fresh._tiles is None  # and training turns nothing


def test_a_weight_turned_in_inference_mode_trains_later():
    made = linear()
    with torch.inference_mode():
        made(torch.randn(1, 512).bfloat16())
    inputs = torch.randn(2, 512).bfloat16().requires_grad_()
    checkpoint(made, inputs, use_reentrant=False).sum().backward()
    assert inputs.grad.isfinite().all()
    made.weight  # noqa: B018  # turned back
    made(torch.randn(2, 512).bfloat16().requires_grad_()).sum().backward()


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"), [(300, 500, torch.bfloat16), (300, 512, torch.float32), (8, 64, torch.bfloat16)]
)
def test_what_would_not_gain_is_not_turned(rows, columns, dtype):
    """Columns that are no multiple of the group, float32, and small weights."""
    made = linear(rows, columns, dtype=dtype)
    with torch.no_grad():
        made(torch.randn(1, columns, dtype=dtype))
    assert made._tiles is None


# ---- settings ------------------------------------------------------------------------------------------------------------


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv(dispatch.KERNEL_VARIABLE, "reference")
    monkeypatch.setenv(dispatch.MEMORY_VARIABLE, "fast:1.5")
    monkeypatch.setenv(dispatch.PRECISION_VARIABLE, "high")
    assert dispatch.configure() == dispatch.KernelSettings("reference", "fast", 1_500_000_000, "high")
    monkeypatch.delenv(dispatch.PRECISION_VARIABLE)
    weight = packed_weight(4, 8, 8)
    assert dispatch.select(weight, torch.zeros(1, 8)) is dispatch.REFERENCE
    assert dispatch.configure(kernel="cpu", memory="lean") == dispatch.KernelSettings("cpu")
    assert dispatch.select(weight, torch.zeros(1, 8)) is dispatch.CPU
    monkeypatch.delenv(dispatch.KERNEL_VARIABLE)
    monkeypatch.delenv(dispatch.MEMORY_VARIABLE)
    assert dispatch.configure() == dispatch.KernelSettings("auto", "lean", None)
    assert dispatch.select(weight, torch.zeros(1, 8)) is (dispatch.start("native") or dispatch.CPU)


@pytest.mark.parametrize(("given", "meant"), [("plain", "reference"), ("compiled", "native")])
def test_former_names_of_kernels_are_understood(given, meant, monkeypatch):
    monkeypatch.setenv(dispatch.KERNEL_VARIABLE, given)
    assert dispatch.configure() == dispatch.KernelSettings(meant)
    by_environment = dispatch.select(packed_weight(4, 8, 8), torch.zeros(1, 8))
    assert dispatch.configure(kernel=given) == dispatch.configure(kernel=meant)
    assert by_environment is dispatch.select(packed_weight(4, 8, 8), torch.zeros(1, 8))
    assert by_environment.name in (meant, "cpu")  # native needs a C compiler


def test_the_new_names_stand_in_the_error_message():
    with pytest.raises(UserError, match="allowed are auto, reference, cpu, native, triton, cpm"):
        dispatch.configure(kernel="cuda")


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="allowed are highest, high, medium"):
        dispatch.configure(precision="low")


@pytest.mark.parametrize("kernel", ["cuda", ""])
def test_kernels_that_do_not_exist_are_refused(kernel):
    with pytest.raises(UserError, match="allowed are"):
        dispatch.configure(kernel=kernel)


@pytest.mark.parametrize("memory", ["huge", "fast:much", "fast:-1", "fast:nan", "lean:3"])
def test_memory_settings_that_do_not_exist_are_refused(memory):
    with pytest.raises(UserError, match="allowed are"):
        dispatch.configure(memory=memory)


@pytest.mark.parametrize("name", ["triton", "cpm"])
def test_a_kernel_that_cannot_start_is_named_once_and_the_reference_kernel_is_used(name, caplog, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("it may start here")
    monkeypatch.setitem(dispatch._MODULES, name, "ptuning.kernels.that_is_not_there")
    dispatch.start.cache_clear()
    dispatch.configure(kernel=name)
    made, inputs = linear(dtype=torch.float32), torch.randn(2, 512)
    with caplog.at_level(logging.INFO), torch.no_grad():
        out = [made(inputs) for _ in range(3)]
    dispatch.start.cache_clear()
    dense = dequantize_weight(made.weight, made.weight_scale, 4)
    torch.testing.assert_close(out[2], inputs @ dense.t() + made.bias)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(f"the {name} kernel cannot start (ModuleNotFoundError: ")


@bits_of_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fast_memory_keeps_unpacked_weights_within_its_budget(bits, dtype):
    layers = [linear(bits=bits, dtype=dtype) for _ in range(3)]
    size = 300 * 512 * cpu.widened(dtype).itemsize
    inputs = torch.randn(40, 512).to(dtype)
    with torch.no_grad():
        lean = [layer(inputs) for layer in layers]
        dispatch.configure(memory=f"fast:{2.5 * size / 1e9}")
        before = dispatch.RESIDENT.taken
        fast = [layer(inputs) for layer in layers]
        again = [layer(inputs) for layer in layers]
    assert dispatch.RESIDENT.taken - before == 2 * size
    assert [layer._resident is not None for layer in layers] == [True, True, False]
    for one, two, three in zip(lean, fast, again, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(two, three)
    gradient_in = inputs.clone().requires_grad_()
    layers[0](gradient_in).sum().backward()
    dense = dequantize_weight(layers[0].weight, layers[0].weight_scale, bits)
    torch.testing.assert_close(gradient_in.grad.float(), dense.sum(0).expand(40, -1), rtol=2**-6, atol=2**-7)
    layers[0].to(torch.float64)  # whatever changes the module lets its copy go
    del layers[1]
    assert dispatch.RESIDENT.taken == before


def test_fast_memory_follows_a_changed_weight():
    dispatch.configure(memory="fast:1")
    made, inputs = linear(dtype=torch.float32), torch.randn(40, 512)
    with torch.no_grad():
        before = made(inputs)
        made.weight.zero_()
        after = made(inputs)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, made.bias.expand(40, -1))
