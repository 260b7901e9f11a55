"""A model and its prefixes are opened once, whatever is done with them, and so is the hub asked."""

import io
import os
import sys

import pytest
from checkpoints import make_checkpoint
from opened_files import opened_files
from prefixes import save_random_prefix
from runs import small_run, train, write_rows
from safetensors import safe_open

import ptuning
from ptuning.checkpoint import checkpoint as opening
from ptuning.checkpoint.checkpoint import open_checkpoint, open_named
from ptuning.checkpoint.file_list import write_file_list
from ptuning.core.errors import UserError
from ptuning.edges.cli import main
from ptuning.settings.arguments import ModelArguments, ServingArguments

PREFIX = {"prefix_encoder.safetensors", "prefix_config.json", "files.json"}
MODEL = {"config.json", "ice_text.model", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder, and two checkpoints for it that name it and have lists of their files."""
    top = tmp_path_factory.mktemp("opened")
    model = make_checkpoint(top / "model")
    prefixes = []
    for number in (1, 2):
        folder = save_random_prefix(
            top / f"prefix{number}", ptuning.ChatGLMConfig.from_pretrained(model), 5, number, base_model=str(model)
        )
        write_file_list(folder)
        prefixes.append(folder)
    return model, *prefixes


def once(counts, *folders):
    """Every file of a model folder and of prefix folders was opened, and once."""
    for folder in folders:
        expected = MODEL if folder.name == "model" else PREFIX
        found = {name: count for (place, name), count in counts.items() if place == folder.name}
        assert found == dict.fromkeys(expected, 1)


def test_the_count_sees_libraries_too(folders):
    file = folders[1] / "prefix_encoder.safetensors"
    with opened_files(folders[1]) as counts:
        file.read_bytes()
        with safe_open(file, "pt") as opened:
            opened.get_tensor("transformer.prefix_encoder.embedding.weight")
    assert counts[folders[1].name, file.name] >= 2


def test_load_model_opens_every_file_once(folders):
    model, prefix, _ = folders
    with opened_files(model, prefix) as counts:
        ptuning.load_model(model, ptuning_checkpoint=prefix, device="cpu")
    once(counts, model, prefix)
    with opened_files(model, prefix) as counts:
        ptuning.load_model(prefix, device="cpu")  # stands for both
    once(counts, model, prefix)


def test_a_chat_opens_every_file_once(folders, monkeypatch, capsys):
    model, prefix, _ = folders
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n"))
    with opened_files(model, prefix) as counts:
        assert main(["chat", "--ptuning_checkpoint", str(prefix), "--device", "cpu", "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()
    once(counts, model, prefix)


def test_a_server_opens_every_file_once(folders):
    from ptuning.edges.serve import ServerArguments, load_api

    model, *prefixes = folders
    settings = ServingArguments(
        model_name_or_path=str(model), ptuning_checkpoint=[f"one={prefixes[0]}", str(prefixes[1])], device="cpu"
    )
    with opened_files(*folders) as counts:
        service, _ = load_api(settings, ServerArguments(port=0), None)
    assert service.store.names() == ["model", "one", "prefix2"]
    once(counts, *folders)


def test_an_evaluation_opens_every_file_once(folders, golden_cases, tmp_path):
    rows = write_rows(tmp_path / "rows.json", golden_cases)
    flags = ["--test_file", str(rows), "--max_predict_samples", "2", "--max_target_length", "4", "--device", "cpu"]
    flags += ["--prompt_column", "content", "--response_column", "summary"]
    for number, prefixes in enumerate((folders[1:2], folders[1:])):
        with opened_files(*folders) as counts:
            argv = ["evaluate", *map(str, prefixes), "--model_name_or_path", str(folders[0]), *flags]
            assert main([*argv, "--output_dir", str(tmp_path / f"out{number}")]) == 0
        once(counts, folders[0], *prefixes)


def test_a_run_opens_every_file_once_before_it_trains(folders, golden_cases, tmp_path):
    model, prefix, _ = folders
    rows = write_rows(tmp_path / "rows.json", golden_cases)
    argv = small_run(model, rows, tmp_path / "out", pre_seq_len=None, init_from=prefix, max_steps=1, save_steps=1)
    with opened_files(model, prefix) as counts:
        train(argv)
    once(counts, model, prefix)


def test_memory_is_estimated_from_config_and_prefix_alone(folders, capsys):
    model, prefix, _ = folders
    with opened_files(model, prefix) as counts:
        assert main(["info", "--ptuning_checkpoint", str(prefix), "--device", "cpu"]) == 0
    assert "prefix of 5 tokens" in capsys.readouterr().out
    assert counts == {("model", "config.json"): 1, **{(prefix.name, name): 1 for name in PREFIX}}


def test_the_hub_is_asked_once_for_small_files_and_once_for_weights(folders, monkeypatch):
    from ptuning.serving.chat_service import load_service

    asked = []

    def resolve(name, *, weights, **hub):
        asked.append((name, weights, hub))
        return folders[0]

    monkeypatch.setattr(opening, "resolve_folder", resolve)
    monkeypatch.setattr("ptuning.checkpoint.weights.resolve_folder", resolve)
    hub = {"revision": "v1", "cache_dir": "there", "token": None, "local_files_only": True}
    both = [("a/b", False, hub), ("a/b", True, hub)]
    ptuning.load_model("a/b", device="cpu", revision="v1", cache_dir="there", local_files_only=True)
    assert asked == both
    asked.clear()
    load_service(ServingArguments("a/b", device="cpu", model_revision="v1", cache_dir="there", local_files_only=True))
    assert asked == both
    asked.clear()
    ptuning.ChatGLMForConditionalGeneration.from_pretrained("a/b", revision="v1")
    assert asked == [("a/b", False, {"revision": "v1"}), ("a/b", True, {"revision": "v1"})]


def test_what_was_opened_is_one_value(folders):
    model, prefix, _ = folders
    opened = open_checkpoint(prefix, local_files_only=True)
    assert (opened.name, opened.folder, opened.hub) == (str(model), model, {"local_files_only": True})
    assert opened.adapter.pre_seq_len == 5
    assert opened.tokenizer is opened.tokenizer
    opened.new_config().pre_seq_len = 7
    assert opened.config.pre_seq_len is None
    named = open_named(ModelArguments(ptuning_checkpoint=str(prefix), pre_seq_len=5))
    assert (named.name, named.adapter.path) == (opened.name, opened.adapter.path)
    with pytest.raises(UserError, match="you passed 6"):
        open_named(ModelArguments(ptuning_checkpoint=str(prefix), pre_seq_len=6))


def test_the_tokenizer_may_come_from_elsewhere(folders, tmp_path):
    bare = make_checkpoint(tmp_path / "bare", tokenizer=False)
    opened = open_named(ModelArguments(str(bare), tokenizer_name=str(folders[0])))
    assert opened.tokenizer.name_or_path == str(folders[0])
    opened.check_tokenizer()  # weights alone are a model
    with pytest.raises(UserError, match=r"ice_text\.model is missing"):
        _ = open_named(ModelArguments(str(bare))).tokenizer


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_a_prefix_that_was_opened_stays_what_it_was(folders, tmp_path):
    """Its tensors are read when it is attached; by then another may lie under its name."""
    config = ptuning.ChatGLMConfig.from_pretrained(folders[0])
    folder = save_random_prefix(tmp_path / "p", config, 5, 1)
    opened = open_checkpoint(folders[0], folder)
    before = opened.adapter.tensors["embedding.weight"].clone()
    save_random_prefix(folder, config, 5, 2)
    assert (opened.adapter.tensors["embedding.weight"] == before).all()
    os.unlink(folder / "prefix_encoder.safetensors")
    assert (opened.adapter.encoder(config).embedding.weight == before).all()
