"""transformers' Auto classes know ChatGLM-6B once ptuning is imported, in any order of imports; no remote code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import add_remote_code, edit_json, make_checkpoint
from processes import forked_from_one

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
import inspect, json
found = {}
for trust in (None, True):
    extra = {} if trust is None else {"trust_remote_code": trust}
    for factory in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        made = factory.from_pretrained(sys.argv[1], **extra)
        found[f"{factory.__name__} {trust}"] = f"{type(made).__module__}.{type(made).__name__}"
        if factory is AutoTokenizer:
            assert made.bos_token_id == 89 and made("你好")["input_ids"][-2:] == [86, 89]
assert not [name for name in sys.modules if "transformers_modules" in name]
# Tools that look for a module's source must find it: the modules have their own loaders.
names = ("transformers.models.auto.modeling_auto", "ptuning.engine.chat_model", "ptuning.model.config")
modules = [sys.modules[name] for name in names]
assert [type(module.__spec__.loader).__name__ for module in modules] == ["SourceFileLoader"] * 3
assert all(module.__loader__ is module.__spec__.loader for module in modules)
assert "class AutoModelForCausalLM" in inspect.getsource(modules[0])
print(json.dumps(found))
"""
AUTO = "AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer"
EXPECTED = {
    f"{name} {trust}": where
    for trust in (None, True)
    for name, where in {
        "AutoConfig": "ptuning.model.config.ChatGLMConfig",
        "AutoTokenizer": "ptuning.data.tokenizer.ChatGLMTokenizer",
        "AutoModel": "ptuning.engine.chat_model.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "ptuning.engine.chat_model.ChatGLMForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "ptuning.engine.chat_model.ChatGLMForConditionalGeneration",
    }.items()
}


ORDERS = {
    "ptuning first": f"import ptuning\nfrom transformers import {AUTO}",
    "transformers first": f"from transformers import {AUTO}\nimport ptuning",
    "model first": f"from ptuning.engine.chat_model import ChatGLMForConditionalGeneration\nfrom transformers import {AUTO}",
    "reloaded": "import ptuning.checkpoint.load\nimport importlib; importlib.reload(ptuning)\n"
    f"from transformers import {AUTO}",
}
FIRST = ("ptuning.model.backbone", "ptuning.data.tokenizer", "ptuning.model.answering", "ptuning.engine.chat",
         "ptuning.model.network")  # fmt: skip
IMPORTED_FIRST = """
import {module}
from transformers import AutoModelForCausalLM as auto
from ptuning import ChatGLMConfig as config
assert config in auto._model_mapping.keys()
"""
# What transformers imports on its way and what is not of it: whether that is there already makes no difference.
LIBRARIES = """
import accelerate, huggingface_hub, numpy, safetensors.torch, sentencepiece, sys, tokenizers, torch
import torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
assert not [name for name in sys.modules if name.split(".")[0] in ("transformers", "ptuning")]
"""


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    """What every order of imports gave, each in a process that had neither ptuning nor transformers before."""
    cases = {name: (f"import sys\n{imports}\n{USE}", [folder], ROOT) for name, imports in ORDERS.items()}
    cases |= {name: (IMPORTED_FIRST.format(module=name), [], ROOT) for name in FIRST}
    done = forked_from_one(LIBRARIES, cases.values(), tmp_path_factory.mktemp("imports"), cwd=ROOT)
    return dict(zip(cases, done, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_imports_registers_and_remote_code_is_never_imported(imported, order):
    assert imported[order].returncode == 0, imported[order].stderr
    assert json.loads(imported[order].stdout.splitlines()[-1]) == EXPECTED


@pytest.mark.slow
def test_from_inside_the_folder_and_beside_other_models(folder, tmp_path):
    """Remote files would be importable there by their plain names. A ChatGLM2 folder keeps its own tokenizer code."""
    later = add_remote_code(make_checkpoint(tmp_path / "glm2", config={"multi_query_attention": True}))
    edit_json(later / "config.json", auto_map={})
    (later / "tokenization_chatglm.py").write_text(
        "class ChatGLMTokenizer:\n"
        "    register_for_auto_class = classmethod(lambda cls: None)\n"
        "    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n",
        encoding="utf-8",
    )
    code = """
import json, ptuning
from transformers import AutoModel, AutoTokenizer
AutoModel.from_pretrained("./", trust_remote_code=True), AutoTokenizer.from_pretrained(".", trust_remote_code=True)
ptuning.load_model(".", device="cpu"), ptuning.load_tokenizer("../" + sys.argv[1])
assert "configuration_chatglm" not in sys.modules and not [name for name in sys.modules if "transformers_modules" in name]
print(json.dumps(type(AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=True)).__module__))
"""
    assert run(code, folder.name, later, cwd=folder).startswith("transformers_modules.")


@pytest.mark.slow
@pytest.mark.parametrize("module", FIRST)
def test_any_module_may_be_imported_first(imported, module):
    """The model imports an Auto module on its way, which must not ask for the model again."""
    assert imported[module].returncode == 0, imported[module].stderr
