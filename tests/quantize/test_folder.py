"""Writing a quantised folder: the published layout, whole or not at all, in the memory of one tensor and one shard."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from checkpoints import GOLDEN, golden_config, golden_state, make_checkpoint, write_json, write_weights
from safetensors.torch import load_file

import ptuning
from ptuning.checkpoint.checkpoint import read_config
from ptuning.checkpoint.shard_writer import parse_size
from ptuning.checkpoint.weight_files import find_weights
from ptuning.core.errors import UserError
from ptuning.methods.prefix_tensors import PREFIX_KEY
from ptuning.model.quantization import quantize_weight
from ptuning.quantize.folder import plan_quantization, quantize_checkpoint

MODEL = GOLDEN / "model"
SMALL_FILES = {"config.json", "ice_text.model", "tokenizer_config.json"}


def quantize(source, target, bits=4, **settings):
    return quantize_checkpoint(plan_quantization(source, target, bits=bits, **settings))


def tensors(folder):
    return {name: tensor.clone() for name, tensor in find_weights(folder).tensors()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_folder_is_what_a_live_quantised_model_saves(tmp_path, bits, embeddings, dtype):
    source = make_checkpoint(tmp_path / "source", dtype=dtype, form="bin", shards=2)
    quantize(source, tmp_path / "streamed", bits, embeddings=embeddings)
    alive = ptuning.load_model(source, device="cpu", dtype=dtype).quantize(bits, quantize_embeddings=embeddings)
    alive.save_pretrained(tmp_path / "saved")
    assert_same(tensors(tmp_path / "streamed"), tensors(tmp_path / "saved"))
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("streamed", "saved"))
    for key in ("quantization_bit", "quantization_embeddings", "vocab_size", "num_layers", "bos_token_id"):
        assert one[key] == other[key], key
    assert (one["quantization_bit"], one["quantization_embeddings"]) == (bits, embeddings)
    assert_same(dict(ptuning.load_model(tmp_path / "streamed", device="cpu", dtype=dtype).state_dict()), alive.state_dict())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_folder_gives_the_published_logits(tmp_path, golden_tensors, bits):
    quantize(MODEL, tmp_path / "q", bits)
    model = ptuning.load_model(tmp_path / "q", device="cpu")
    real = ~golden_tensors["fwd.attention_mask"][:, 0, -1]
    with torch.no_grad():
        logits = model(golden_tensors["fwd.input_ids"], attention_mask=real.long()).logits
    expected = golden_tensors[f"quant.int{bits}.logits"]
    torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_large_weights_are_rounded_in_pieces(monkeypatch, bits):
    weight = torch.randn(37, 24, generator=torch.Generator().manual_seed(0))
    whole = quantize_weight(weight, bits)
    monkeypatch.setattr("ptuning.core.limits.MAX_ROUNDED", 100)
    assert all(torch.equal(one, other) for one, other in zip(quantize_weight(weight, bits), whole, strict=True))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_have_the_stated_size_and_an_index(tmp_path, form):
    done = quantize(MODEL, tmp_path / "m", form=form, shard_bytes=60_000)
    assert len(done.files) > 2
    stem = "model" if form == "safetensors" else "pytorch_model"
    index = json.loads((tmp_path / "m" / f"{stem}.{form}.index.json").read_text())
    assert index["metadata"]["total_size"] == done.total_bytes
    assert set(index["weight_map"].values()) == {path.name for path in done.files}
    for path in done.files:
        part = load_file(path) if form == "safetensors" else torch.load(path, weights_only=True)
        size = sum(tensor.numel() * tensor.element_size() for tensor in part.values())
        assert size <= 60_000 or len(part) == 1
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(part)
    assert {path.name for path in (tmp_path / "m").iterdir()} - {path.name for path in done.files} == {
        *SMALL_FILES, f"{stem}.{form}.index.json",
    }
    whole = quantize(MODEL, tmp_path / "whole", form=form)
    assert [path.name for path in whole.files] == [f"{stem}.{form}"]
    assert_same(tensors(tmp_path / "m"), tensors(tmp_path / "whole"))
    assert ptuning.load_model(tmp_path / "m", device="cpu").config.quantization_bit == 4


def test_small_files_come_along_and_weights_and_folders_do_not(tmp_path):
    source = make_checkpoint(tmp_path / "source")
    for name in ("MODEL_LICENSE", "modeling_chatglm.py", "README.md"):
        (source / name).write_text(name)
    for name in (".hidden", "pytorch_model.bin", "flax_model.msgpack"):
        (source / name).write_text("x")
    (source / "checkpoint-5").mkdir()
    quantize(source, tmp_path / "target")
    assert {path.name for path in (tmp_path / "target").iterdir()} == {
        *SMALL_FILES, "MODEL_LICENSE", "modeling_chatglm.py", "README.md", "model.safetensors",
    }
    assert (tmp_path / "target" / "MODEL_LICENSE").read_text() == "MODEL_LICENSE"
    others = {path.stat().st_mode & 0o777 for path in (tmp_path / "target").iterdir()}
    assert len(others) == 1, "every file can be read by the same people"


def test_a_prefix_in_the_files_is_kept_as_it_is(tmp_path):
    prefix = torch.randn(5, 2 * 3 * 32)
    state = golden_state() | {f"{PREFIX_KEY}embedding.weight": prefix}
    source = make_checkpoint(tmp_path / "source", state=state, config={"pre_seq_len": 5})
    quantize(source, tmp_path / "target")
    model = ptuning.load_model(tmp_path / "target", device="cpu")
    assert torch.equal(model.prefix_encoder.embedding.weight, prefix)


# ---- what is refused, and what is left behind ------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "asked"), [(4, 8), (4, 4), (8, 4)])
def test_a_quantised_source_is_refused_naming_both(tmp_path, bits, asked):
    quantize(MODEL, tmp_path / "q", bits)
    with pytest.raises(UserError, match=rf"q is quantised to {bits} bits.*{asked} bits.*float"):
        quantize(tmp_path / "q", tmp_path / "again", asked)
    assert not (tmp_path / "again").exists()
    # the same where only the tensors tell
    write_json(tmp_path / "q" / "config.json", golden_config())
    with pytest.raises(UserError, match=rf"int8.*{bits} bits"):
        quantize(tmp_path / "q", tmp_path / "again", asked)


def test_targets_in_the_way(tmp_path):
    target = tmp_path / "t"
    target.mkdir()
    quantize(MODEL, target)  # an empty folder is no harm
    before = tensors(target)
    with pytest.raises(UserError, match=r"not empty.*--overwrite"):
        quantize(MODEL, target, 8)
    assert_same(tensors(target), before)
    quantize(MODEL, target, 8, overwrite=True)
    assert ptuning.load_model(target, device="cpu").config.quantization_bit == 8
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        quantize(MODEL, tmp_path / "file", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="no model folder"):
        quantize(MODEL, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_source_is_never_the_target(tmp_path):
    source = make_checkpoint(tmp_path / "outer" / "source")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "outer" / "config.json").write_text("{}")
    for target in (source, tmp_path / "link", tmp_path / "outer"):
        with pytest.raises(UserError, match="another folder"):
            quantize(source, target, overwrite=True)
    assert_same(tensors(source), golden_state())


def test_a_failure_leaves_nothing_behind(tmp_path):
    state = golden_state()
    state["transformer.layers.2.attention.dense.weight"][3, 3] = float("nan")
    source = make_checkpoint(tmp_path / "source", state=state)
    earlier = quantize(MODEL, tmp_path / "target").folder
    before = tensors(earlier)
    with pytest.raises(UserError, match=r"layers\.2\.attention\.dense\.weight.*NaN"):
        quantize(source, earlier, overwrite=True)
    with pytest.raises(UserError, match="NaN"):
        quantize(source, tmp_path / "new")
    assert_same(tensors(earlier), before)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_what_a_killed_run_left_is_no_checkpoint_and_no_hindrance(tmp_path):
    job = plan_quantization(MODEL, tmp_path / "t", bits=4, shard_bytes=30_000)
    job.workplace.mkdir(parents=True)
    (job.workplace / "weights-00001.part").write_text("half")
    assert find_weights(job.workplace) is None
    quantize_checkpoint(job)
    assert {path.name for path in tmp_path.iterdir()} == {"t"}
    assert ptuning.load_model(tmp_path / "t", device="cpu").config.quantization_bit == 4


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=8_300_000))
    with pytest.raises(UserError, match=r"needs about 0\.0 GB.*free there"):
        plan_quantization(MODEL, tmp_path / "a" / "b", bits=4)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=8_700_000))
    plan_quantization(MODEL, tmp_path / "a" / "b", bits=4)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("bits", [0, 3, 16, True, "4"])
def test_other_bits(tmp_path, bits):
    with pytest.raises(UserError, match="allowed are 4 and 8"):
        plan_quantization(MODEL, tmp_path / "t", bits=bits)


def test_a_prefix_folder_is_no_source(tmp_path):
    with pytest.raises(UserError, match="holds a prefix"):
        plan_quantization(GOLDEN / "checkpoint-prefix", tmp_path / "t", bits=4)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5gib", 3 * 2**29), ("4096", 4096), ("10kb", 10**4)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "GB", "-1GB", "0", "1 TBB", "0.1"])
def test_sizes_that_mean_nothing(text):
    with pytest.raises(UserError, match="size"):
        parse_size(text)


# ---- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys, torch
from ptuning.quantize.folder import plan_quantization, quantize_checkpoint
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.set_num_threads(1)
quantize_checkpoint(plan_quantization(sys.argv[1], sys.argv[3] + "-small", bits=4))  # libraries are in memory now
before = peak()
quantize_checkpoint(plan_quantization(sys.argv[2], sys.argv[3], bits=4, shard_bytes=10 * 2**20))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux only")
def test_peak_memory_is_a_layer_and_the_shards(tmp_path):
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "inner_hidden_size": 2048, "num_layers": 20}
    config = read_config(MODEL)
    for key, value in sizes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        names = ptuning.ChatGLMForConditionalGeneration(config).state_dict()
    state = {name: torch.full(tensor.shape, 0.01, dtype=torch.float16) for name, tensor in names.items()}
    ordered = sorted(state, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
    count, whole = len(ordered), sum(tensor.numel() * 2 for tensor in state.values()) / 2**20
    state = {name: state[name] for turn in range(8) for name in ordered[turn * count // 8 : (turn + 1) * count // 8]}
    folder = tmp_path / "large"
    folder.mkdir()
    write_json(folder / "config.json", golden_config(torch_dtype="float16", **sizes))
    write_weights(folder, state, "bin", shards=8)
    del state
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(MODEL), str(folder), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for file in folder.iterdir():
        file.unlink()
    source_shard, layer, shard = whole / 8, 12 * 512 * 512 * 4 / 2**20, 10
    assert whole > 115
    used = float(run.stdout)
    assert used < source_shard + layer + 2 * shard + 20, f"{used:.0f} MB used for a model of {whole:.0f} MB"
