"""The model for answers alone: it is the whole model's twin, and a start with it imports no more than it needs."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from prefixes import random_encoder, save_random_prefix

import ptuning
from ptuning.checkpoint.load import load_model
from ptuning.core.errors import UserError
from ptuning.data.truncation import prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams
from ptuning.model.answering import AnsweringModel
from ptuning.serving.chat_service import load_service
from ptuning.settings.arguments import ServingArguments

load_answering_model = partial(load_model, AnsweringModel)
ROOT = Path(__file__).resolve().parents[2]
# What comes with transformers' PreTrainedModel, and with torch's compiler.
NOT_NEEDED = (
    "accelerate", "datasets", "pandas", "scipy", "sklearn", "sympy", "torch._dynamo", "torch._inductor",
    "torch.distributed.tensor", "transformers.generation.utils", "transformers.modeling_utils", "transformers.models.auto",
    "transformers.trainer",
)
# Beside torch itself, whose releases differ in what they bring.
STARTED = f"""
import json, sys
import torch
before = set(sys.modules)
from ptuning.edges.cli import main
code = main(["chat", "--device", "cpu", *sys.argv[1:]])
print(json.dumps([code, sorted(set({NOT_NEEDED}) & (set(sys.modules) - before)), "transformers" in sys.modules]))
"""
SETTINGS = ({}, {"quantization_bit": 4}, {"quantization_bit": 8, "dtype": "bfloat16"})


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--quantization_bit", "4", "--dtype", "float32"]], ids=["float", "int4"])
def test_a_chat_imports_neither_the_compiler_nor_the_whole_model(words, tmp_path):
    """From the start to the answer: nothing that was left out at the start may come with the first question."""
    config = ptuning.ChatGLMConfig.from_pretrained(ROOT / "ptuning" / "assets" / "tiny-chatglm")
    folder = save_random_prefix(tmp_path / "prefix", config, 3, 1)
    given = ["--model_name_or_path", "tiny-chatglm", "--ptuning_checkpoint", str(folder), "--max_new_tokens", "8", *words]
    done = subprocess.run(
        [sys.executable, "-c", STARTED, *given],
        input="你好\nstop\n", capture_output=True, text=True, encoding="utf-8", timeout=300, check=False, cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *answer, last = done.stdout.splitlines()
    assert json.loads(last) == [0, [], True], done.stderr
    assert "".join(answer).strip()


def test_a_service_loads_the_model_for_answers():
    assert type(load_service(ServingArguments(device="cpu")).engine.model) is AnsweringModel


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_the_twin_of_the_whole_model(settings):
    whole = ptuning.load_model("tiny-chatglm", device="cpu", **settings)
    alone = load_answering_model("tiny-chatglm", device="cpu", **settings)
    assert list(alone.state_dict()) == list(whole.state_dict())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(alone.state_dict()[name], tensor), name
    for name in ("dtype", "device", "base_fingerprint", "name_or_path", "training"):
        assert getattr(alone, name) == getattr(whole, name), name
    assert alone.config.to_dict() == whole.config.to_dict()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_both_answer_alike_with_and_without_a_prefix(settings):
    tokenizer = ptuning.load_tokenizer("tiny-chatglm")
    answers = []
    for load in (ptuning.load_model, load_answering_model):
        model = load("tiny-chatglm", device="cpu", **settings)
        engine = Engine(model, tokenizer)
        encoder = random_encoder(model.config, 4, 1)
        encoder.embedding.weight.data.mul_(20)  # strong enough to be heard
        model.attach_prefix(encoder)
        with torch.no_grad():
            prefix = engine.add_prefix("a", model.prefix_key_values())
        with model.prefix_disabled():
            assert model.prefix_key_values() is None
        ids = prompt_ids(tokenizer, "今天天气怎么样？")
        requests = [Request(ids, one, SamplingParams(0.95, 0.7, seed=5, max_new_tokens=12)) for one in (None, prefix)]
        answers.append({done.index: done.ids for done in engine.run(requests)})
        assert model.detach_prefix() is not None
        assert model.prefix_encoder is None
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_a_prefix_comes_with_it_and_a_wrong_one_is_refused(tmp_path):
    base = load_answering_model("tiny-chatglm", device="cpu")
    folder = save_random_prefix(tmp_path / "right", base.config, 3, 1)
    with_prefix = load_answering_model("tiny-chatglm", device="cpu", ptuning_checkpoint=folder)
    assert with_prefix.prefix_key_values()[0][0].shape[2] == 3
    base.config.num_layers += 1
    wrong = save_random_prefix(tmp_path / "wrong", base.config, 3, 1)
    with pytest.raises(UserError, match="layers"):
        load_answering_model("tiny-chatglm", device="cpu", ptuning_checkpoint=wrong)
