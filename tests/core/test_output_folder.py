"""One run at a time in an output folder, which it looks after; faults of the disk leave nothing half written."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import Command
from runs import log_of, prefix_of, train
from safetensors.torch import save_file

from ptuning.core.atomic import LineFile, replace_when_whole
from ptuning.core.errors import OutputError, UserError
from ptuning.core.output_folder import LOCK_FILE, claimed
from ptuning.data.example_store import write_arrays
from ptuning.data.preprocess import Example
from ptuning.edges import quantize

LONG = {"max_steps": 100_000, "save_steps": 20, "logging_steps": 20, "save_total_limit": 2}
posix = pytest.mark.skipif(os.name != "posix", reason="locks, links and limits of POSIX systems")


def whole_line(text):
    """The one line in which a command tells what went wrong."""
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    return errors[0]


@contextlib.contextmanager
def largest_file(size):
    """As `ulimit -f`, for the block."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def started(argv, out, folder, lines=1):
    """A command that has logged that often."""
    run = Command(argv, out)
    log = folder / "trainer_log.jsonl"
    run.wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") >= lines)
    assert run.running(), run.text()
    return run


# ---- the claim


@pytest.mark.slow
@posix
def test_a_second_run_is_refused_and_a_killed_one_blocks_nobody(command, tmp_path, rows_file):
    folder = tmp_path / "run"
    argv = ["train", *command(folder, **LONG), "--resume_from_checkpoint", "auto"]
    first = started(argv, tmp_path / "first", folder)
    evaluation = ["evaluate", "--model_name_or_path=tiny-chatglm", f"--test_file={rows_file}", f"--output_dir={folder}"]
    scores = tmp_path / "scores.txt"
    scores.write_text('{"labels": "a", "predict": "b"}\n')
    others = [[*argv, "--overwrite_output_dir"], evaluation, ["evaluate", "--metrics-only", scores, "--output_dir", folder]]
    for number, other in enumerate(others):
        second = Command(other, tmp_path / f"second-{number}")
        assert second.wait() == 2
        assert f"another run (process {first.pid} on " in whole_line(second.text())
    assert first.running()
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert (folder / LOCK_FILE).exists()
    again = started(argv, tmp_path / "again", folder, lines=2)
    again.send(signal.SIGTERM)
    assert again.wait() == 143, again.text()
    assert not (folder / LOCK_FILE).exists()
    assert not list(folder.glob("old-*"))


@pytest.mark.slow
@posix
def test_the_target_of_quantising_is_claimed_too(tmp_path, capsys):
    target = tmp_path / "new" / "int4"
    argv = ["tiny-chatglm", str(target), "--bits", "4"]
    with (
        claimed(target, flag="DST", beside=True),
        pytest.raises(UserError, match=rf"DST {target}: this process is writing there already"),
    ):
        quantize.main(argv)
    assert not list(tmp_path.iterdir())
    assert quantize.main(argv) == 0
    assert [path.name for path in target.parent.iterdir()] == ["int4"]


@posix
def test_folders_that_cannot_be_are_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place, words in (
        ("file", "this is a file; name a folder"),
        ("file/below/that", f"{tmp_path / 'file'} is a file, and no folder can lie below it"),
        ("link", f"this is a link to {tmp_path / 'gone'}, which is not there"),
        ("new/" + "n" * 300, "cannot be written (File name too long)"),
        ("new/nul\0", "no path (embedded null byte)"),
        ("/proc/run", "cannot be written ("),
    ):
        with pytest.raises(UserError) as caught, claimed(tmp_path / place):
            pass
        assert words in str(caught.value)
        assert str(caught.value).startswith("--output_dir ")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@posix
def test_a_deleted_working_directory_is_named(tmp_path, monkeypatch, capsys):
    from ptuning.checkpoint.adapter import read_adapter
    from ptuning.edges.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    os.chdir("here")
    shutil.rmtree(tmp_path / "here")
    with pytest.raises(UserError, match="the working directory was deleted; change to another one"), claimed("run"):
        pass
    for argv in (["evaluate", "--metrics-only", "x"], ["train", "x.yaml"], ["inspect", "x.json"], ["evaluate", "run"]):
        assert main(argv) == 2
        assert "the working directory does not exist any more" in whole_line(capsys.readouterr().err)
    with pytest.raises(UserError, match="working directory deleted"):  # it went away after the start
        read_adapter("checkpoint")
    with claimed(tmp_path / "run") as place:
        place.check()


@pytest.mark.slow
@posix
@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_folder_that_goes_away_ends_the_run_and_is_not_made_again(command, tmp_path, what):
    folder = tmp_path / "run"
    run = started(["train", *command(folder, **LONG)], tmp_path / "out", folder)
    run.send(signal.SIGSTOP)
    folder.rename(tmp_path / "away")
    if what == "replaced":
        folder.mkdir()
    run.send(signal.SIGCONT)
    assert run.wait() == 1
    said = whole_line(run.text())
    assert f"{folder}: this output folder was removed or replaced" in said
    assert "of 100000" in said
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.slow
@posix
def test_nothing_is_written_through_links(command, tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    for name in ("trainer_log.jsonl", "arguments.json", "trainer_state.json", "all_results.json", "report.md"):
        (folder / name).symlink_to(outside)
    (folder / ".saving").symlink_to(tmp_path / "elsewhere")
    train(command(folder, max_steps=1, overwrite_output_dir=True))
    assert outside.read_text() == "mine"
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not any(path.is_symlink() for path in folder.iterdir())
    (tmp_path / "line").symlink_to(outside)
    with pytest.raises(OutputError, match="it is a symbolic link"):
        LineFile(tmp_path / "line")


def test_a_run_does_not_write_over_what_it_reads(command, tmp_path, golden, rows_file):
    model = tmp_path / "model"
    shutil.copytree(golden / "model", model)
    with pytest.raises(UserError, match="this is the folder of the model"):
        train(command(model, model_name_or_path=model, overwrite_output_dir=True))
    rows = tmp_path / "run" / "base" / "generated_predictions.jsonl"
    rows.parent.mkdir(parents=True)
    shutil.copyfile(rows_file, rows)
    with pytest.raises(UserError, match=r"--test_file .*: this run would write over it"):
        train(command(tmp_path / "run", test_file=rows, do_predict=True, overwrite_output_dir=True))
    assert rows.read_bytes() == rows_file.read_bytes()


# ---- the disk


@posix
@pytest.mark.parametrize("writer", ["text", "torch", "safetensors"])
def test_a_write_that_fails_names_the_file_and_the_reason(tmp_path, writer):
    (tmp_path / "file").write_text("old")

    def write(path):
        tensor = torch.zeros(10_000)
        {
            "text": lambda: path.write_text("x" * 40_000),
            "torch": lambda: torch.save({"a": tensor}, path),
            "safetensors": lambda: save_file({"a": tensor}, path),
        }[writer]()

    with (
        largest_file(4096),
        pytest.raises(OutputError, match=rf"^{tmp_path / 'file'}: cannot be written \(File too large\); .*ulimit -f"),
        replace_when_whole(tmp_path / "file") as temporary,
    ):
        write(temporary)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@posix
def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    with LineFile(tmp_path / "lines") as file:
        file.append("one\n")
        with largest_file(10), pytest.raises(OutputError, match="File too large"):
            file.append("much longer than that\n")
        assert (tmp_path / "lines").read_text() == "one\n"
        (tmp_path / "lines").unlink()
        with pytest.raises(OutputError, match="was removed while it was written"):
            file.append("two\n")


@posix
def test_prepared_rows_that_cannot_be_kept_are_no_error(tmp_path, caplog):
    from ptuning.data.example_store import pack

    arrays = pack([Example([1] * 5000, [1] * 5000, "a:1", 1, 1, 0, False)] * 2, [0, 1])
    with largest_file(4096):
        write_arrays(tmp_path / "rows.safetensors", arrays)
    assert "the prepared rows cannot be kept" in caplog.text
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@posix
def test_quantising_on_a_full_disk_leaves_nothing(tmp_path):
    run = Command(["quantize", "tiny-chatglm", tmp_path / "int8", "--bits", 8], tmp_path / "out", limit_file=100_000)
    assert run.wait() == 1
    assert "cannot be written (File too large)" in whole_line(run.text())
    assert os.listdir(tmp_path) == ["out"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of that many kilobytes; made larger by ``grow``."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size, *more):
        options = ",".join((f"size={size}k", *more))
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=False)

    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount") or mount(200).returncode:
        pytest.skip("mounting a file system needs root")
    yield place, lambda size: mount(size, "remount")
    subprocess.run(["umount", "-l", place], check=False)


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_checkpoints_and_the_run_goes_on_later(small_disk, command, tmp_path):
    place, grow = small_disk
    settings = {"max_steps": 12, "save_steps": 2, "logging_steps": 1}
    run = Command(["train", *command(place / "run", **settings)], tmp_path / "out")
    assert run.wait() == 1
    said = whole_line(run.text())
    assert "is not saved: " in said
    assert "cannot be written (No space left on device)" in said
    saved = sorted((place / "run").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert f"{saved[-1].name} is whole and kept" in said
    assert not (place / "run" / ".saving").exists()
    assert grow(4000).returncode == 0
    train([*command(place / "run", **settings), "--resume_from_checkpoint", "auto"])
    train(command(tmp_path / "straight", **settings))
    ours, theirs = (folder / "checkpoint-12" for folder in (place / "run", tmp_path / "straight"))
    assert all(torch.equal(tensor, prefix_of(theirs)[name]) for name, tensor in prefix_of(ours).items())
    assert log_of(ours) == log_of(theirs)
    assert steps(place / "run") == steps(tmp_path / "straight")


# ---- ends of a process


def steps(folder):
    """What trainer_log.jsonl says, without what a clock wrote."""
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = ("time", "per_second", "runtime")
    return [{name: value for name, value in line.items() if not name.endswith(clocks)} for line in lines]


@pytest.mark.slow
@posix
def test_a_run_killed_in_its_last_evaluation_logs_every_line_once(command, tmp_path, rows_file):
    settings = {"max_steps": 3, "save_steps": 1, "logging_steps": 1, "do_eval": True, "validation_file": rows_file}
    argv = ["train", *command(tmp_path / "run", **settings), "--resume_from_checkpoint", "auto"]
    log, results = tmp_path / "run" / "trainer_log.jsonl", tmp_path / "run" / "eval_results.json"
    for number in range(2):  # the second one already finds the last step done
        run = Command(argv, tmp_path / f"out-{number}")
        run.wait_for(lambda: log.exists() and "eval_loss" in log.read_text(encoding="utf-8") and not results.exists())
        run.send(signal.SIGKILL)
        run.wait()
    train(argv[1:])
    train(command(tmp_path / "straight", **settings))
    assert steps(tmp_path / "run") == steps(tmp_path / "straight")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "straight")


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[1] == str(pid) and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.fixture
def many_rows(tmp_path):
    """A file that takes several processes a while."""
    row = json.dumps({"content": "类型#裙*颜色#白色" * 40, "summary": "白色的裙子" * 40}) + "\n"
    (tmp_path / "rows.json").write_text(row * 20_000, encoding="utf-8")
    return {"train_file": tmp_path / "rows.json", "preprocessing_num_workers": 3, "overwrite_cache": True}


in_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.mark.slow
@in_proc
@pytest.mark.parametrize("work", ["tokenising", "batches"])
def test_a_process_of_a_run_that_is_killed_is_one_line(command, tmp_path, many_rows, work):
    folder = tmp_path / "run"
    more = many_rows if work == "tokenising" else LONG | {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    run = Command(["train", *command(folder, **more)], tmp_path / "out")
    if work == "tokenising":
        helpers = workers = run.wait_for(lambda: children(run.pid))
    else:  # here their parent is the server that forks them
        run.wait_for(lambda: (folder / "checkpoint-20").exists())
        workers = [pid for server in children(run.pid) for pid in children(server)]
        helpers = [*children(run.pid), *workers]
    os.kill(workers[0], signal.SIGKILL)
    assert run.wait() == 1
    said = whole_line(run.text())
    assert ("lower --preprocessing_num_workers" if work == "tokenising" else "lower --dataloader_num_workers") in said
    for pid in helpers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@in_proc
def test_nobody_is_left_behind_when_a_run_is_killed_while_it_tokenises(command, tmp_path, many_rows):
    run = Command(["train", *command(tmp_path / "run", **many_rows)], tmp_path / "out")
    workers = run.wait_for(lambda: len(found := children(run.pid)) >= 3 and found)
    assert workers, run.text()
    run.send(signal.SIGKILL)
    run.wait()
    until = time.monotonic() + 60
    while (left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


@posix
def test_a_folder_of_somebody_else_in_the_same_place_stays(tmp_path):
    """The folder that was made here was moved away; what stands there now was not made here, although it is empty."""
    place = tmp_path / "run"
    with claimed(place):
        place.rename(tmp_path / "moved")
        place.mkdir()
    assert place.is_dir()
