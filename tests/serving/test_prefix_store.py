"""Prefixes by name: what may be named, loaded, unloaded, and what is refused with both sides named."""

import shutil

import pytest
import torch
from prefixes import save_random_prefix
from sampling import greedy

import ptuning
from ptuning.checkpoint.adapter import read_adapter
from ptuning.core.errors import UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.serving.prefix_store import PrefixStore, UnknownPrefixError, check_name, named_checkpoints


@pytest.fixture(scope="module")
def parts():
    return ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm")


@pytest.fixture
def store(parts):
    return PrefixStore(Engine(*parts), "tiny-chatglm")


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """A training folder with two checkpoints and something else."""
    top = tmp_path_factory.mktemp("out")
    for number in (1, 2):
        save_random_prefix(top / f"checkpoint-{number}", parts[0].config, 4, number, source_prefix=f"{number}: ")
    (top / "runs").mkdir()
    return top


def test_base_is_always_there_and_the_first_prefix_is_the_default(store, folder):
    assert store.names() == ["tiny-chatglm"]
    assert store.get().shared is None
    named = named_checkpoints(f"adgen={folder / 'checkpoint-2'}") + named_checkpoints(str(folder))
    store.add_all([(name, read_adapter(path)) for name, path in named])
    assert store.names() == ["tiny-chatglm", "adgen", "checkpoint-1", "checkpoint-2"]
    assert store.get().name == "adgen"
    assert store.get("checkpoint-1").pre_seq_len == 4
    assert store.get("checkpoint-1").prompt_settings["source_prefix"] == "1: "


def test_a_loaded_prefix_answers_as_the_model_with_it(store, folder, parts):
    tokenizer = parts[1]
    stored = store.load("one", folder / "checkpoint-1")
    with_prefix = ptuning.load_model("tiny-chatglm", device="cpu", ptuning_checkpoint=folder / "checkpoint-1")
    ids = prompt_ids(tokenizer, "你好")
    (found,) = store.engine.run([Request(ids, stored.shared, greedy(12))])
    whole = with_prefix.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    assert found.ids == [token for token in whole if token != tokenizer.eos_token_id]


def test_unloading_and_loading_again(store, folder):
    store.add_all([("one", read_adapter(folder / "checkpoint-1"))])
    store.unload("one")
    assert store.get().name == "tiny-chatglm"
    with pytest.raises(UnknownPrefixError, match="no model or prefix 'one'; there are tiny-chatglm"):
        store.get("one")
    store.load("one", folder / "checkpoint-2")
    assert store.get("one").prompt_settings["source_prefix"] == "2: "
    with pytest.raises(UserError, match="the base model; it cannot be unloaded"):
        store.unload("tiny-chatglm")


def test_taken_names_are_refused(store, folder):
    store.load("one", folder / "checkpoint-1")
    for name, whose in (("one", "checkpoint-1"), ("tiny-chatglm", "the base model")):
        with pytest.raises(UserError, match=f"the name {name} is taken by .*{whose}"):
            store.load(name, folder / "checkpoint-2")
    assert len(store.engine.runner.prefix_pool.by_length[4].entries) == 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", "..", ".hidden", "a..b", "-x", "a b", "x" * 101, "a\n", "a\0"])
def test_names_that_could_be_paths_are_refused(name):
    with pytest.raises(UserError, match="cannot be a prefix's name"):
        check_name(name)


def test_what_one_flag_stands_for(folder, tmp_path, monkeypatch):
    one = folder / "checkpoint-1"
    assert named_checkpoints(f"衣服={one}") == [("衣服", one)]
    assert named_checkpoints(str(one)) == [("checkpoint-1", one)]
    assert named_checkpoints(str(one / "prefix_encoder.safetensors"))[0][0] == "checkpoint-1"
    assert [name for name, _ in named_checkpoints(str(folder))] == ["checkpoint-1", "checkpoint-2"]
    odd = tmp_path / "lr=0.02"
    shutil.copytree(one, odd / "checkpoint-1")
    assert named_checkpoints(str(odd / "checkpoint-1")) == [("checkpoint-1", odd / "checkpoint-1")]
    monkeypatch.chdir(one)
    assert named_checkpoints(".")[0][0] == "checkpoint-1"
    with pytest.raises(UserError, match="holds several checkpoints"):
        named_checkpoints(f"x={folder}")
    for missing in ("x=nowhere", "nowhere", "x="):
        with pytest.raises(UserError, match="prefix checkpoint not found"):
            named_checkpoints(missing)


def test_a_prefix_of_another_model_is_refused_with_both_named(store, tmp_path, golden, parts):
    with pytest.raises(UserError, match="needs 2048"):
        store.load("golden", golden / "checkpoint-prefix")
    other = save_random_prefix(
        tmp_path / "other", parts[0].config, 4, 1, base_model="my-model", base_fingerprint="0123456789abcdef"
    )
    with pytest.raises(UserError, match=r"trained on my-model \(fingerprint 0123.*this is tiny-chatglm \(fingerprint"):
        store.load("other", other)
    assert store.names() == ["tiny-chatglm"]
