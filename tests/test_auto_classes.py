"""transformers' Auto classes know ChatGLM-6B once ptuning is imported, in any order of imports; no remote code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import add_remote_code, make_checkpoint

ROOT = Path(__file__).parent.parent


def run(code, *arguments, cwd=None):
    """Run Python on its own; returns what it printed last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=cwd, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return add_remote_code(make_checkpoint(tmp_path_factory.mktemp("auto") / "chatglm-6b-v1.1"))


def test_importing_ptuning_imports_nothing_heavy():
    code = "import json, ptuning; print(json.dumps(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules))))"
    assert run(code) == []


USE = """
import json
found = {}
for trust in (None, True):
    extra = {} if trust is None else {"trust_remote_code": trust}
    for factory in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        made = factory.from_pretrained(sys.argv[1], **extra)
        found[f"{factory.__name__} {trust}"] = f"{type(made).__module__}.{type(made).__name__}"
        if factory is AutoTokenizer:
            assert made.bos_token_id == 89 and made("你好")["input_ids"][-2:] == [86, 89]
assert not [name for name in sys.modules if "transformers_modules" in name]
print(json.dumps(found))
"""
AUTO = "AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer"
EXPECTED = {
    f"{name} {trust}": where
    for trust in (None, True)
    for name, where in {
        "AutoConfig": "ptuning.blocks.config.ChatGLMConfig",
        "AutoTokenizer": "ptuning.blocks.tokenizer.ChatGLMTokenizer",
        "AutoModel": "ptuning.tuned.model.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "ptuning.tuned.model.ChatGLMForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "ptuning.tuned.model.ChatGLMForConditionalGeneration",
    }.items()
}


@pytest.mark.parametrize(
    "imports",
    [
        f"import ptuning\nfrom transformers import {AUTO}",
        f"from transformers import {AUTO}\nimport ptuning",
        f"from ptuning.tuned.model import ChatGLMForConditionalGeneration\nfrom transformers import {AUTO}",
        f"import ptuning.tuned.load\nimport importlib; importlib.reload(ptuning)\nfrom transformers import {AUTO}",
    ],
    ids=["ptuning first", "transformers first", "model first", "reloaded"],
)
def test_every_order_of_imports_registers_and_remote_code_is_never_imported(folder, imports):
    assert run(f"{imports}\n{USE}", folder) == EXPECTED


def test_from_inside_the_folder(folder):
    """The remote files would be importable there by their plain names."""
    code = """
import json, ptuning
from transformers import AutoModel, AutoTokenizer
AutoModel.from_pretrained("./", trust_remote_code=True), AutoTokenizer.from_pretrained(".", trust_remote_code=True)
ptuning.load_model(".", device="cpu"), ptuning.load_tokenizer("../" + sys.argv[1])
print(json.dumps("configuration_chatglm" in sys.modules))
"""
    assert run(code, folder.name, cwd=folder) is False


def test_other_models_are_left_alone(tmp_path):
    """A ChatGLM2 folder keeps its own tokenizer code."""
    later = add_remote_code(make_checkpoint(tmp_path / "glm2", config={"multi_query_attention": True}))
    (later / "tokenization_chatglm.py").write_text(
        "class ChatGLMTokenizer:\n"
        "    register_for_auto_class = classmethod(lambda cls: None)\n"
        "    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n",
        encoding="utf-8",
    )
    code = """
import json, ptuning
from transformers import AutoTokenizer
print(json.dumps(type(AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)).__module__))
"""
    assert run(code, later).startswith("transformers_modules.")


def test_the_modules_keep_their_own_loaders():
    """Tools that look for a module's source must find it."""
    code = """
import inspect, json, ptuning, ptuning.tuned.model
from transformers.models.auto import modeling_auto
modules = (modeling_auto, ptuning.tuned.model, sys.modules["ptuning.blocks.config"])
loaders = [type(m.__spec__.loader).__name__ for m in modules]
assert "class AutoModelForCausalLM" in inspect.getsource(modeling_auto)
assert all(m.__loader__ is m.__spec__.loader for m in modules)
print(json.dumps(loaders))
"""
    assert run(code) == ["SourceFileLoader"] * 3
