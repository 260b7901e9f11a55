"""The native CPU kernel: the dense product whatever the shape, and a machine on which it cannot be compiled."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_kernels import SHAPES, TOLERANCE, agree, check, packed_weight

from ptuning.kernels import c_library, dispatch, native
from ptuning.kernels.packed import dequantize_weight

ROOT = Path(__file__).resolve().parents[2]
bits_of_both = pytest.mark.parametrize("bits", [4, 8])


@pytest.fixture(scope="module")
def kernel():
    """The kernel, compiled here."""
    made = dispatch.start("native")
    if made is None:
        pytest.skip("no C compiler here; the reason is logged")
    return made


@pytest.fixture
def configured():
    """The kernels' settings, put back afterwards."""
    yield dispatch.configure
    dispatch.configure()


@bits_of_both
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (25, 8200)], ids=str)
def test_the_dense_product(kernel, bits, dtype, shape):
    for rows in (0, 1, 2, 4, 5, 33):
        check(kernel, packed_weight(bits, *shape), dtype, rows)


@bits_of_both
def test_a_part_of_a_larger_weight(kernel, bits):
    whole = packed_weight(bits, 40, 512)
    some = whole._replace(data=whole.data[5:30], scale=whole.scale[5:30], rows=25)
    for rows in (1, 6):
        check(kernel, some, torch.float32, rows)
    turned = whole._replace(data=whole.data.t().contiguous().t())
    assert "published form" in kernel.refuse(turned, torch.zeros(1, 512))


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("wild", [1e6, 1e-30, 1e36, 0.0])
def test_values_of_very_different_sizes(kernel, rows, wild):
    """One value dwarfs the others (or all are tiny, or zero): an error of 24 bits of the largest is what is allowed."""
    weight = packed_weight(4, 1030, 1024)
    inputs, gradient = torch.randn(rows, 2054, generator=torch.Generator().manual_seed(0)).split((1024, 1030), 1)
    for values in (inputs, gradient):
        values[:, 17] = wild
        if wild in (1e-30, 0.0):
            values *= wild
    dense = dequantize_weight(weight.data, weight.scale, 4).double()
    agree(kernel.product(inputs, weight, None), inputs.double() @ dense.t(), torch.float32)
    agree(kernel.input_gradient(gradient, weight), gradient.double() @ dense, torch.float32)


@pytest.mark.parametrize("columns", [2, 254, 256, 258, 2046, 2048, 4098])
@pytest.mark.parametrize("rows", [1, 4, 5, 67])
def test_stretches_and_groups_that_are_not_full(kernel, rows, columns):
    check(kernel, packed_weight(4, 70, columns), torch.float32, rows)


@pytest.mark.parametrize("outputs", [1, 31, 33, 1024, 1030, 2081])
@pytest.mark.parametrize("columns", [2, 62, 64, 130, 260])
def test_bands_and_folds_of_a_gradient_that_are_not_full(kernel, outputs, columns):
    for rows in (1, 2, 4, 7, 67):
        check(kernel, packed_weight(4, outputs, columns), torch.float32, rows)


@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
def test_the_gradient_of_a_head(kernel, configured, precision):
    """One value near 1 among many tiny ones: all of them count, as they do in float32 (where the error is 3.5e-6)."""
    weight = packed_weight(4, 40000, 34)
    gradient = torch.full((3, 40000), 2e-5)
    gradient[:, 11] = -0.8
    wanted = gradient.double() @ dequantize_weight(weight.data, weight.scale, 4).double()
    configured(precision=precision)
    error = (kernel.input_gradient(gradient, weight) - wanted).norm() / wanted.norm()
    assert error < 2e-5


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_gradients_take_sixteen_bits_where_products_take_fewer_than_24(kernel, configured, precision):
    weight, gradient = packed_weight(4, 1024, 130), torch.randn(7, 1024, generator=torch.Generator().manual_seed(0))
    wanted = gradient.double() @ dequantize_weight(weight.data, weight.scale, 4).double()
    configured(precision=precision)
    error = (kernel.input_gradient(gradient, weight) - wanted).norm() / wanted.norm()
    assert 1e-6 < error < 2**-14


@bits_of_both
def test_scales_of_every_size_and_sign(kernel, bits):
    """Also those that float16 holds with fewer bits, and negative ones, which some quantisers write."""
    weight = packed_weight(bits, 64, 64)
    scale = torch.tensor([6e-8, 1e-6, 6.1e-5, 0.0, 1.0, 65504.0, -0.3, -2e-7], dtype=torch.float16).repeat(8)
    for rows in (1, 5):
        check(kernel, weight._replace(scale=scale), torch.float32, rows)


def test_activations_that_share_a_sign(kernel):
    """Weights are taken as 0 to 15 and eight times the sum is taken back: that must cost no precision."""
    weight = packed_weight(4, 40, 16384)
    for rows in (1, 9):
        inputs = torch.rand(rows, 16384, generator=torch.Generator().manual_seed(0)) + 1
        dense = dequantize_weight(weight.data, weight.scale, 4).double()
        wanted = inputs.double() @ dense.t()
        assert ((kernel.product(inputs, weight, None) - wanted).abs() < 2e-7 * wanted.abs().max()).all()


@pytest.fixture
def torchs_precision():
    """What torch keeps for float32 products, put back afterwards: ``highest`` is not what it began with."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")
    if before is not None:
        matmul.fp32_precision = before


def test_sixteen_bits_where_they_will_do(kernel, configured, torchs_precision):
    weight, inputs = packed_weight(4, 130, 1024), torch.randn(7, 1024)
    wanted = inputs.double() @ dequantize_weight(weight.data, weight.scale, 4).double().t()

    def error():
        return float((kernel.product(inputs, weight, None) - wanted).abs().max() / wanted.abs().max())

    assert error() < 1e-6
    configured(precision="high")
    assert 1e-6 < error() < 2**-14
    configured(precision="highest")
    torchs_precision("high")
    assert 1e-6 < error() < 2**-14
    torchs_precision("medium")
    assert 2**-14 < error() < 0.02


@pytest.mark.parametrize("columns", [2, 126, 128, 130, 256, 258, 2048, 4098, 16384])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 67])
def test_eight_bits_where_they_will_do(kernel, configured, rows, columns):
    """What is multiplied are the activations rounded to 127 steps of the largest among 128: against that, sums are exact."""
    configured(precision="medium")
    weight = packed_weight(4, 70, columns)
    inputs = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    spans = torch.nn.functional.pad(inputs, (0, -columns % 128)).view(rows, -1, 128)
    step = spans.abs().amax(dim=2, keepdim=True) / 127
    rounded = ((spans / step).round() * step).view(rows, -1)[:, :columns]
    dense = dequantize_weight(weight.data, weight.scale, 4).double()
    made, bias = kernel.product(inputs, weight, None), torch.arange(70.0)
    wanted = rounded.double() @ dense.t()
    # The kernel multiplies by 127/largest where we divide: a value on the border may go either way.
    assert (made - wanted).norm() < 1e-3 * wanted.norm()
    assert (made - inputs.double() @ dense.t()).norm() < 0.012 * wanted.norm()
    assert torch.allclose(kernel.product(inputs, weight, bias), made + bias)


def test_eight_bits_beside_an_outlier(kernel, configured):
    """A large activation, of which language models have some, coarsens those of its own 128 columns alone."""
    configured(precision="medium")
    weight, inputs = packed_weight(4, 130, 4096), torch.randn(5, 4096, generator=torch.Generator().manual_seed(0))
    dense = dequantize_weight(weight.data, weight.scale, 4).double()
    inputs[:, 17] = 50.0
    others = inputs.clone()
    others[:, :128] = 0
    far = kernel.product(others, weight, None) - others.double() @ dense.t()
    all_of_them = kernel.product(inputs, weight, None) - inputs.double() @ dense.t()
    assert far.norm() < 0.012 * (others.double() @ dense.t()).norm()
    # The step is 20 times larger for one in 32: sqrt(400 / 32). One step for the whole row would make it 20.
    assert all_of_them.norm() < 5 * far.norm()


@bits_of_both
@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(kernel, configured, bits, precision, rows, broken):
    weight = packed_weight(bits, 30, 64)
    inputs = torch.ones(rows, 64)
    inputs[0, 5] = broken
    configured(precision=precision)
    made = kernel.product(inputs, weight, None)
    assert not made[0, weight.scale > 0].isfinite().any()
    assert made[1:].isfinite().all()
    gradient = torch.ones(rows, 30)
    gradient[0, 5] = broken
    made = kernel.input_gradient(gradient, weight)
    assert not made[0].isfinite().all()
    assert made[1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_half_precision(kernel, dtype):
    for outputs, columns in ((1, 1), (70, 30), (33, 520)):
        weight = (torch.randn(outputs, columns) * torch.logspace(-7, 3, columns)).to(dtype)
        for rows in (1, 4):
            inputs = torch.randn(rows, columns)
            agree(native.half_product(inputs, weight), inputs.double() @ weight.double().t(), torch.float32)


def test_threads_do_not_change_a_result(kernel):
    weight = packed_weight(4, 513, 2048)
    before = torch.get_num_threads()
    try:
        for rows in (1, 40):
            inputs = torch.randn(rows, 2048)
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                both = kernel.product(inputs, weight, None), kernel.input_gradient(inputs[:, :513], weight)
                results.append(torch.cat(both, 1))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("vector", [16, 64])
def test_vectors_of_other_sizes(kernel, vector, tmp_path, monkeypatch):
    """What other processors compile gives the same here (the compiler splits longer vectors)."""
    flags = (*c_library._FLAGS, f"-DVECTOR_BYTES={vector}")
    monkeypatch.setattr(c_library, "_FLAGS", flags)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        for bits in (4, 8):
            for shape in ((7, 6), (100, 96), (65, 1024)):
                for rows in (1, 3, 6):
                    check(kernel, packed_weight(bits, *shape), torch.float32, rows)
    finally:
        native._library.cache_clear()


# ---- compiling -----------------------------------------------------------------------------------------------------------

TRY = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from ptuning.kernels import dispatch
from ptuning.model.quantization import QuantizedLinear
made = QuantizedLinear.from_linear(torch.nn.Linear(64, 30), 4).eval()
with torch.no_grad():
    made(torch.ones(2, 64)), made(torch.ones(1, 64))
print("compiled" if dispatch.start("native") else "not compiled")
"""


@pytest.fixture
def in_process(tmp_path, quick_compiler):
    """Starts a process that compiles for itself, with what the environment is to have beside."""

    def start(**changes):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PTUNING_")}
        path = f"{quick_compiler}{os.pathsep}{os.environ['PATH']}"
        environment = kept | {"PATH": path, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | changes
        return subprocess.Popen(
            [sys.executable, "-c", TRY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return start


def ended(process):
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out, error


@pytest.mark.slow
def test_processes_that_compile_at_once_keep_one_library(kernel, in_process, tmp_path):
    for process in [in_process() for _ in range(3)]:
        assert ended(process)[0] == "compiled\n"
    folder = tmp_path / "ptuning" / "kernels"
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    library.write_bytes(b"damaged")
    assert ended(in_process())[0] == "compiled\n"
    assert library.stat().st_size > 10_000
    assert list(folder.iterdir()) == [library]


@pytest.mark.slow
def test_no_compiler_is_said_once(in_process):
    out, error = ended(in_process(PATH=""))
    assert out == "not compiled\n"
    assert error == "the native kernel cannot start (RuntimeError: no C compiler on PATH (cc, gcc, clang))\n"


@pytest.mark.slow
def test_a_compiler_that_fails_is_said_once(in_process, tmp_path):
    fake = tmp_path / "bin" / "cc"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nwhile :; do case $1 in --version) exit 0;; '') break;; esac; shift; done\n"
                    "echo 'cc: error: no headers' >&2\nexit 1\n", encoding="ascii")
    fake.chmod(0o755)
    out, error = ended(in_process(PATH=str(fake.parent)))
    assert out == "not compiled\n"
    assert error == f"the native kernel cannot start (RuntimeError: {fake} failed: cc: error: no headers)\n"
    assert list((tmp_path / "ptuning" / "kernels").iterdir()) == []


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written_to_is_done_without(kernel, in_process, tmp_path):
    (tmp_path / "ptuning").write_text("a file in the way", encoding="ascii")
    assert ended(in_process())[0] == "compiled\n"
