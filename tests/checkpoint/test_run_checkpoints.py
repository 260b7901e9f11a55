"""Checkpoints on disk: which are whole, where a run starts, what a new one does to the old ones."""

import json
import os

import pytest
import torch
from checkpoints import whole_checkpoint

from ptuning.checkpoint.run_checkpoints import (
    changes_since,
    checkpoints,
    clear_staging,
    remove_old,
    reveal,
    set_aside,
    staging_folder,
    starting_point,
    write_run,
)
from ptuning.core.errors import UserError
from ptuning.settings.training_arguments import TuningArguments


def training_in(folder, **settings):
    return TuningArguments(output_dir=str(folder), use_cpu=True, **settings)


def test_training_starts_anew_in_a_new_or_empty_folder(tmp_path):
    assert starting_point(training_in(tmp_path)) is None
    assert starting_point(training_in(tmp_path / "new")) is None


def test_a_folder_in_use_needs_a_word(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty: add --overwrite_output_dir"):
        starting_point(training_in(tmp_path))
    whole_checkpoint(tmp_path, 10)
    with pytest.raises(UserError, match=r"up to checkpoint-10: resume .* --resume_from_checkpoint auto"):
        starting_point(training_in(tmp_path))
    assert starting_point(training_in(tmp_path, overwrite_output_dir=True)) is None
    with pytest.raises(UserError, match="this is a file"):
        starting_point(training_in(tmp_path / "notes.txt"))


def test_resuming_takes_the_last_whole_checkpoint(tmp_path):
    assert starting_point(training_in(tmp_path, resume_from_checkpoint="auto")) is None
    with pytest.raises(UserError, match="no whole checkpoint-N"):
        starting_point(training_in(tmp_path, resume_from_checkpoint="True"))
    paths = [whole_checkpoint(tmp_path, step) for step in (5, 100, 20)]
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints(tmp_path) == [paths[0], paths[2], paths[1]]
    for wish in ("auto", "True"):
        for overwrite in (True, False):
            training = training_in(tmp_path, resume_from_checkpoint=wish, overwrite_output_dir=overwrite)
            assert starting_point(training) == str(paths[1])
    assert starting_point(training_in(tmp_path, resume_from_checkpoint=str(paths[0]))) == str(paths[0])
    with pytest.raises(UserError, match=r"no trainer_state\.json\)"):
        starting_point(training_in(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-200")))


def test_a_checkpoint_cut_short_is_skipped_and_named(tmp_path, caplog):
    good, no_state, bad_state, bad_weights, bad_optimizer = (whole_checkpoint(tmp_path, step) for step in range(1, 6))
    (no_state / "trainer_state.json").unlink()
    (bad_state / "trainer_state.json").write_text('{"global_step": 3, "log_')
    (bad_weights / "prefix_encoder.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (bad_weights / "prefix_encoder.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{")
    torch.save({"state": torch.zeros(100)}, bad_optimizer / "optimizer.pt")
    whole = (bad_optimizer / "optimizer.pt").read_bytes()
    (bad_optimizer / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    assert checkpoints(tmp_path) == [good]
    assert starting_point(training_in(tmp_path, resume_from_checkpoint="auto")) == str(good)
    for broken in (no_state, bad_state, bad_weights, bad_optimizer):
        assert f"{broken} is skipped" in caplog.text
    (bad_optimizer / "optimizer.pt").write_bytes(whole)
    assert checkpoints(tmp_path) == [good, bad_optimizer]


def test_a_staged_checkpoint_takes_its_place_at_once(tmp_path):
    staged = staging_folder(tmp_path) / "checkpoint-7"
    staged.mkdir(parents=True)
    (staged / "trainer_state.json").write_text("{}")
    assert checkpoints(tmp_path) == []
    assert reveal(staged, tmp_path) == tmp_path / "checkpoint-7"
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-7"]
    staged.mkdir(parents=True)
    (staged / "trainer_state.json").write_text('{"global_step": 7}')
    reveal(staged, tmp_path)
    assert json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text()) == {"global_step": 7}
    staged.mkdir(parents=True)
    clear_staging(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-7"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [1, 2, 3, 4]), (2, None, [3, 4]), (2, 1, [1, 4]), (1, None, [4]), (1, 2, [2, 4]), (3, 4, [2, 3, 4])],
)
def test_the_limit_keeps_the_newest_and_the_best(tmp_path, limit, best, left):
    paths = {step: whole_checkpoint(tmp_path, step) for step in (1, 2, 3, 4)}
    remove_old(tmp_path, limit, str(paths[best]) if best else None)
    assert checkpoints(tmp_path) == [paths[step] for step in left]


def test_an_overwritten_run_is_set_aside_and_not_mistaken_for_the_new_one(tmp_path):
    whole_checkpoint(tmp_path, 30)
    set_aside(tmp_path)
    assert checkpoints(tmp_path) == []
    assert (tmp_path / "old-checkpoint-30" / "trainer_state.json").is_file()
    whole_checkpoint(tmp_path, 30)
    set_aside(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["old-checkpoint-30"]


def test_changes_since_a_checkpoint_are_named(tmp_path):
    folder = whole_checkpoint(tmp_path, 1)
    assert changes_since(folder, {"seed": 1}) == []  # written by another program: nothing is known
    write_run(folder, {"seed": 42, "max_steps": 10, "warmup_steps": 0.1}, {})
    assert changes_since(folder, {"seed": 42, "max_steps": 10, "warmup_steps": 0.1}) == []
    assert changes_since(folder, {"seed": 43, "max_steps": None, "warmup_steps": 0.1}) == [
        "seed: 42 → 43", "max_steps: 10 → (not set)",
    ]
