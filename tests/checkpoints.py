"""Model folders for the tests, in every published layout: the golden model's tensors in other dtypes and vocabularies."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden" / "chatglm-tiny"
EARLY_SHIFT = 20000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 123456789\n"


def golden_state(dtype=torch.float32, early=False):
    """The golden model's state dict; ``early``: with 20000 rows of image tokens before the text."""
    state = load_file(GOLDEN / "model" / "model.safetensors")
    if early:
        for name in ("transformer.word_embeddings.weight", "lm_head.weight"):
            state[name] = torch.cat((torch.full((EARLY_SHIFT, state[name].shape[1]), -0.01), state[name]))
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def golden_config(early=False, **changes):
    """The golden ``config.json``; a change to None takes the key out."""
    config = json.loads((GOLDEN / "model" / "config.json").read_text(encoding="utf-8"))
    if early:
        config["vocab_size"] += EARLY_SHIFT
        for key in [key for key in config if key.endswith("_token_id")]:
            config[key] += EARLY_SHIFT
    return {key: value for key, value in (config | changes).items() if value is not None}


def write_json(path, values):
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def edit_json(path, **changes):
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def write_weights(folder, state, form="safetensors", shards=1):
    """Write a state dict as ``safetensors``, ``bin`` or ``legacy`` (PyTorch before 1.6); shards get an index."""
    stem, ending = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")

    def write(part, path):
        if form == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in part.items()}, path, metadata={"format": "pt"})
        else:
            torch.save(part, path, _use_new_zipfile_serialization=form == "bin")

    if shards == 1:
        write(state, folder / f"{stem}.{ending}")
        return
    names, weight_map = list(state), {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{ending}"
        part = {name: state[name] for name in names[shard::shards]}
        write(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_json(folder / f"{stem}.{ending}.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def make_checkpoint(
    folder, *, form="safetensors", shards=1, dtype=torch.float32, early=False, state=None, config=None, tokenizer=True
):
    """A model folder with the golden model's weights.

    ``state``: other tensors; ``config``: changes to ``config.json`` (None takes a key out). Returns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"torch_dtype": str(dtype).removeprefix("torch.")} | (config or {})
    write_json(folder / "config.json", golden_config(early, **changes))
    write_weights(folder, golden_state(dtype, early) if state is None else state, form, shards)
    if tokenizer:
        for name in ("ice_text.model", "tokenizer_config.json"):
            shutil.copyfile(GOLDEN / "model" / name, folder / name)
        if early:
            edit_json(folder / "tokenizer_config.json", num_image_tokens=EARLY_SHIFT)
    return folder


def add_remote_code(folder):
    """Give a folder the published ``auto_map`` and the remote files it names; importing one of them raises."""
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm", "quantization"):
        (folder / f"{name}.py").write_text("raise SystemExit('remote code was imported')\n", encoding="utf-8")
    edit_json(
        folder / "config.json",
        auto_map={
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        },
    )
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]})
    return folder


def whole_checkpoint(folder, step):
    """A checkpoint-N folder of a run, as far as looking for one goes."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = {"global_step": step, "max_steps": step, "stateful_callbacks": {"TrainerControl": {}}}
    (path / "trainer_state.json").write_text(json.dumps(state))
    torch.save({"state": {}, "param_groups": []}, path / "optimizer.pt")
    torch.save({}, path / "scheduler.pt")
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(states, path / "rng_state.pth")
    return path
