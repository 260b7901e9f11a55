"""Calibrated rounding: better where it counts, in the published format, in one go or in several."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from checkpoints import GOLDEN, golden_state, make_checkpoint

import ptuning
from ptuning.checkpoint.weight_files import find_weights
from ptuning.core.errors import UserError
from ptuning.core.progress import silent
from ptuning.data.calibration_rows import RowSettings, calibration_ids
from ptuning.model.quantization import dequantize_weight, quantize_weight
from ptuning.quantize.calibration import CalibrationSettings, calibrate_checkpoint
from ptuning.quantize.folder import plan_quantization, quantize_checkpoint
from ptuning.quantize.gptq import Calibrator, round_embedding

MODEL = GOLDEN / "model"
GMASK, SOP, EOP = 86, 89, 90


def inputs(columns, tokens=400, seed=0):
    """Correlated inputs of very different sizes, as a trained model has them."""
    make = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=make) / columns**0.5
    sizes = torch.logspace(1, -1, columns)
    return torch.randn(tokens, columns, generator=make) @ mixing * sizes


def weight(rows, columns, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(seen, exact, packed, scale, bits):
    difference = exact - dequantize_weight(packed, scale, bits)
    return float((seen @ difference.T).square().sum() / (seen @ exact.T).square().sum())


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 130), (1, 2), (5000, 16)])
def test_outputs_are_closer_than_with_the_nearest_step(rows, columns, bits, act_order):
    seen, exact = inputs(columns), weight(rows, columns)
    result = Calibrator(seen.T @ seen, act_order=act_order).round(exact, bits)
    assert result.packed.dtype == torch.int8
    assert result.packed.shape == (rows, columns * bits // 8)
    assert (result.scale.dtype, result.scale.shape) == (torch.float16, (rows,))
    nearest = output_error(seen, exact, *quantize_weight(exact, bits), bits)
    ours = output_error(seen, exact, result.packed, result.scale, bits)
    assert ours <= nearest * 1.01  # damping counts in the choice, not here
    if columns > 16:
        assert ours < 0.5 * nearest
    assert result.error == pytest.approx(ours, rel=0.05, abs=2e-6)
    assert result.nearest_error == pytest.approx(nearest, rel=0.05, abs=2e-6)


def test_other_tokens_of_the_same_kind_gain_as_well():
    mixed, exact = inputs(64, 1200), weight(48, 64)
    seen, unseen = mixed[:600], mixed[600:]
    result = Calibrator(seen.T @ seen).round(exact, 4)
    nearest = output_error(unseen, exact, *quantize_weight(exact, 4), 4)
    assert output_error(unseen, exact, result.packed, result.scale, 4) < 0.6 * nearest


def test_it_is_the_column_by_column_rounding_of_the_definition():
    """The same as a plain writing-down of the formula, one row and one column at a time."""
    from ptuning.quantize.gptq import _round_columns, _unit_upper_factor

    seen, exact = inputs(20), weight(3, 20)
    hessian = seen.T @ seen + 0.1 * torch.eye(20)
    factor, weights, added = _unit_upper_factor(hessian.clone())
    assert added == 0
    rebuilt = factor @ weights.diag() @ factor.T
    torch.testing.assert_close(rebuilt, hessian, rtol=1e-4, atol=1e-2)
    scale = quantize_weight(exact, 4)[1].float()
    values, error = _round_columns(exact, factor, weights, scale, 7)
    for row in range(3):
        done = []
        for column in range(20):
            carried = sum((exact[row, i] - done[i] * scale[row]) * factor[i, column] for i in range(column))
            done.append(torch.clamp(torch.round((exact[row, column] + carried) / scale[row]), -8, 7))
        assert torch.equal(values[row], torch.stack(done))
    difference = exact - values * scale[:, None]
    torch.testing.assert_close(error, (difference @ hessian * difference).sum(1), rtol=1e-3, atol=1e-3)


def test_rows_of_zeros_dead_inputs_and_inputs_that_repeat():
    seen, exact = inputs(32), weight(6, 32)
    seen[:, 5] = 0
    seen[:, 9] = seen[:, 8]
    exact[2] = 0
    result = Calibrator(seen.T @ seen).round(exact, 4)
    dense = dequantize_weight(result.packed, result.scale, 4)
    assert torch.isfinite(dense).all()
    assert torch.equal(dense[2], torch.zeros(32))
    # nothing is known of a dead input, so its weights are simply rounded
    assert (dense[:, 5] - exact[:, 5]).abs().max() <= result.scale.float().max() / 2 + 1e-6
    nothing = Calibrator(torch.zeros(32, 32)).round(exact, 4)
    assert torch.isfinite(dequantize_weight(nothing.packed, nothing.scale, 4)).all()


def test_damaged_inputs_and_weights_are_refused():
    with pytest.raises(UserError, match="NaN"):
        Calibrator(torch.full((4, 4), float("nan")))
    with pytest.raises(UserError, match="NaN"):
        Calibrator(torch.eye(4)).round(torch.full((2, 4), float("inf")), 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_embedding_rows_get_the_scale_with_the_least_error(bits):
    exact = weight(5000, 32) ** 3
    ours, nearest = (dequantize_weight(*pair, bits) for pair in (round_embedding(exact, bits), quantize_weight(exact, bits)))
    errors = [(exact - dense).square().sum(1) for dense in (ours, nearest)]
    assert (errors[0] <= errors[1] * 1.0001).all()
    assert bits == 8 or errors[0].sum() < 0.9 * errors[1].sum()


# ---- whole checkpoints -----------------------------------------------------------------------------------------------


def rows(count=24, seed=3):
    """Rows in which ids follow each other by rules, so that inputs have structure."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        first, step, length = draw.randrange(100, 600), draw.choice((1, 2, 5)), draw.randrange(8, 24)
        ids = [100 + (first + step * i) % 600 for i in range(length)]
        made.append([*ids[: length // 2], GMASK, SOP, *ids[length // 2 :], EOP])
    return made


def bold_model(folder):
    """The golden model with some input channels ten times as large as others: what makes real models hard to round."""
    state = golden_state()
    for name in state:
        if name.endswith("layernorm.weight") and "final" not in name:
            state[name] = state[name] * torch.linspace(0.2, 3.0, 32)
    return make_checkpoint(folder, state=state)


def display(advance):
    """A progress display that does this when it advances."""
    return SimpleNamespace(advance=advance, close=lambda: None)


def calibrate(source, target, bits=4, embeddings=False, progress=silent, **settings):
    job = plan_quantization(source, target, bits=bits, embeddings=embeddings, calibrated=True)
    return calibrate_checkpoint(job, rows(), CalibrationSettings(**settings), progress)


def tensors(folder):
    return {name: tensor.clone() for name, tensor in find_weights(folder).tensors()}


def logits(folder, some):
    model = ptuning.load_model(folder, device="cpu")
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[0].log_softmax(-1) for row in some])


def divergence(exact, other):
    return float((exact.exp() * (exact - other)).sum(-1).mean())


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_calibrated_model_is_clearly_closer_to_the_float_one(tmp_path, embeddings):
    source = bold_model(tmp_path / "float")
    calibrate(source, tmp_path / "gptq", embeddings=embeddings)
    quantize_checkpoint(plan_quantization(source, tmp_path / "rtn", bits=4, embeddings=embeddings))
    unseen = rows(12, seed=77)
    exact = logits(source, unseen)
    ours, nearest = (logits(tmp_path / name, unseen) for name in ("gptq", "rtn"))
    share = 0.7 if embeddings else 0.5  # rows that are looked up gain little
    assert divergence(exact, ours) < share * divergence(exact, nearest)
    assert (exact - ours).square().mean() < share * (exact - nearest).square().mean()
    report = json.loads((tmp_path / "gptq" / "calibration.json").read_text())
    errors = {name: pair for name, pair in report["relative_output_error"].items() if name != "columns"}
    assert len(errors) == 12 + embeddings
    assert all(calibrated <= nearest for nearest, calibrated in errors.values())


def test_only_quantised_weights_differ_from_rounding_to_the_nearest(tmp_path):
    calibrate(MODEL, tmp_path / "gptq", bits=8, embeddings=True)
    quantize_checkpoint(plan_quantization(MODEL, tmp_path / "rtn", bits=8, embeddings=True))
    ours, nearest = tensors(tmp_path / "gptq"), tensors(tmp_path / "rtn")
    assert list(ours) == list(nearest)
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (nearest[name].dtype, nearest[name].shape)
        if not name.endswith("weight_scale") and f"{name}_scale" not in ours:
            assert torch.equal(tensor, nearest[name])


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, caplog):
    def stop_in_the_third_layer(title, total, unit):
        counted = [0]

        def advance(amount):
            counted[0] += amount
            if counted[0] == 10:
                raise KeyboardInterrupt

        assert total == 12
        return display(advance)

    calibrate(MODEL, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        calibrate(MODEL, tmp_path / "parts", progress=stop_in_the_third_layer)
    assert not (tmp_path / "parts").exists()
    left = tmp_path / ".parts.calibration"
    made = {path.name: path.stat().st_mtime_ns for path in left.glob("*.safetensors")}
    assert set(made) == {"layer-000.safetensors", "layer-001.safetensors"}
    steps = []

    def note(title, total, unit):
        left_now = {path.name: path.stat().st_mtime_ns for path in left.glob("*.safetensors")}
        assert left_now == made
        return display(steps.append)

    with caplog.at_level("INFO", "ptuning"):
        calibrate(MODEL, tmp_path / "parts", progress=note)
    assert steps == [4, 4, 1, 1, 1, 1]
    assert "2 parts are there" in caplog.text
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "parts"}


def test_parts_of_other_settings_are_not_taken_over(tmp_path, caplog):
    calibrate(MODEL, tmp_path / "expected", damping=0.1)

    def stop(title, total, unit):
        def advance(amount):
            if list((tmp_path / ".t.calibration").glob("layer-000*")):
                raise KeyboardInterrupt

        return display(advance)

    with pytest.raises(KeyboardInterrupt):
        calibrate(MODEL, tmp_path / "t", progress=stop)
    with caplog.at_level("INFO", "ptuning"):
        calibrate(MODEL, tmp_path / "t", damping=0.1)
    assert "starting from scratch" in caplog.text
    found, expected = tensors(tmp_path / "t"), tensors(tmp_path / "expected")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "unlisted"])
def test_a_finished_layer_that_is_damaged_is_rounded_again(tmp_path, caplog, damage):
    def stop_in_the_third_layer(title, total, unit):
        def advance(amount):
            if list((tmp_path / ".parts.calibration").glob("layer-001*")):
                raise KeyboardInterrupt

        return display(advance)

    with pytest.raises(KeyboardInterrupt):
        calibrate(MODEL, tmp_path / "parts", progress=stop_in_the_third_layer)
    part = tmp_path / ".parts.calibration" / "layer-001.safetensors"
    data = bytearray(part.read_bytes())
    data[-7] ^= 1
    if damage == "unlisted":
        listed = json.loads((part.parent / "files.json").read_text())
        del listed["files"][part.name]
        (part.parent / "files.json").write_text(json.dumps(listed))
    else:
        part.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    calibrate(MODEL, tmp_path / "parts")
    assert "layer-001.safetensors" in caplog.text
    assert "rounded again" in caplog.text
    calibrate(MODEL, tmp_path / "whole")
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_damaged_weight_is_named(tmp_path):
    state = golden_state()
    state["transformer.layers.1.mlp.dense_4h_to_h.weight"][3, 3] = float("nan")
    source = make_checkpoint(tmp_path / "source", state=state)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.dense_4h_to_h\.weight.*NaN"):
        calibrate(source, tmp_path / "t")


def test_settings_and_rows_that_cannot_be_used(tmp_path):
    for settings in ({"damping": 0.0}, {"damping": 2.0}, {"batch_size": 0}):
        with pytest.raises(UserError, match=r"allowed|must be"):
            calibrate(MODEL, tmp_path / "t", **settings)
    job = plan_quantization(MODEL, tmp_path / "t", bits=4)
    with pytest.raises(UserError, match="needs rows"):
        calibrate_checkpoint(job, [])
    with pytest.raises(UserError, match="704 rows"):
        calibrate_checkpoint(job, [[5, 704, GMASK, SOP]])
    assert not list(tmp_path.iterdir())


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return ptuning.load_tokenizer(MODEL)


def test_rows_with_columns_become_training_rows(tokenizer, tmp_path):
    file = tmp_path / "r.json"
    file.write_text("".join(json.dumps({"q": f"问{i}", "a": "答" * 50}) + "\n" for i in range(10)), encoding="utf-8")
    settings = RowSettings(str(file), "q", "a", count=5, max_target_length=20)
    found = calibration_ids(tokenizer, settings)
    assert len(found) == 5
    assert [tokenizer.decode(ids[: ids.index(GMASK)]) for ids in found] == ["问0", "问2", "问4", "问6", "问8"]
    assert all(ids[-1] == EOP and ids.index(SOP) == ids.index(GMASK) + 1 for ids in found)
    assert max(map(len, found)) <= 20 + 10
    prompts = calibration_ids(tokenizer, RowSettings(str(file), "q"))
    assert len(prompts) == 10
    assert all(ids[-2:] == [GMASK, SOP] for ids in prompts)


def test_plain_texts_are_cut_in_halves(tokenizer, tmp_path):
    (tmp_path / "t.txt").write_text("今天天气很好我们去公园\n\nx\n<sop> 第二行\n", encoding="utf-8")
    found = calibration_ids(tokenizer, RowSettings(str(tmp_path / "t.txt")))
    assert len(found) == 2
    for ids in found:
        assert (ids.count(GMASK), ids.count(SOP), ids[-1]) == (1, 1, EOP)
    assert tokenizer.decode(found[0][: found[0].index(GMASK)]) == "今天天气很"


def test_rows_that_are_not_there(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "e.txt").write_text("\n\n")
    (tmp_path / "r.json").write_text('{"q": "a"}\n')
    for settings, says in (
        (RowSettings(str(tmp_path / "none.txt")), "none.txt"),
        (RowSettings(str(tmp_path / "e.txt")), "holds no texts"),
        (RowSettings(str(tmp_path / "r.json")), "--prompt_column is missing"),
        (RowSettings(str(tmp_path / "r.json"), "q", count=0), "1 or more"),
    ):
        with pytest.raises(UserError, match=says):
            calibration_ids(tokenizer, settings)
    monkeypatch.setattr("ptuning.data.calibration_rows.shipped_rows", lambda: tmp_path / "gone.json")
    with pytest.raises(UserError, match="--calibration_file is missing"):
        calibration_ids(tokenizer, RowSettings())
