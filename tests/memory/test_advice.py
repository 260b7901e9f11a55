"""Gradient checkpointing in real runs: on by itself where little memory is free, never against what a user said."""

import shutil

import pytest
import torch
from runs import log_of, prefix_of

from ptuning.checkpoint.placement import free_bytes
from ptuning.edges.run_arguments import parse_arguments
from ptuning.edges.tuning import run_tuning
from ptuning.model.layers import MLP

PLENTY, LITTLE = 2**40, 2**10  # bytes
STEPS, LAYERS = 3, 3


@pytest.fixture
def run(command, tmp_path, monkeypatch, caplog):
    """Train with so much memory free: the checkpoint, how often an MLP was computed, what was said about it."""

    def train(name, free, *first, **settings):
        computed, forward = [0], MLP.forward

        def counted(self, *args, **kwargs):
            computed[0] += self.training
            return forward(self, *args, **kwargs)

        whole = {"max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 8} | settings
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level("INFO"):
            patch.setattr(MLP, "forward", counted)
            patch.setattr("ptuning.checkpoint.placement.free_memory", lambda: free)
            argv = command(tmp_path / name, **{"gradient_accumulation_steps": 1} | whole)
            result = run_tuning(parse_arguments([*map(str, first), *argv], task="train"))
        return result.checkpoint, computed[0], [line for line in caplog.messages if "gradient checkpointing" in line]

    return train


def losses(checkpoint):
    return [entry["loss"] for entry in log_of(checkpoint) if "loss" in entry]


def same_numbers(one, other):
    assert losses(one) == losses(other)
    found, wanted = prefix_of(one), prefix_of(other)
    assert found.keys() == wanted.keys()
    return all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_little_memory_turns_it_on_and_changes_no_number(run):
    roomy, once, silent = run("roomy", PLENTY)
    tight, twice, said = run("tight", LITTLE)
    assert (once, twice) == (STEPS * LAYERS, 2 * STEPS * LAYERS)
    assert silent == []
    assert len(said) == 1
    assert "gradient checkpointing is on: a step would need about" in said[0]
    assert "--gradient_checkpointing false" in said[0]
    assert len(losses(roomy)) == STEPS
    assert same_numbers(tight, roomy)


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "free", "times"), [(False, LITTLE, 1), (True, PLENTY, 2)])
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_a_flag_always_wins(run, name, flag, free, times):
    assert run("run", free, **{name: flag})[1:] == (times * STEPS * LAYERS, [])


def test_a_settings_file_always_wins(run, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("gradient_checkpointing: false\n", encoding="utf-8")
    assert run("run", LITTLE, file)[1:] == (STEPS * LAYERS, [])


@pytest.mark.slow
def test_a_run_that_goes_on_with_less_memory_comes_out_the_same(run, tmp_path):
    straight, _, _ = run("straight", PLENTY, max_steps=6, save_steps=3)
    shutil.copytree(straight.parent / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again, computed, said = run("again", LITTLE, max_steps=6, save_steps=3, resume_from_checkpoint="auto")
    assert (computed, len(said)) == (2 * 3 * LAYERS, 1)
    assert again.name == straight.name == "checkpoint-6"
    assert same_numbers(again, straight)


@pytest.mark.slow
def test_the_longest_row_decides_and_not_a_limit_that_none_reaches(run):
    free, long = 40 * 2**20, {"max_source_length": 1000, "max_target_length": 200}
    assert run("short", free)[2] == []
    assert run("long", free, **long)[2] == []
    assert len(run("padded", free, pad_to_max_length=True, max_steps=1, **long)[2]) == 1


def test_what_is_free(monkeypatch):
    monkeypatch.setattr("ptuning.checkpoint.placement.free_memory", lambda: 1000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_bytes(torch.device("cpu")) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun sets it: four processes share the machine
    assert free_bytes(torch.device("cpu")) == 250
    assert free_bytes(torch.device("mps")) is None
