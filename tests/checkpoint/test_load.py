"""load_model and load_tokenizer: what they check first, and that every combination computes."""

import itertools

import pytest
import torch
from checkpoints import edit_json, golden_config, make_checkpoint, write_json

import ptuning
from ptuning.core.errors import UserError

PREFIXES = {"no prefix": None, "prefix": "checkpoint-prefix", "projection": "checkpoint-prefix_projection"}


# ---- dtype x bits x prefix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bits", "prefix"), itertools.product(("float32", "float16", "bfloat16"), (None, 8, 4), PREFIXES)
)
def test_every_combination_computes(golden, golden_tensors, dtype, bits, prefix):
    """Load, forward, backward to the prefix and three tokens, with nothing done by hand."""
    name = PREFIXES[prefix]
    model = ptuning.load_model(
        golden / "model", device="cpu", dtype=dtype, quantization_bit=bits, ptuning_checkpoint=name and golden / name
    )
    assert model.dtype == getattr(torch, dtype)
    ids, real = golden_tensors["fwd.input_ids"], ~golden_tensors["fwd.attention_mask"][:, 0, -1]
    out = model.generate(ids, attention_mask=real.long(), max_new_tokens=3, do_sample=False)
    assert out.shape[0] == 3
    assert ids.shape[1] < out.shape[1] <= ids.shape[1] + 3
    with torch.no_grad():
        logits = model(ids, attention_mask=real.long()).logits
    assert logits.dtype == model.dtype
    if bits is None and dtype == "float32" and name:
        published = golden_tensors[f"{name.removeprefix('checkpoint-')}.logits"]
        torch.testing.assert_close(logits[real], published[real], rtol=0, atol=1e-5)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    if name is None:
        return
    assert trainable == {key for key, _ in model.named_parameters() if "prefix_encoder" in key}
    loss = model(golden_tensors["train.input_ids"], labels=golden_tensors["train.labels"]).loss
    assert loss.dtype == torch.float32
    loss.backward()
    for key, parameter in model.prefix_encoder.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        expected = golden_tensors[f"{name.removeprefix('checkpoint-')}.grad.{key}"]
        cosine = torch.nn.functional.cosine_similarity(parameter.grad.flatten(), expected.flatten(), dim=0)
        assert cosine > (0.9 if bits == 4 else 0.97), (key, cosine)


@pytest.mark.parametrize("bits", [None, 4])
def test_moves_between_dtypes_keep_the_prefix_in_float32(golden, bits):
    prefix = golden / "checkpoint-prefix"
    model = ptuning.load_model(golden / "model", device="cpu", quantization_bit=bits, ptuning_checkpoint=prefix)
    for move in (lambda m: m.half(), lambda m: m.float(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)):
        move(model)
        assert {parameter.dtype for parameter in model.prefix_encoder.parameters()} == {torch.float32}
        assert model.generate(torch.tensor([[10, 11, 86, 89]]), max_new_tokens=2).shape[1] > 4


# ---- the tokenizer belongs to the model ----------------------------------------------------------------------------------


def test_a_tokenizer_of_another_vocabulary_is_refused_before_weights_are_read(tmp_path):
    late = make_checkpoint(tmp_path / "late")
    edit_json(late / "tokenizer_config.json", num_image_tokens=20000)
    early = make_checkpoint(tmp_path / "early", early=True)
    edit_json(early / "tokenizer_config.json", num_image_tokens=0)
    for folder, pieces, rows in ((late, 20700, 704), (early, 700, 20704)):
        (folder / "model.safetensors").write_bytes(b"not read")
        for act in (ptuning.load_tokenizer, lambda folder: ptuning.load_model(folder, device="cpu")):
            with pytest.raises(UserError, match=rf"different releases: <sop> is .*{pieces} pieces.*{rows} rows"):
                act(folder)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "gmask_token_id"])
def test_every_id_that_generation_needs_is_compared(tmp_path, key):
    folder = make_checkpoint(tmp_path, config={key: 17})
    with pytest.raises(UserError, match="different releases"):
        ptuning.load_tokenizer(folder)


def test_a_tokenizer_larger_than_the_model(tmp_path):
    folder = make_checkpoint(tmp_path, config={"vocab_size": 600})
    with pytest.raises(UserError, match=r"700 pieces.*600 rows"):
        ptuning.load_tokenizer(folder)


def test_releases_are_named_at_their_real_sizes(golden):
    from ptuning.checkpoint.checkpoint import check_vocabulary

    class Pieces:
        bos_token_id, eos_token_id, gmask_token_id = 150004, 150005, 150001

        def __len__(self):
            return 150344

    with pytest.raises(UserError, match=r"150344 pieces \(the first release.*130528 rows \(the release without image"):
        check_vocabulary(Pieces(), ptuning.ChatGLMConfig(), "m")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_broken_tokenizer_settings(tmp_path, name):
    folder = make_checkpoint(tmp_path)
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is not valid JSON"):
        ptuning.load_tokenizer(folder)


def test_a_damaged_or_missing_vocabulary(tmp_path):
    folder = make_checkpoint(tmp_path)
    whole = (folder / "ice_text.model").read_bytes()
    for content in (b"", whole[:1000], b"<html>"):
        (folder / "ice_text.model").write_bytes(content)
        for act in (ptuning.load_tokenizer, lambda folder: ptuning.load_model(folder, device="cpu")):
            with pytest.raises(UserError, match=r"ice_text\.model"):
                act(folder)
    (folder / "ice_text.model").unlink()
    with pytest.raises(UserError, match=r"ice_text\.model is missing"):
        ptuning.load_tokenizer(folder)
    assert ptuning.load_model(folder, device="cpu").config.hidden_size == 32  # weights alone are a model


def test_a_tokenizer_folder_needs_no_model(tmp_path):
    folder = make_checkpoint(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    assert ptuning.load_tokenizer(folder).bos_token_id == 89


def test_a_vocabulary_without_settings_follows_the_models_config(tmp_path):
    folder = make_checkpoint(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    assert ptuning.load_tokenizer(folder).num_image_tokens == 0
    write_json(folder / "config.json", golden_config(early=True))
    assert ptuning.load_tokenizer(folder).bos_token_id == 20089


# ---- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, -1, 2.5, True, "8"])
def test_impossible_prefix_lengths(golden, length):
    with pytest.raises(UserError, match="pre_seq_len"):
        ptuning.load_model(golden / "model", device="cpu", pre_seq_len=length)


def test_settings_are_checked_before_the_weights(tmp_path):
    folder = make_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(b"not read")
    for wrong, says in (
        ({"dtype": "int8"}, "dtype 'int8'"), ({"device": "gpu"}, "device 'gpu'"), ({"pre_seq_len": 0}, "pre_seq_len 0"),
        ({"quantization_bit": 5}, "quantization_bit 5"),
        ({"ptuning_checkpoint": tmp_path / "nowhere"}, "prefix checkpoint not found"),
    ):
        with pytest.raises(UserError, match=says):
            ptuning.load_model(folder, **{"device": "cpu", **wrong})


def test_a_new_prefix_starts_from_the_seed(golden):
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        model = ptuning.load_model(golden / "model", device="cpu", pre_seq_len=3, prefix_projection=True)
        made.append(model.prefix_encoder.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert model.config.pre_seq_len == 3
    assert model.config.prefix_projection is True


def test_names_that_are_known(golden):
    assert ptuning.load_model(golden / "model", device="cpu").name_or_path == str(golden / "model")
    assert set(dir(ptuning)) >= {"load_model", "load_tokenizer", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = ptuning.load
