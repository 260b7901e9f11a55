"""Loading: every layout gives the same tensors, and what does not fit is refused before it can answer."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import add_remote_code, golden_config, golden_state, make_checkpoint, write_json, write_weights
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import ptuning
from ptuning.checkpoint.checkpoint import choose_quantization, read_config
from ptuning.checkpoint.weight_files import find_weights
from ptuning.core.errors import UserError

PREFIX = "transformer.prefix_encoder."


def load(folder, **settings):
    return ptuning.load_model(folder, device="cpu", **settings)


def assert_holds(model, state):
    """Every parameter and buffer of the model is the file's, and the file's tensors are all there."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not [name for name, tensor in held.items() if tensor.is_meta]
    assert set(held) == set(state)
    for name, tensor in held.items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy"])
def test_every_layout_fills_every_tensor(tmp_path, form, shards):
    make_checkpoint(tmp_path, form=form, shards=shards)
    assert_holds(load(tmp_path), golden_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_is_kept_or_turned_into_the_one_asked_for(tmp_path, dtype):
    make_checkpoint(tmp_path, dtype=dtype)
    state = golden_state(dtype)
    assert_holds(load(tmp_path, dtype=str(dtype).removeprefix("torch.")), state)
    own = load(tmp_path)
    # On a CPU a float16 checkpoint is computed in float32 when nobody chose.
    assert own.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert_holds(own, {name: tensor.to(own.dtype) for name, tensor in state.items()})
    assert own.config.dtype == own.dtype
    assert AutoModel.from_pretrained(tmp_path).dtype == dtype  # transformers' way keeps the file's


def test_both_vocabularies_answer_alike(tmp_path, golden, golden_tensors):
    make_checkpoint(tmp_path / "early", early=True)
    early, late = load(tmp_path / "early"), load(golden / "model")
    assert early.config.vocab_size == 20704
    ids, real = golden_tensors["fwd.input_ids"], ~golden_tensors["fwd.attention_mask"][:, 0, -1]
    with torch.no_grad():
        shifted = early(ids + 20000, attention_mask=real.long()).logits[:, :, 20000:]
        assert torch.equal(shifted[real], late(ids, attention_mask=real.long()).logits[real])
    tokenizer = ptuning.load_tokenizer(tmp_path / "early")
    published = ptuning.load_tokenizer(golden / "model")("你好")["input_ids"]
    assert tokenizer("你好")["input_ids"] == [i + 20000 for i in published]


def test_rotary_buffers_of_the_file_are_ignored(tmp_path):
    state = golden_state()
    extra = {f"transformer.layers.{i}.attention.rotary_emb.inv_freq": torch.full((4,), 7.0) for i in range(3)}
    make_checkpoint(tmp_path, form="bin", state=state | extra)
    assert_holds(load(tmp_path), state)


def test_early_configs_without_mask_ids_load(tmp_path):
    make_checkpoint(tmp_path, config={"mask_token_id": None, "gmask_token_id": None})
    config = load(tmp_path).config
    assert (config.mask_token_id, config.gmask_token_id) == (85, 86)


@pytest.mark.parametrize("name", ["chatglm-6b-v1.1", "模型 a", "it's [1] 100%"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_folder_names_are_only_names(tmp_path, name, form):
    folder = add_remote_code(make_checkpoint(tmp_path / name, form=form, shards=2))
    assert_holds(load(folder), golden_state())
    assert_holds(load(str(folder) + os.sep), golden_state())
    assert ptuning.load_tokenizer(folder).bos_token_id == 89


def test_relative_folders_load(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "m")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("m", "./m", "./m/", Path("m")):
        assert load(path).device.type == "cpu"
    monkeypatch.chdir(tmp_path / "other")
    for path in ("../m", Path("..") / "m"):
        assert load(path).device.type == "cpu"


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/m").device.type == "cpu"


def test_the_source_is_not_kept_alive_or_changed(tmp_path):
    """What is loaded is a copy: writing to it must not reach the mapped file."""
    for form in ("safetensors", "bin"):
        folder = make_checkpoint(tmp_path / form, form=form)
        model = load(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert_holds(load(folder), golden_state())


# ---- what is refused ---------------------------------------------------------------------------------------------------


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    sign = tmp_path / "code-ran"

    class Trap:
        def __reduce__(self):
            return (os.system, (f"touch '{sign}'",))

    for protocol in ("zip", "plain"):
        if protocol == "zip":
            torch.save({"transformer.final_layernorm.weight": Trap()}, tmp_path / "pytorch_model.bin")
        else:
            (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap()}))
        with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
            load(tmp_path)
        assert not sign.exists()


def test_missing_tensors_are_named(tmp_path):
    state = golden_state()
    del state["transformer.layers.1.mlp.dense_h_to_4h.bias"]
    make_checkpoint(tmp_path, state=state)
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors.*layers\.1\.mlp\.dense_h_to_4h\.bias"):
        load(tmp_path)


def test_missing_tensors_are_found_before_the_weights_are_read(tmp_path, monkeypatch):
    """An index or a header names them all, so nobody waits for 13 GB to be told."""
    from ptuning.checkpoint import filling

    monkeypatch.setattr(filling, "_fill", lambda *args: pytest.fail("a weight was read"))
    state = golden_state()
    del state["lm_head.weight"]
    for form, shards in (("safetensors", 1), ("bin", 2), ("bin", 1)):
        folder = make_checkpoint(tmp_path / f"{form}{shards}", form=form, shards=shards, state=state)
        with pytest.raises(UserError, match=r"lacks 1 of .*lm_head\.weight"):
            load(folder)


def test_wrong_shapes_are_named_with_both(tmp_path):
    make_checkpoint(tmp_path, config={"vocab_size": 720})
    with pytest.raises(UserError, match=r"(lm_head|word_embeddings)\.weight.*\[704, 32\].*\[720, 32\]"):
        load(tmp_path)
    write_json(tmp_path / "config.json", golden_config(inner_hidden_size=64))
    with pytest.raises(UserError, match=r"config\.json asks for"):
        load(tmp_path)


def test_fewer_layers_in_the_config_than_on_file_is_refused(tmp_path):
    """Half of the file unused: the answers would be nonsense."""
    make_checkpoint(tmp_path, config={"num_layers": 2})
    with pytest.raises(UserError, match=r"layers\.2\..*num_layers"):
        load(tmp_path)


def test_scalars_and_other_things_in_place_of_tensors(tmp_path):
    state = golden_state()
    state["transformer.final_layernorm.weight"] = torch.tensor(1.0)
    make_checkpoint(tmp_path / "scalar", state=state)
    with pytest.raises(UserError, match=r"final_layernorm\.weight has shape \[\]"):
        load(tmp_path / "scalar")
    make_checkpoint(tmp_path / "list", form="bin", state=golden_state())
    torch.save([1, 2], tmp_path / "list" / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds a list"):
        load(tmp_path / "list")


def later_generation():
    return {"multi_query_attention": True, "ffn_hidden_size": 13696, "kv_channels": 128, "padded_vocab_size": 65024}


@pytest.mark.parametrize("key", ["multi_query_attention", "ffn_hidden_size", "kv_channels"])
def test_later_generations_are_named_before_weights_are_looked_at(tmp_path, key):
    make_checkpoint(tmp_path, config={key: later_generation()[key]})
    (tmp_path / "model.safetensors").write_bytes(b"not even a file")
    for call in (lambda: load(tmp_path), lambda: AutoModel.from_pretrained(tmp_path, trust_remote_code=True)):
        with pytest.raises(UserError, match=f"ChatGLM2.*{key}"):
            call()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"position_encoding_2d": False}, "position_encoding_2d"),
        ({"quantization_bit": 3}, "quantization_bit 3"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": -1}, "num_layers"),
        ({"vocab_size": 3.5}, "vocab_size"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"pre_seq_len": 0}, "pre_seq_len"),
        ({"bos_token_id": "sop"}, "bos_token_id"),
    ],
)
def test_configs_of_another_model_are_refused_by_name(tmp_path, changes, says):
    make_checkpoint(tmp_path, config=changes)
    with pytest.raises(UserError, match=rf"config\.json.*{says}"):
        load(tmp_path)


def test_a_missing_config_is_named(tmp_path):
    make_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load(tmp_path)


def test_a_folder_without_weights(tmp_path):
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path)


def test_nan_weights_are_refused_when_quantising_and_named(tmp_path):
    state = golden_state()
    state["transformer.layers.2.attention.dense.weight"][3, 3] = float("nan")
    make_checkpoint(tmp_path, state=state)
    with pytest.raises(UserError, match=r"layers\.2\.attention\.dense\.weight.*NaN"):
        load(tmp_path, quantization_bit=4)


# ---- quantised checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_while_reading_equals_quantised_alive_and_saved(tmp_path, golden, bits, dtype):
    reading = load(golden / "model", quantization_bit=bits, dtype=dtype)
    alive = load(golden / "model").quantize(bits).to(getattr(torch, dtype))
    state = {name: tensor.clone() for name, tensor in reading.state_dict().items()}
    assert state["transformer.layers.0.mlp.dense_4h_to_h.weight"].dtype == torch.int8
    assert_holds(alive, state)
    for shard_size, folder in (("50GB", tmp_path / "one"), ("100KB", tmp_path / "shards")):
        reading.save_pretrained(folder, max_shard_size=shard_size)
        again = load(folder, dtype=dtype)
        assert again.config.quantization_bit == bits
        assert_holds(again, state)
        assert_holds(load(folder, dtype=dtype, quantization_bit=bits), state)
        assert_holds(AutoModelForCausalLM.from_pretrained(folder), state)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_embeddings_load(tmp_path, golden, bits, golden_tensors):
    """The INT4-QE form: embedding and head are packed too."""
    model = load(golden / "model").quantize(bits, quantize_embeddings=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_embeddings"] is True
    state = load_file(tmp_path / "model.safetensors")
    assert state["lm_head.weight"].dtype == torch.int8
    assert state["transformer.word_embeddings.weight_scale"].shape == (704,)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        again = load(tmp_path, dtype=dtype)
        assert not [name for name, tensor in again.named_buffers() if tensor.is_meta]
        with torch.no_grad():
            logits = again(golden_tensors["one.input_ids"]).logits
        assert logits.dtype == dtype
        if dtype == torch.float32:
            assert torch.equal(logits, model(golden_tensors["one.input_ids"]).logits)


def test_four_and_eight_bits_are_named_before_weights_are_read(tmp_path, golden):
    load(golden / "model", quantization_bit=4).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"quantised to 4 bits.*quantization_bit 8"):
        load(tmp_path, quantization_bit=8)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_tensors_under_a_float_config(tmp_path, golden, bits):
    load(golden / "model", quantization_bit=bits).save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", golden_config())
    with pytest.raises(UserError, match=rf"int8.*quantization_bit.*{bits}"):
        load(tmp_path)
    assert load(tmp_path, quantization_bit=bits).config.quantization_bit == bits
    with pytest.raises(UserError, match=rf"quantised to {bits} bits"):
        load(tmp_path, quantization_bit=12 - bits)


def test_other_numbers_of_bits(golden):
    for bits in (1, 2, 16, -4, "4", True):
        with pytest.raises(UserError, match="allowed are 4 and 8"):
            load(golden / "model", quantization_bit=bits)
    assert load(golden / "model", quantization_bit=0).config.quantization_bit == 0


def test_choose_quantization():
    where = Path("m")
    assert [choose_quantization(0, asked, where) for asked in (None, 0, 4, 8)] == [0, 0, 4, 8]
    assert [choose_quantization(4, asked, where) for asked in (None, 0, 4)] == [4, 4, 4]


# ---- transformers' own door ------------------------------------------------------------------------------------------


def test_auto_model_takes_quantization_bit_by_either_road(golden):
    direct = AutoModelForCausalLM.from_pretrained(golden / "model", quantization_bit=4)
    config = AutoConfig.from_pretrained(golden / "model")
    config.quantization_bit = 4
    given = AutoModel.from_pretrained(golden / "model", config=config)
    for model in (direct, given):
        assert model.config.quantization_bit == 4
        assert model.transformer.layers[0].attention.dense.weight.dtype == torch.int8


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_auto_model_takes_dtypes(golden, key):
    for given in (torch.bfloat16, "bfloat16"):
        model = AutoModel.from_pretrained(golden / "model", **{key: given})
        assert model.dtype == torch.bfloat16
        assert model.lm_head.weight.dtype == torch.bfloat16
    assert AutoModel.from_pretrained(golden / "model", **{key: "auto"}).dtype == torch.float32


def test_auto_model_takes_the_usual_keywords(golden):
    model, info = AutoModel.from_pretrained(
        golden / "model", trust_remote_code=True, low_cpu_mem_usage=True, device_map="cpu", output_loading_info=True,
        use_cache=False, attn_implementation="sdpa",
    )
    assert not any(info.values())
    assert model.config.use_cache is False
    assert model.device.type == "cpu"


def test_words_that_mean_nothing_are_refused(golden):
    for wrong in ({"quantisation_bit": 4}, {"load_in_4bit": True}, {"subfolder": "m"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ptuning.ChatGLMForConditionalGeneration.from_pretrained(golden / "model", **wrong)
    with pytest.raises(UserError, match="keywords only"):
        ptuning.ChatGLMForConditionalGeneration.from_pretrained(golden / "model", 4)


def test_a_given_config_is_left_as_it_was(golden):
    config = read_config(golden / "model")
    config.pre_seq_len = 5
    model = AutoModel.from_pretrained(golden / "model", config=config)
    assert (config.pre_seq_len, config.prefix_projection) == (5, False)
    assert model.prefix_encoder.fresh
    assert not model.training


def test_a_config_may_be_given_as_a_folder(golden):
    model = ptuning.ChatGLMForConditionalGeneration.from_pretrained(golden / "model", config=str(golden / "model"))
    assert model.config.hidden_size == 32


# ---- a prefix inside the model's files ------------------------------------------------------------------------------


def with_prefix(golden, projection=False):
    name = "checkpoint-prefix_projection" if projection else "checkpoint-prefix"
    return golden_state() | torch.load(golden / name / "pytorch_model.bin", weights_only=True)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("stated", [False, True])
def test_a_full_file_with_a_prefix_loads_with_it(tmp_path, golden, golden_tensors, projection, stated):
    """Whether or not config.json states it: both sizes stand in the tensors."""
    config = {"pre_seq_len": 6, "prefix_projection": projection} if stated else {}
    make_checkpoint(tmp_path, form="bin", state=with_prefix(golden, projection), config=config)
    model = load(tmp_path)
    assert (model.config.pre_seq_len, model.config.prefix_projection) == (6, projection)
    assert not model.prefix_encoder.fresh
    real = ~golden_tensors["fwd.attention_mask"][:, 0, -1]
    with torch.no_grad():
        logits = model(golden_tensors["fwd.input_ids"], attention_mask=real).logits
    name = "prefix_projection" if projection else "prefix"
    torch.testing.assert_close(logits[real], golden_tensors[f"{name}.logits"][real], rtol=0, atol=1e-5)


def test_a_prefix_of_another_length_than_config_or_flag(tmp_path, golden):
    make_checkpoint(tmp_path / "config", form="bin", state=with_prefix(golden), config={"pre_seq_len": 9})
    with pytest.raises(UserError, match=r"pre_seq_len.*6.*9|pre_seq_len.*9.*6"):
        load(tmp_path / "config")
    make_checkpoint(tmp_path / "flag", form="bin", state=with_prefix(golden))
    with pytest.raises(UserError, match=r"pre_seq_len.*6.*9|pre_seq_len.*9.*6"):
        load(tmp_path / "flag", pre_seq_len=9)
    with pytest.raises(UserError, match="projection"):
        load(tmp_path / "flag", pre_seq_len=6, prefix_projection=True)
    assert not load(tmp_path / "flag", pre_seq_len=6).prefix_encoder.fresh


def test_a_saved_model_with_a_prefix_loads_with_it(tmp_path, golden):
    model = load(golden / "model", ptuning_checkpoint=golden / "checkpoint-prefix", quantization_bit=4, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert_holds(again, model.state_dict())
    assert again.prefix_encoder.embedding.weight.dtype == torch.float32
    assert_holds(AutoModel.from_pretrained(tmp_path), model.state_dict())


# ---- fingerprint and memory -------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_weights_not_of_their_layout(tmp_path):
    seen = set()
    for form, shards, dtype in (
        ("safetensors", 1, torch.float32), ("bin", 1, torch.float32), ("safetensors", 3, torch.float32),
        ("bin", 4, torch.float32), ("bin", 2, torch.float16),
    ):
        folder = make_checkpoint(tmp_path / f"{form}{shards}{dtype}", form=form, shards=shards, dtype=dtype)
        seen |= {load(folder).base_fingerprint, load(folder, quantization_bit=4).base_fingerprint}
    assert len(seen) == 1
    state = golden_state()
    state["transformer.final_layernorm.weight"][0] += 1
    assert load(make_checkpoint(tmp_path / "other", state=state)).base_fingerprint not in seen


MEASURE = """
import ctypes, gc, sys, torch, ptuning
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
torch.set_num_threads(1)
ptuning.load_model(sys.argv[1], device="cpu")  # a small one first: code and libraries are in memory now
for folder, bits in ((sys.argv[3], 4), (sys.argv[2], 0), (sys.argv[3], 0)):
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what is free goes back to the system
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = memory("VmRSS")
    model = ptuning.load_model(folder, device="cpu", quantization_bit=bits, dtype="float16")
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    print(memory("VmHWM") - before, held)
    del model
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measured with Linux's /proc and glibc")
def test_peak_memory_is_the_model_and_one_shard(tmp_path):
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "inner_hidden_size": 8192, "num_layers": 5}
    config = read_config(make_checkpoint(tmp_path / "small"))
    for key, value in sizes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        names = ptuning.ChatGLMForConditionalGeneration(config).state_dict()
    state = {name: torch.full(tensor.shape, 0.01, dtype=torch.float16) for name, tensor in names.items()}
    whole = sum(tensor.numel() * 2 for tensor in state.values()) / 2**20
    folders = [tmp_path / "safetensors", tmp_path / "bin"]
    for folder in folders:
        folder.mkdir()
        write_json(folder / "config.json", golden_config(torch_dtype="float16", **sizes))
        write_weights(folder, state, folder.name, shards=8)
    shard = max(path.stat().st_size for path in folders[0].iterdir()) / 2**20
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), *map(str, folders)],
        capture_output=True, text=True, check=True, timeout=300,
    )
    for folder in folders:
        shutil.rmtree(folder)
    assert whole > 150
    assert shard < whole / 3
    for line in run.stdout.splitlines():
        used, held = map(float, line.split())
        assert used < held + shard + 40, f"{used:.0f} MB for a model of {held:.0f} MB in shards of at most {shard:.0f} MB"


def test_weight_files_come_in_order(tmp_path):
    make_checkpoint(tmp_path, form="bin", shards=3)
    files = find_weights(tmp_path)
    assert [path.name for path in files.paths] == [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
    assert not files.safetensors
