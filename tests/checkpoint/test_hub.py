"""From a model's name to a folder: paths, the embedded model, and a hub that runs on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import add_remote_code, golden_state, make_checkpoint, write_weights
from hub_server import HubServer

from ptuning.checkpoint.hub import EMBEDDED_MODEL, embedded_folder, resolve_folder
from ptuning.core.errors import UserError

REPOSITORY = "someone/chatglm-tiny"
ROOT = Path(__file__).parents[2]

# Runs a row of calls and prints, for each, the names of the files in the folder it gave or the message it ended in.
CALLS = """
import json, os, sys
from ptuning.core.errors import UserError
from ptuning.checkpoint.hub import resolve_folder
results = []
for settings in json.loads(sys.argv[1]):
    try:
        folder = resolve_folder(settings.pop("name"), **settings)
        results.append({"files": sorted(os.listdir(folder)), "folder": str(folder)})
    except UserError as error:
        results.append({"error": str(error)})
assert "torch" not in sys.modules
print("RESULT" + json.dumps(results))
"""


def python(code, *arguments, **environment):
    """Run Python with settings for the hub of its own; returns what it printed after RESULT."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, timeout=300, cwd=environment["HF_HOME"],
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.partition("RESULT")[2])


def call(home, endpoint, *calls, **environment):
    home.mkdir(exist_ok=True)
    return python(CALLS, json.dumps(calls), HF_HOME=str(home), HF_ENDPOINT=endpoint, **environment)


def ask(name=REPOSITORY, weights=True, **settings):
    return {"name": name, "weights": weights, **settings}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    both = add_remote_code(make_checkpoint(root / "both", shards=2))
    write_weights(both, golden_state(torch.float16), "bin")
    (both / "onnx").mkdir()
    (both / "onnx" / "config.json").write_text("{}")
    (both / "onnx" / "model.safetensors").write_bytes(b"of another kind")
    (both / "README.md").write_text("read me")
    old = make_checkpoint(root / "old", form="bin", shards=2)
    (old / "adapter.safetensors").write_bytes(b"not the model's weights")
    later = make_checkpoint(root / "glm2", config={"multi_query_attention": True})
    return {REPOSITORY: {"main": both, "v0": old}, "someone/bin-only": {"main": old}, "someone/glm2": {"main": later}}


@pytest.fixture
def hub(repositories):
    with HubServer(repositories) as server:
        yield server


SMALL = {"config.json", "ice_text.model", "tokenizer_config.json"}
SAFE = {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
BIN = {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}


@pytest.mark.slow
def test_a_repository_is_fetched_without_code_and_without_a_second_form(hub, tmp_path):
    tokenizer, model = call(tmp_path / "home", hub.url, ask(weights=False), ask())
    assert set(tokenizer["files"]) == SMALL | {"model.safetensors.index.json"}
    assert set(model["files"]) == SMALL | SAFE
    assert hub.fetched() == SMALL | SAFE
    assert Path(model["folder"]).is_relative_to(tmp_path / "home")


@pytest.mark.slow
def test_revision_and_cache_dir(hub, tmp_path):
    cache = tmp_path / "模型 cache"
    old, missing = call(tmp_path, hub.url, ask(revision="v0", cache_dir=str(cache)), ask(revision="v9"))
    assert set(old["files"]) == SMALL | BIN
    assert Path(old["folder"]).is_relative_to(cache)
    assert "v9" in missing["error"]
    assert "model_revision" in missing["error"]


@pytest.mark.slow
def test_weights_under_other_names_do_not_pass_for_safetensors(hub, tmp_path):
    (found,) = call(tmp_path, hub.url, ask("someone/bin-only"))
    assert set(found["files"]) == SMALL | BIN


@pytest.mark.slow
@pytest.mark.parametrize("name", [REPOSITORY, "someone/bin-only"])
def test_offline_the_cache_serves(hub, tmp_path, name):
    (first,) = call(tmp_path, hub.url, ask(name))
    hub.requests.clear()
    (flag,) = call(tmp_path, hub.url, ask(name, local_files_only=True))
    (environment,) = call(tmp_path, hub.url, ask(name), HF_HUB_OFFLINE="1")
    assert not hub.requests
    assert first == flag == environment


@pytest.mark.slow
def test_a_hub_out_of_reach_is_replaced_by_the_cache(hub, tmp_path):
    """The endpoint is another one now, as a mirror that went away: a copy in the cache is as good as ever."""
    (first,) = call(tmp_path, hub.url, ask())
    (again,) = call(tmp_path, "http://127.0.0.1:9", ask())
    assert first == again


@pytest.mark.slow
def test_what_the_hub_does_not_give_ends_in_one_line(hub, tmp_path):
    unknown, odd = call(tmp_path, hub.url, ask("someone/unknown"), ask("some one/-x-"))
    (unreachable,) = call(tmp_path, "http://127.0.0.1:9", ask())
    (offline,) = call(tmp_path, hub.url, ask(local_files_only=True))
    call(tmp_path, hub.url, ask(weights=False))
    (half,) = call(tmp_path, hub.url, ask(local_files_only=True))
    assert "127.0.0.1:9" in unreachable["error"]
    for result in (unknown, odd, unreachable, offline, half):
        assert result is unreachable or hub.url in result["error"]
        assert "working directory" in result["error"]
        assert "\n" not in result["error"]
    assert "someone/unknown" in unknown["error"]


@pytest.mark.slow
def test_a_whole_model_comes_from_the_hub(hub, tmp_path):
    """load_model, load_tokenizer and transformers' Auto classes, online and then offline; remote code is never imported.

    A model of a later generation is refused before its weights are fetched.
    """
    code = """
import json, sys, ptuning
from transformers import AutoModel, AutoTokenizer
name = sys.argv[1]
try:
    ptuning.load_model("someone/glm2", device="cpu")
except ptuning.UserError as error:
    refused = str(error)
model = ptuning.load_model(name, device="cpu")
tokenizer = ptuning.load_tokenizer(name)
total = float(sum(p.detach().double().sum() for p in model.parameters()))
auto = AutoModel.from_pretrained(name, trust_remote_code=True)
same = float(sum(p.detach().double().sum() for p in auto.parameters()))
autotok = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
ids = [made("你好")["input_ids"] for made in (tokenizer, autotok)]
print("RESULT" + json.dumps([total, same, *ids, model.name_or_path, refused]))
"""
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    total, same, ids, autoids, name, refused = python(code, REPOSITORY, **settings)
    assert total == pytest.approx(float(sum(tensor.double().sum() for tensor in golden_state().values())))
    assert (total, ids, name) == (same, autoids, REPOSITORY)
    assert "ChatGLM2" in refused
    assert hub.fetched() == SMALL | SAFE  # and so no .py, no .bin, and nothing of the other model's weights
    hub.requests.clear()
    assert python(code, REPOSITORY, **settings, HF_HUB_OFFLINE="1")[:5] == [total, same, ids, autoids, name]
    assert not hub.requests


# ---- without a hub ----------------------------------------------------------------------------------------------------


def test_local_folders_win(tmp_path, monkeypatch):
    (tmp_path / EMBEDDED_MODEL).mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("a/b", weights=True) == Path("a/b")
    assert resolve_folder(EMBEDDED_MODEL, weights=True) == Path(EMBEDDED_MODEL)
    monkeypatch.chdir(tmp_path / "a")
    assert resolve_folder(EMBEDDED_MODEL, weights=True) == embedded_folder()


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "../nowhere", "/nowhere/m", "~/nowhere", "a\\b", "C:\\m", "a/b/c", ""])
def test_folders_that_are_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"model folder not found|name is empty"):
        resolve_folder(name, weights=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        resolve_folder(tmp_path / "model.safetensors", weights=True)
