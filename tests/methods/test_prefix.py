"""Prefix checkpoints: ours and the published form, both ways, and what is refused."""

import json
import shutil

import pytest
import torch
from checkpoints import POINTER, golden_state, make_checkpoint, write_weights
from prefixes import save_peft_prefix, save_prefix, save_published_prefix
from transformers import AutoConfig, AutoModel

import ptuning
from ptuning.checkpoint.adapter import is_adapter_folder, read_adapter
from ptuning.core.errors import UserError
from ptuning.methods.prefix_forms import published_state
from ptuning.model.prefix_encoder import PrefixConfig, PrefixEncoder

KEY = "transformer.prefix_encoder."
both = pytest.mark.parametrize("projection", [False, True], ids=["plain", "projection"])


def golden_name(projection):
    return "checkpoint-prefix_projection" if projection else "checkpoint-prefix"


def encoder(projection=False, length=5, layers=3, hidden=32, heads=4):
    torch.manual_seed(7)
    return PrefixEncoder(PrefixConfig(length, projection, layers, heads, hidden))


def equal(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, theirs[name]), name


# ---- both ways -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("length", [1, 5])
def test_our_form_comes_back(tmp_path, projection, length):
    made = encoder(projection, length)
    folder = tmp_path / "模型 a" / "checkpoint-10"
    save_prefix(folder, made, {"base_model": "中文/模型", "legacy_first_round": True})
    read = read_adapter(folder)
    equal(read.tensors, made.state_dict())
    assert (read.pre_seq_len, read.projection, read.path.name) == (length, projection, "prefix_encoder.safetensors")
    assert read.settings["base_model"] == "中文/模型"
    assert read.settings["legacy_first_round"] is True
    equal(read_adapter(read.path).tensors, made.state_dict())  # the file itself may be named, too
    assert is_adapter_folder(folder)


@both
def test_published_files_are_read(golden, projection):
    folder = golden / golden_name(projection)
    read = read_adapter(folder)
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    equal({KEY + name: tensor for name, tensor in read.tensors.items()}, stored)
    assert (read.pre_seq_len, read.projection, read.settings) == (6, projection, {})
    assert is_adapter_folder(folder)


@both
def test_published_files_are_written_as_published(tmp_path, golden, projection):
    folder = golden / golden_name(projection)
    model = ptuning.load_model(golden / "model", device="cpu", dtype="bfloat16", ptuning_checkpoint=folder)
    save_published_prefix(tmp_path, model.prefix_encoder)
    written = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    published = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert list(written) == list(published)
    equal(written, published)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 4 for tensor in written.values())


@both
def test_the_published_way_of_loading_accepts_what_we_write(tmp_path, golden, golden_tensors, projection):
    """The lines that the published README gives for a P-Tuning v2 checkpoint."""
    save_published_prefix(tmp_path, read_adapter(golden / golden_name(projection)).encoder(ptuning.ChatGLMConfig(
        num_layers=3, hidden_size=32, num_attention_heads=4)))
    config = AutoConfig.from_pretrained(
        str(golden / "model"), trust_remote_code=True, pre_seq_len=6, prefix_projection=projection
    )
    model = AutoModel.from_pretrained(str(golden / "model"), config=config, trust_remote_code=True)
    prefix_state_dict = torch.load(str(tmp_path / "pytorch_model.bin"))
    new_prefix_state_dict = {}
    for k, v in prefix_state_dict.items():
        if k.startswith("transformer.prefix_encoder."):
            new_prefix_state_dict[k[len("transformer.prefix_encoder.") :]] = v
    model.transformer.prefix_encoder.load_state_dict(new_prefix_state_dict)
    model.transformer.prefix_encoder.float()
    model = model.eval()
    real = ~golden_tensors["fwd.attention_mask"][:, 0, -1]
    name = "prefix_projection" if projection else "prefix"
    with torch.no_grad():
        logits = model(golden_tensors["fwd.input_ids"], attention_mask=real).logits
    torch.testing.assert_close(logits[real], golden_tensors[f"{name}.logits"][real], rtol=0, atol=1e-5)
    given = {"attention_mask": real.long(), "do_sample": False, "max_length": 44}
    assert torch.equal(model.generate(golden_tensors["fwd.input_ids"], **given), golden_tensors[f"{name}.greedy"])


@both
@pytest.mark.parametrize(("form", "shards"), [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2), ("legacy", 1)])
def test_the_prefix_is_taken_out_of_a_full_file(tmp_path, projection, form, shards):
    made = encoder(projection)
    write_weights(tmp_path, golden_state(torch.float16) | published_state(made), form, shards)
    read = read_adapter(tmp_path)
    equal(read.tensors, made.state_dict())
    assert not is_adapter_folder(tmp_path)


def test_half_precision_files_become_float32(tmp_path):
    made = encoder(True)
    half = {name: tensor.half() for name, tensor in published_state(made).items()}
    write_weights(tmp_path, half, "bin")
    equal(read_adapter(tmp_path).tensors, {name: tensor.half().float() for name, tensor in made.state_dict().items()})


def test_our_form_wins_over_exports_beside_it(tmp_path):
    save_prefix(tmp_path, encoder(True), {"base_model": "x"})
    save_published_prefix(tmp_path, encoder(False, length=9))
    save_peft_prefix(tmp_path, encoder(True))
    read = read_adapter(tmp_path)
    assert (read.pre_seq_len, read.projection, read.settings["base_model"]) == (5, True, "x")


# ---- flags -------------------------------------------------------------------------------------------------------------


@both
def test_flags_that_agree_or_say_nothing(golden, projection):
    whole = {"pre_seq_len": 6, "prefix_projection": projection}
    for flags in ({}, {"pre_seq_len": 6}, {"prefix_projection": projection}, whole):
        assert read_adapter(golden / golden_name(projection), **flags).pre_seq_len == 6


@both
def test_flags_that_contradict_name_both(golden, projection):
    folder = golden / golden_name(projection)
    for wrong in (128, 0):
        with pytest.raises(UserError, match=f"pre_seq_len=6, you passed {wrong}"):
            read_adapter(folder, pre_seq_len=wrong)
    has = "a" if projection else "no"
    with pytest.raises(UserError, match=f"has {has} projection, you passed prefix_projection={not projection}"):
        read_adapter(folder, prefix_projection=not projection)
    with pytest.raises(UserError, match="you passed 128"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=folder, pre_seq_len=128)


# ---- other models ----------------------------------------------------------------------------------------------------


@both
def test_another_size_names_both(golden, tmp_path, projection):
    for shape in ({"layers": 2}, {"hidden": 16}):
        folder = tmp_path / str(shape)
        save_published_prefix(folder, encoder(projection, **shape))
        with pytest.raises(UserError, match=r"a prefix of \d+ numbers a slot.*3 layers of hidden size 32 and needs 192"):
            ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=folder)


def test_equal_width_of_other_layers_and_heads_is_refused_where_it_is_known(golden, tmp_path):
    save_prefix(tmp_path / "layers", encoder(layers=6, hidden=16))
    save_prefix(tmp_path / "heads", encoder(heads=2))
    save_published_prefix(tmp_path / "projected", encoder(True, layers=6, hidden=16))
    for name, says in (("layers", "num_layers 6"), ("heads", "num_attention_heads 2"), ("projected", "hidden size 16")):
        with pytest.raises(UserError, match=says):
            ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path / name)


def test_a_chatglm2_prefix_is_named(tmp_path, golden):
    write_weights(tmp_path, {f"{KEY}embedding.weight": torch.zeros(8, 14336)}, "bin")
    with pytest.raises(UserError, match=r"14336 numbers a slot .*ChatGLM2-6B or ChatGLM3-6B"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path)
    with pytest.raises(UserError, match=r"needs 229376 \(ChatGLM-6B\)"):
        read_adapter(tmp_path).encoder(ptuning.ChatGLMConfig())


def test_another_model_is_refused_before_its_weights_are_read(golden, tmp_path):
    folder = make_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"cut")
    save_prefix(tmp_path / "p", encoder(layers=2))
    with pytest.raises(UserError, match="numbers a slot"):
        ptuning.load_model(folder, device="cpu", ptuning_checkpoint=tmp_path / "p")


# ---- damaged and strange files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"embedding.weight": None}, {"trans.0.bias": None}, {"extra": torch.ones(1)}, {"embedding.weight": torch.ones(32)},
        {"embedding.weight": torch.ones(5, 16)}, {"embedding.weight": torch.ones(0, 32)}, {"trans.2.bias": torch.ones(3)},
        {"trans.2.weight": torch.tensor(1.0)}, {"trans.0.weight": torch.ones(32, 16)},
        {"trans.2.weight": torch.ones(192, 32, 1)},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_tensors_that_do_not_fit_together(tmp_path, change):
    state = {name.removeprefix(KEY): tensor for name, tensor in published_state(encoder(True)).items()} | change
    write_weights(tmp_path, {KEY + name: tensor for name, tensor in state.items() if tensor is not None}, "bin")
    with pytest.raises(UserError, match=r"no usable prefix|do not fit together"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prefix_of_nan_is_refused(tmp_path, value):
    """Chat with it would answer blanks."""
    made = encoder()
    with torch.no_grad():
        made.embedding.weight[2, 3] = value
    save_prefix(tmp_path, made)
    with pytest.raises(UserError, match=r"NaN or infinity in embedding\.weight"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("name", ["prefix_encoder.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["pointer", "half", "empty"])
def test_half_written_files_and_pointers(tmp_path, golden, name, damage):
    (save_prefix if name.startswith("prefix") else save_published_prefix)(tmp_path, encoder())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes({"pointer": POINTER, "half": whole[: len(whole) // 2], "empty": b""}[damage])
    says = "Git LFS pointer" if damage == "pointer" else "incomplete or damaged"
    for act in (lambda: read_adapter(tmp_path), lambda: ptuning.load_model(tmp_path, device="cpu")):
        with pytest.raises(UserError, match=rf"{name} is .*{says}|{name} is {says}"):
            act()


def test_settings_that_are_damaged_or_of_another_run(tmp_path):
    save_prefix(tmp_path, encoder())
    config = tmp_path / "prefix_config.json"
    values = json.loads(config.read_text())
    for wrong, says in (({"pre_seq_len": 8}, "pre_seq_len 8 there, 5 here"), ({"prefix_projection": True}, "projection")):
        config.write_text(json.dumps(values | wrong))
        with pytest.raises(UserError, match=f"of different runs.*{says}"):
            read_adapter(tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_adapter(tmp_path)
    config.unlink()
    assert read_adapter(tmp_path).settings == {}


def test_folders_without_a_prefix(tmp_path, golden):
    with pytest.raises(UserError, match=r"prefix checkpoint not found: .*working directory"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no usable prefix"):
        read_adapter(golden / "model")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="holds no prefix"):
        read_adapter(tmp_path / "out")
    for step in (500, 1000, 3000):
        save_prefix(tmp_path / "out" / f"checkpoint-{step}", encoder())
    (tmp_path / "out" / "checkpoint-last").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*checkpoint-3000"):
        read_adapter(tmp_path / "out")


# ---- a prefix folder given as the model --------------------------------------------------------------------------------


def test_the_base_model_is_found_from_the_prefix(tmp_path, golden, golden_tensors):
    save_prefix(tmp_path, read_adapter(golden / "checkpoint-prefix").encoder(ptuning.load_model(golden / "model").config),
                {"base_model": str(golden / "model")})
    model = ptuning.load_model(tmp_path, device="cpu")
    real = ~golden_tensors["fwd.attention_mask"][:, 0, -1]
    with torch.no_grad():
        logits = model(golden_tensors["fwd.input_ids"], attention_mask=real).logits
    torch.testing.assert_close(logits[real], golden_tensors["prefix.logits"][real], rtol=0, atol=1e-5)


def test_a_prefix_without_a_base_model_says_what_to_give(tmp_path, golden):
    save_prefix(tmp_path / "ours", encoder())
    for folder, tokens in ((golden / "checkpoint-prefix", 6), (tmp_path / "ours", 5)):
        with pytest.raises(UserError, match=rf"a prefix \({tokens} tokens\).*--model_name_or_path.*--ptuning_checkpoint"):
            ptuning.load_model(folder, device="cpu")
    with pytest.raises(UserError, match="holds a prefix, not a whole model"):
        AutoModel.from_pretrained(golden / "checkpoint-prefix")


def test_a_base_model_that_went_away_is_named_with_the_prefix(tmp_path):
    gone = tmp_path / "gone"
    save_prefix(tmp_path / "p", encoder(), {"base_model": str(gone)})
    with pytest.raises(UserError, match=rf"{tmp_path / 'p'} holds a prefix for the model {gone}, which is not there"):
        ptuning.load_model(tmp_path / "p", device="cpu")


def test_a_model_with_a_prefix_beside_it_stays_a_model(tmp_path, golden):
    """Somebody trained into the model's folder."""
    for form in ("safetensors", "bin"):
        folder = make_checkpoint(tmp_path / form, form=form)
        save_prefix(folder, encoder())
        assert not is_adapter_folder(folder)
        assert ptuning.load_model(folder, device="cpu").prefix_encoder is None
        assert ptuning.load_model(folder, device="cpu", ptuning_checkpoint=folder).config.pre_seq_len == 5


def test_other_weights_of_the_same_size_are_warned_of(tmp_path, golden, caplog):
    save_prefix(tmp_path, encoder(), {"base_model": "x/y", "base_fingerprint": "0123456789abcdef"})
    with caplog.at_level("WARNING"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path)
    assert "trained on other weights" in caplog.text
    caplog.clear()
    shutil.rmtree(tmp_path)
    model = ptuning.load_model(golden / "model", device="cpu")
    save_prefix(tmp_path, encoder(), {"base_fingerprint": model.base_fingerprint})
    with caplog.at_level("WARNING"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=tmp_path, quantization_bit=4)
    assert not caplog.text


# ---- a prefix that was never trained ----------------------------------------------------------------------------------


@both
def test_a_fresh_prefix_never_generates(golden, projection):
    model = ptuning.load_model(golden / "model", device="cpu", pre_seq_len=4, prefix_projection=projection)
    ids = torch.tensor([[10, 11, 86, 89]])
    with pytest.raises(UserError, match="never trained or loaded"):
        model.generate(ids, max_new_tokens=2)
    with model.prefix_disabled():
        assert model.generate(ids, max_new_tokens=2).shape[1] > 4
    model.prefix_encoder.load_state_dict({}, strict=False)  # nothing was in it
    with pytest.raises(UserError, match="never trained or loaded"):
        model.generate(ids, max_new_tokens=2)
    model.load_state_dict(published_state(encoder(projection, length=4)), strict=False)  # as a whole-model loader does
    assert model.generate(ids, max_new_tokens=2).shape[1] > 4
