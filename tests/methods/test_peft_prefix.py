"""PEFT's prefix-tuning adapters, written and read against the real package."""

import json

import pytest
import torch
from prefixes import save_peft_prefix
from safetensors.torch import load_file, save_file

import ptuning
from ptuning.checkpoint.adapter import read_adapter
from ptuning.core.errors import UserError
from ptuning.model.prefix_encoder import PrefixConfig, PrefixEncoder

LAYERS, HEADS, HIDDEN, LENGTH = 3, 4, 32, 5


def encoder(projection=False):
    torch.manual_seed(3)
    return PrefixEncoder(PrefixConfig(LENGTH, projection, LAYERS, HEADS, HIDDEN)).eval()


@pytest.fixture
def base():
    """A decoder of transformers' own with the golden model's layers, heads and hidden size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=40,
        num_key_value_heads=HEADS, max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def ours(prefix):
    """[L, 2, N, P, H] of a prefix encoder."""
    with torch.no_grad():
        return torch.stack([torch.stack((key[0], value[0])) for key, value in prefix(torch.float32)])


def theirs(model):
    """The same of a PEFT model, from the cache that it hands to its base model."""
    with torch.no_grad():
        cache = model.get_prompt(batch_size=1)
    pairs = [(layer.keys[0], layer.values[0]) for layer in getattr(cache, "self_attention_cache", cache).layers]
    return torch.stack([torch.stack(pair) for pair in pairs])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projection"])
def test_peft_loads_what_we_write(tmp_path, base, projection):
    peft = pytest.importorskip("peft")
    made = encoder(projection)
    save_peft_prefix(tmp_path, made, "someone/base")
    model = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(theirs(model), ours(made), rtol=0, atol=1e-6)
    assert model.peft_config["default"].base_model_name_or_path == "someone/base"
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projection"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_we_load_what_peft_writes(tmp_path, base, golden, projection, safe):
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=projection, encoder_hidden_size=24
    )
    model = peft.get_peft_model(base, config).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter)
    expected = theirs(model)
    model.save_pretrained(tmp_path)
    if not safe:  # as older versions of peft write it
        torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_model.safetensors").unlink()
    read = read_adapter(tmp_path, pre_seq_len=LENGTH)
    assert read.projection is False
    tuned = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path)
    torch.testing.assert_close(ours(tuned.prefix_encoder), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projection"])
def test_there_and_back(tmp_path, projection, golden):
    made = encoder(projection)
    save_peft_prefix(tmp_path, made)
    read = read_adapter(tmp_path)
    assert (read.pre_seq_len, read.projection) == (LENGTH, False)
    back = read.encoder(ptuning.load_model(golden / "model").config).eval()
    torch.testing.assert_close(ours(back), ours(made), rtol=0, atol=1e-6)


def test_the_adapter_given_as_the_model(tmp_path):
    save_peft_prefix(tmp_path, encoder())
    with pytest.raises(UserError, match=r"holds a prefix \(5 tokens\).*--model_name_or_path"):
        ptuning.load_model(tmp_path, device="cpu")


def test_the_base_model_stands_in_the_adapter_too(tmp_path, golden):
    save_peft_prefix(tmp_path, encoder(), str(golden / "model"))
    assert ptuning.load_model(tmp_path, device="cpu").config.pre_seq_len == LENGTH


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_is_no_prefix_adapter(tmp_path, golden):
    save_peft_prefix(tmp_path, encoder())
    rows = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    for changes, says in (
        ({"peft_type": "LORA"}, "peft_type 'LORA'; only PREFIX_TUNING"),
        ({"peft_type": None}, "peft_type None"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8}, "num_virtual_tokens 8.*holds 5"),
        ({"num_virtual_tokens": 5, "num_transformer_submodules": 2}, "2 part"),
    ):
        edit(tmp_path, **changes)
        with pytest.raises(UserError, match=says):
            read_adapter(tmp_path)
    edit(tmp_path, num_transformer_submodules=1)
    for tensors, says in (
        ({"lora_A.weight": rows}, "prompt_embeddings"),
        ({"prompt_embeddings": rows[0]}, "prompt_embeddings"),
        ({"prompt_embeddings": rows * float("nan")}, "NaN"),
    ):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=says):
            read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match="incomplete or damaged"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        read_adapter(tmp_path)


def test_an_adapter_of_another_model(tmp_path, golden):
    save_peft_prefix(tmp_path, PrefixEncoder(PrefixConfig(5, False, 2, HEADS, HIDDEN)))
    with pytest.raises(UserError, match="holds a prefix of 128 numbers a slot"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path)
    save_peft_prefix(tmp_path, PrefixEncoder(PrefixConfig(5, False, LAYERS, 2, HIDDEN)))
    with pytest.raises(UserError, match="num_attention_heads 2"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path)
