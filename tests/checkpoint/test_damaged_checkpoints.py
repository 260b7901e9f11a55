"""A checkpoint is what was written or it is refused: every flipped bit, missing file and foreign state is named."""

import json
import os
import shutil

import pytest
import torch
from runs import log_of, prefix_of, train

from ptuning.checkpoint.adapter import read_adapter
from ptuning.checkpoint.file_list import LIST_FILE, add_to_file_list, what_disagrees, write_file_list
from ptuning.checkpoint.run_checkpoints import checkpoints, starting_point
from ptuning.core.errors import UserError
from ptuning.settings.training_arguments import TuningArguments

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
FILES = (*STATE, "prefix_encoder.safetensors", "prefix_config.json", "trainer_state.json", "run.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """A run of six steps with a checkpoint every two."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(command(folder, **SIX))
    return folder


SIX = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 1}


@pytest.fixture
def run(whole, tmp_path):
    """The same run stopped after step 4, to be damaged."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    return tmp_path / "run"


def resumed(folder, wish):
    return starting_point(TuningArguments(output_dir=str(folder), use_cpu=True, resume_from_checkpoint=str(wish)))


def forget_the_list(checkpoint):
    """As written before there were lists of files."""
    values = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    del values["file_list"]
    (checkpoint / "run.json").write_text(json.dumps(values), encoding="utf-8")


def flip(path, place):
    """Change one bit; ``place``: which share of the file lies before it."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def refused(run, caplog, *words):
    """The newest checkpoint is skipped by auto, refused by its name, and both say why."""
    last = run / "checkpoint-4"
    assert resumed(run, "auto") == str(run / "checkpoint-2")
    assert f"{last} is skipped: it is not whole (" in caplog.text
    with pytest.raises(UserError, match="not a whole checkpoint of a run") as caught:
        resumed(run, last)
    for said in (caplog.text, str(caught.value)):
        assert all(word in said for word in words), said
        assert "weights_only" not in said


@pytest.mark.parametrize("place", [0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_seen(run, caplog, name, place):
    flip(run / "checkpoint-4" / name, place)
    refused(run, caplog, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run, caplog, name):
    (run / "checkpoint-4" / name).unlink()
    refused(run, caplog, name)


@pytest.mark.parametrize("name", STATE)
def test_without_a_list_the_state_of_the_run_must_still_be_there(run, caplog, name):
    """As the published trainer writes it, and our own did before there were lists."""
    last = run / "checkpoint-4"
    (last / LIST_FILE).unlink()
    forget_the_list(last)
    assert resumed(run, last) == resumed(run, "auto") == str(last)
    (last / name).unlink()
    refused(run, caplog, f"no {name}: the state of the run is not in it")


def test_a_list_that_was_lost_is_named(run, caplog):
    (run / "checkpoint-4" / LIST_FILE).unlink()
    refused(run, caplog, f"{LIST_FILE} is missing")
    (run / "checkpoint-4" / LIST_FILE).symlink_to("nowhere")
    refused(run, caplog, LIST_FILE)


def _state(values):
    return values["state"][0]


# Well-formed files whose values would end in a traceback, a crash or a run that trains nothing.
WRONG_VALUES = {
    "numbers without a place": (
        "optimizer.pt", lambda v: _state(v).update(exp_avg=torch.zeros(1).expand(_state(v)["exp_avg"].shape)), "exp_avg",
    ),
    "many steps": ("optimizer.pt", lambda v: _state(v).update(step=torch.ones(4)), "step"),
    "betas": ("optimizer.pt", lambda v: v["param_groups"][0].update(betas=3), "betas"),
    "a rate": ("optimizer.pt", lambda v: v["param_groups"][0].update(lr="x"), "lr"),
    "no eps": ("optimizer.pt", lambda v: v["param_groups"][0].update(eps=None), "eps"),
    "no rates": ("scheduler.pt", lambda v: v.update(base_lrs=[]), "learning rates"),
    "rates": ("scheduler.pt", lambda v: v.update(base_lrs="x"), "learning rates"),
    "an epoch": ("scheduler.pt", lambda v: v.update(last_epoch="x"), "counts"),
    "a method": ("scheduler.pt", lambda v: v.update(step=5), "step"),
    "another method": ("scheduler.pt", lambda v: v.update(get_lr=5), "get_lr"),
    "no log steps": ("trainer_state.json", lambda v: v.update(logging_steps=None), "no number"),
    "save steps": ("trainer_state.json", lambda v: v.update(save_steps=[1]), "no number"),
    "no operations": ("trainer_state.json", lambda v: v.update(total_flos=None), "no number"),
    "no callbacks": ("trainer_state.json", lambda v: v.update(stateful_callbacks=None), "stateful_callbacks"),
    "odd callbacks": ("trainer_state.json", lambda v: v.update(stateful_callbacks={"a": 1}), "stateful_callbacks"),
    "a step far ahead": ("trainer_state.json", lambda v: v.update(global_step=10**12), "is not the step"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_values_that_no_run_writes_are_named(run, caplog, case):
    name, change, word = WRONG_VALUES[case]
    path = run / "checkpoint-4" / name
    values = json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)
    change(values)
    if path.suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        torch.save(values, path)
    (run / "checkpoint-4" / LIST_FILE).unlink()
    forget_the_list(run / "checkpoint-4")
    refused(run, caplog, name, word)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "word"), [({"amsgrad": True}, "amsgrad"), ({"weight_decay": None}, "weight_decay")], ids=["switch", "lacking"]
)
def test_settings_of_another_optimiser_are_one_line(run, command, change, word):
    path = run / "checkpoint-4" / "optimizer.pt"
    values = torch.load(path, weights_only=True)
    for name, value in change.items():
        if value is None:
            del values["param_groups"][0][name]
        else:
            values["param_groups"][0][name] = value
    torch.save(values, path)
    write_file_list(path.parent)
    with pytest.raises(UserError, match=word):
        train(command(run, **SIX, resume_from_checkpoint="auto"))


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE"],)


FOREIGN = {
    "code in optimizer.pt": ("optimizer.pt", {"state": Hostile()}, "it is not loaded"),
    "code in rng_state.pth": ("rng_state.pth", Hostile(), "it is not loaded"),
    "code in scheduler.pt": ("scheduler.pt", {"x": Hostile()}, "it is not loaded"),
    "a list for a state": ("optimizer.pt", [1], "holds a list"),
    "a model for an optimiser": ("optimizer.pt", {"weight": torch.zeros(2)}, "no state of an optimiser"),
    "other random states": ("rng_state.pth", {"python": 1, "numpy": 2, "cpu": 3}, "not a readable random state"),
    "a text": ("scheduler.pt", "PK, but no archive", "incomplete or damaged"),
    "run.json without an object": ("run.json", "[1, 2]", "an object is needed"),
    "run.json with other things": ("run.json", '{"loss": {"logged": "much"}}', "not what a run writes"),
    "run.json too deep": ("run.json", "[" * 100_000, "nested too deeply"),
    "a state of another kind": ("trainer_state.json", '{"colour": 1}', "not a readable trainer state"),
    "a step before the first": ("trainer_state.json", '{"global_step": -4}', "must be whole numbers, 0 or more"),
    "a damaged list": (LIST_FILE, '{"files": 5}', "no list of files"),
    "a list of files elsewhere": (
        LIST_FILE, '{"format": "ptuning-files-1", "files": {"../x": {"size": 1, "sha256": ""}}}', "'../x' is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_contents_are_refused_and_never_run(run, tmp_path, caplog, monkeypatch, case):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "owned"))
    name, contents, words = FOREIGN[case]
    last = run / "checkpoint-4"
    (last / LIST_FILE).unlink()
    forget_the_list(last)
    if isinstance(contents, str):
        (last / name).write_text(contents)
    else:
        torch.save(contents, last / name)
    refused(run, caplog, words)
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes")
def test_what_is_no_file_is_not_read(run, caplog):
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo, os.mkdir):
        place = run / "checkpoint-4" / "rng_state.pth"
        place.rmdir() if place.is_dir() else place.unlink()
        make(place)
        refused(run, caplog, "rng_state.pth")


@pytest.mark.slow
def test_a_run_goes_on_from_the_newest_that_agrees_and_ends_the_same(run, whole, command):
    flip(run / "checkpoint-4" / "optimizer.pt", 0.5)
    train([*command(run, **SIX), "--resume_from_checkpoint", "auto"])
    for step in (4, 6):
        ours, theirs = (prefix_of(folder / f"checkpoint-{step}") for folder in (run, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert log_of(run / f"checkpoint-{step}") == log_of(whole / f"checkpoint-{step}")
        assert what_disagrees(run / f"checkpoint-{step}") is None


def test_where_nothing_agrees_a_run_starts_anew_and_says_so(run, caplog):
    for folder in checkpoints(run):
        flip(folder / "rng_state.pth", 0.5)
    assert resumed(run, "auto") is None
    assert "there is no checkpoint to resume from, so training starts at step 0" in caplog.text
    with pytest.raises(UserError, match="no whole checkpoint-N folder"):
        resumed(run, "true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim": "sgd"}, r"optimizer\.pt was written with --optim adamw_torch\w*; this run uses --optim sgd"),
        ({"optim": "adafactor"}, r"optimizer\.pt was written with --optim adamw_torch\w*; this run uses --optim adafactor"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
            r"scheduler\.pt was written with --lr_scheduler_type linear; this run uses --lr_scheduler_type reduce_lr",
        ),
    ],
)
def test_another_optimiser_or_schedule_is_named(run, command, rows_file, settings, words):
    with pytest.raises(UserError, match=words):
        train([*command(run, **SIX, **settings, validation_file=rows_file), "--resume_from_checkpoint", "auto"])


@pytest.mark.slow
def test_a_state_of_other_shapes_is_named(run, command):
    """One that agrees with its own list: copied from another run together with it."""
    path = run / "checkpoint-4" / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    state["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, path)
    write_file_list(path.parent)
    with pytest.raises(UserError, match=r"optimizer\.pt: exp_avg was written with the shape \[3\]; this run trains"):
        train([*command(run, **SIX), "--resume_from_checkpoint", "auto"])


def test_random_states_of_other_processes_are_not_passed_over_in_silence(run, caplog):
    last = run / "checkpoint-4"
    (last / "rng_state.pth").rename(last / "rng_state_0.pth")
    shutil.copyfile(last / "rng_state_0.pth", last / "rng_state_1.pth")
    write_file_list(last)
    assert resumed(run, "auto") == str(last)
    assert "was written by 2 processes and this run has 1" in caplog.text


@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_is_written_and_read_but_not_gone_on_from(command, tmp_path, caplog):
    result = train(command(tmp_path / "run", max_steps=2, save_steps=1, save_only_model=True, prefix_format="both"))
    assert read_adapter(result.checkpoint).pre_seq_len == 5
    with pytest.raises(UserError, match=r"no optimizer\.pt, scheduler\.pt, rng_state\.pth: .*--init_from"):
        resumed(tmp_path / "run", result.checkpoint)
    assert resumed(tmp_path / "run", "auto") is None
    assert "checkpoint-1 is skipped" in caplog.text


@pytest.mark.parametrize("form", ["prefix_encoder.safetensors", "pytorch_model.bin"])
def test_a_damaged_prefix_is_refused_wherever_it_is_read(whole, tmp_path, caplog, form):
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole / "checkpoint-6", folder)
    if form == "pytorch_model.bin":
        torch.save(prefix_of(folder), folder / form)
        (folder / "prefix_encoder.safetensors").unlink()
        write_file_list(folder)
    settings = dict(read_adapter(folder).settings)
    flip(folder / form, 0.5)
    with pytest.raises(UserError, match=rf"{form} is damaged: its contents .*remove {folder}/{LIST_FILE}, if"):
        read_adapter(folder)
    (folder / LIST_FILE).unlink()  # as where a user copies the files of the prefix alone
    read_adapter(folder)
    if settings:
        write_file_list(folder)
        (folder / "prefix_config.json").write_text(json.dumps(settings | {"base_model": "moved"}))
        assert read_adapter(folder).settings["base_model"] == "moved"
        assert "prefix_config.json is damaged" in caplog.text


def test_a_list_grows_by_single_files(tmp_path):
    for name in ("一.txt", "b"):
        (tmp_path / name).write_text(name)
        add_to_file_list(tmp_path / name)
    assert what_disagrees(tmp_path) is None
    (tmp_path / "b").write_text("c")
    assert what_disagrees(tmp_path, contents=False) is None
    assert what_disagrees(tmp_path) == "b is damaged: its contents are not those that files.json states (SHA-256)"
    (tmp_path / "一.txt").unlink()
    assert what_disagrees(tmp_path, contents=False) == "一.txt is missing (files.json lists it)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adafactor"}, {"optim": "sgd", "optim_args": "momentum=0.9"}, {"optim": "adagrad"}, {"optim": "rmsprop"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 1}, {"lr_scheduler_type": "reduce_lr_on_plateau", "eval": True},
    ],
    ids=lambda settings: next(iter(settings.values())),
)  # fmt: skip
def test_every_kind_of_optimiser_and_schedule_goes_on(command, rows_file, tmp_path, settings):
    """What is looked for in a state is what every kind of run writes."""
    settings = SIX | settings
    if settings.pop("eval", False):
        settings |= {"eval_strategy": "steps", "eval_steps": 2, "validation_file": rows_file}
    train(command(tmp_path / "run", **settings | {"max_steps": 2}))
    assert resumed(tmp_path / "run", "auto") == str(tmp_path / "run" / "checkpoint-2")
    train(command(tmp_path / "run", **settings | {"max_steps": 4}, resume_from_checkpoint="auto"))
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
