"""When float32 products go to oneDNN. This machine's CPU decides about the real switch; the conditions are given by hand."""

import types

import pytest
import torch
from test_kernels import packed_weight

import ptuning
from ptuning.kernels import dispatch
from ptuning.kernels.onednn import LARGEST_ERROR, matmul_precision, prefer_onednn_products


class Matmul:
    """Stands for ``torch.backends.mkldnn.matmul``; remembers what it was set to."""

    def __init__(self, value="none"):
        self.values = [value]

    @property
    def fp32_precision(self):
        return self.values[-1]

    @fp32_precision.setter
    def fp32_precision(self, value):
        self.values.append(value)


def rounded(left, right):
    """What a CPU with AMX makes of it."""
    return (left.bfloat16().float() @ right.bfloat16().float()).float()


def prefer(matmul, capability="AVX512", amx=False, product=torch.mm):
    return prefer_onednn_products(matmul=matmul, capability=lambda: capability, has_amx=lambda: amx, product=product)


@pytest.fixture
def real_setting():
    """torch's own switch, put back afterwards."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        pytest.skip("this torch has no such setting")
    before = matmul.fp32_precision
    yield matmul
    matmul.fp32_precision = before


def test_set_with_avx512_and_without_amx():
    matmul = Matmul()
    assert prefer(matmul)
    assert matmul.values == ["none", "bf16"]


@pytest.mark.parametrize(("capability", "amx"), [("AVX2", False), ("DEFAULT", False), ("AVX512", True), ("AVX2", True)])
def test_untouched_on_other_cpus(capability, amx):
    matmul = Matmul()
    assert not prefer(matmul, capability, amx)
    assert matmul.values == ["none"]


@pytest.mark.parametrize("value", ["ieee", "bf16", "tf32"])
def test_what_somebody_has_set_stays(value):
    matmul = Matmul(value)
    assert not prefer(matmul)
    assert matmul.values == [value]


@pytest.mark.parametrize("wrong", [rounded, lambda left, right: torch.full((left.shape[0], right.shape[1]), torch.nan)])
def test_undone_and_said_once_where_products_come_out_wrong(wrong, caplog):
    matmul = Matmul()
    conditions = {"matmul": matmul, "capability": lambda: "AVX512", "has_amx": lambda: False, "product": wrong}
    assert [prefer_onednn_products(**conditions) for _ in range(3)] == [False] * 3
    assert matmul.values == ["none", "bf16", "none"]
    assert len(caplog.messages) == 1
    assert "float32 products stay with torch's default" in caplog.messages[0]


@pytest.mark.parametrize("rows", [4, 96])
def test_few_and_many_rows_are_looked_at(rows):
    matmul = Matmul()
    assert not prefer(matmul, product=lambda left, right: (rounded if left.shape[0] == rows else torch.mm)(left, right))
    assert matmul.fp32_precision == "none"


def test_the_limit_lies_between_float32_and_bfloat16():
    left, right = torch.randn(96, 320), torch.randn(320, 192)
    exact = left.double() @ right.double()
    errors = [float((made - exact).abs().max() / exact.abs().max()) for made in (left @ right, rounded(left, right))]
    assert 10 * errors[0] < LARGEST_ERROR < errors[1] / 10


def test_nothing_is_raised_where_torch_has_less(monkeypatch):
    class Refuses(Matmul):
        @property
        def fp32_precision(self):
            return "none"

        @fp32_precision.setter
        def fp32_precision(self, value):
            raise RuntimeError(f"unknown precision {value}")

    assert not prefer(object())  # no such attribute
    assert not prefer(Refuses())
    matmul = Matmul()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not prefer_onednn_products(matmul=matmul, capability=lambda: "AVX512")  # whether there is AMX, nobody says
    assert matmul.values == ["none"]
    monkeypatch.setattr(torch.backends, "mkldnn", types.SimpleNamespace())
    assert not prefer_onednn_products(capability=lambda: "AVX512", has_amx=lambda: False)


def test_no_random_number_is_drawn():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    assert prefer(Matmul())
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    ("settings", "times"),
    [({}, 1), ({"dtype": "bfloat16"}, 0), ({"quantization_bit": 4, "dtype": "float32"}, 1)],
)
def test_loading_float32_on_a_cpu_asks_for_it(monkeypatch, settings, times):
    asked = []
    monkeypatch.setattr("ptuning.checkpoint.load.prefer_onednn_products", lambda: asked.append(1))
    model = ptuning.load_model("tiny-chatglm", device="cpu", **{"dtype": "float32", **settings})
    assert model.dtype == (torch.float32 if times else torch.bfloat16)
    assert len(asked) == times


def test_the_real_switch_after_loading(real_setting):
    ptuning.load_model("tiny-chatglm", device="cpu", dtype="float32")
    fits = torch.backends.cpu.get_cpu_capability() == "AVX512" and not torch.cpu._is_amx_tile_supported()
    assert real_setting.fp32_precision in (("bf16", "none") if fits else ("none",))
    left, right = torch.randn(96, 320), torch.randn(320, 192)
    exact = left.double() @ right.double()
    assert (left @ right - exact).abs().max() < LARGEST_ERROR * exact.abs().max()


def test_products_of_the_native_kernel_keep_their_precision(real_setting):
    """torch 2.13 raises when it is asked for its precision and the setting of one backend differs from that of all."""
    kernel = dispatch.start("native")
    if kernel is None:
        pytest.skip("no C compiler here; the reason is logged")
    weight, inputs = packed_weight(4, 130, 1024), torch.randn(7, 1024)
    real_setting.fp32_precision = "none"
    wanted = kernel.product(inputs, weight, None)
    real_setting.fp32_precision = "bf16"
    assert matmul_precision() == "highest"
    assert torch.equal(kernel.product(inputs, weight, None), wanted)
    real_setting.fp32_precision = "none"
    torch.set_float32_matmul_precision("high")
    try:
        assert matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
