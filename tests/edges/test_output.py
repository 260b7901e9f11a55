"""What a command says: nothing in it drives the terminal, and no encoding, closed stream or full disk ends it badly."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from processes import Command

from ptuning.core.errors import GenerationError, StoppedError, TrainingError, UserError
from ptuning.edges import cli
from ptuning.edges.output import SafeFormatter, inline, print_error, print_json, shown

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b]0;owned\x07\x9b31m\x08\x7f\u202e\r"
_CODES = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
OBEYED = {chr(code) for code in _CODES} - {"\n", "\t"}
FULL = Path("/dev/full")


def command(*argv, stdin="", code=None, **changes):
    """``ptuning`` in a process; its bytes as they came."""
    words = [sys.executable, "-c", code] if code else [sys.executable, "-m", "ptuning"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {name: changes.pop(name) for name in ("stdout", "stderr") if name in changes}
    return subprocess.run(
        [*words, *map(str, argv)], input=stdin.encode(), timeout=120, check=False,
        env=environment | changes, **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )  # fmt: skip


def in_encoding(encoding, argv, folder):
    """The same in a process that is forked, with streams as PYTHONIOENCODING opens them."""
    opened = "import sys\n" + "".join(
        f"sys.{name} = open({number}, 'w', encoding={encoding!r}, errors={errors!r}, closefd=False)\n"
        for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace"))
    )
    run = Command(argv, folder / "stdout", errors=folder / "stderr", before=opened)
    return subprocess.CompletedProcess(
        argv, run.wait(), (folder / "stdout").read_bytes(), (folder / "stderr").read_bytes()
    )


def error_line(done):
    """The one line that a command ended with."""
    text = done.stderr.decode("utf-8")
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture(scope="module")
def hostile_rows(tmp_path_factory):
    """A file whose name, columns and rows hold what a terminal would obey, and characters that few encodings have."""
    path = tmp_path_factory.mktemp("rows") / f"rows{HOSTILE}.jsonl"
    rows = [{"prompt": f"问{n}{HOSTILE}", "response": f"答😀é{HOSTILE}\n二", f"more\n{HOSTILE}": 1} for n in range(2)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    row = json.dumps({"labels": f"好\n😀{HOSTILE}", "predict": f"好{HOSTILE}"}, ensure_ascii=False)
    path.write_text(f"{row}\n", encoding="utf-8")
    return path


# ---- the escape ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", [*sorted(OBEYED), *map(chr, (0x2028, 0x2029, 0xD800, 0xDFFF))], ids=ascii)
def test_what_a_terminal_would_obey_is_shown_by_its_number(character):
    made = shown(f"a{character}b")
    assert made == f"a{character.encode('unicode_escape', 'surrogatepass').decode()}b".replace("\\r", "\\x0d")
    assert made.isprintable()


@pytest.mark.parametrize("text", ["天气\t好\n吗？", "👨‍👩‍👧 é ñ", "שלום \u200f!", "naïve « » ⏎ …", "\\x1b"])
def test_text_stays_as_it_is(text):
    assert shown(text) == text


def test_a_part_of_a_line_stays_in_its_line():
    assert inline("a\nb\tc") == "a\\nb\tc"
    assert inline(Path("x\ny")) == "x\\ny"


def test_json_gives_the_value_back_in_every_encoding(monkeypatch):
    value = {"text": f"好😀é{HOSTILE}\ud800", HOSTILE: [1, None]}
    for encoding in ("utf-8", "gbk", "ascii", "latin-1"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        print_json(value)
        stream.flush()
        written = stream.buffer.getvalue().decode(encoding)
        assert json.loads(written) == value
        assert not OBEYED & set(written)
        assert ("好" in written) is (encoding == "utf-8"), "what can be encoded is not escaped"


def test_log_lines_are_shown_by_the_same_rule():
    def line(message, *args, **more):
        record = logging.LogRecord("x", logging.INFO, "file", 1, message, args, more.get("exc_info"))
        return SafeFormatter("%(message)s").format(record)

    assert line("%s: %d rows\nof %s", f"a\n{HOSTILE}", 3, Path("b\nc")) == f"a\\n{shown(HOSTILE)}: 3 rows\nof b\\nc"
    assert line(f"{HOSTILE}%(name)s", {"name": "x\ny"}) == f"{shown(HOSTILE)}x\\ny"
    assert line("%r %s", "\x1b", ValueError("a\n\x9b")) == "'\\\\x1b' a\\n\\x9b"
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        assert not OBEYED & set(line("failed", exc_info=sys.exc_info()))


def test_that_nobody_reads_what_is_told_ends_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    print_error("anybody there?")


# ---- the real thing ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inspect_in_a_terminal_shows_nothing_that_it_would_obey(hostile_rows):
    """Name of the file, names of columns, texts of rows; our own colours are the only sequences."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    for words in ([], ["--prompt_column", f"no{HOSTILE}"], ["--json"]):
        child = pexpect.spawn(
            sys.executable, ["-m", "ptuning", "inspect", str(hostile_rows), *words], encoding="utf-8", timeout=120,
            cwd=str(ROOT), env=environment, dimensions=(50, 400),
        )  # fmt: skip
        child.expect(pexpect.EOF)
        child.close()
        printed = child.before.replace("\r\n", "\n").replace("\x1b[32m", "").replace("\x1b[0m", "")
        assert child.exitstatus == (2 if "--prompt_column" in words else 0), printed
        assert not OBEYED & set(printed)
        assert "owned" in printed
        if not words:
            assert "\x1b[32m" in child.before
            assert f"more\\n{shown(HOSTILE)}" in printed


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1"])
def test_inspect_in_other_encodings(hostile_rows, encoding, tmp_path):
    done = in_encoding(encoding, ["inspect", hostile_rows], tmp_path)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    printed = done.stdout.decode(encoding)
    assert not OBEYED & set(printed + done.stderr.decode(encoding))
    learnt = {"gbk": "答\\U0001f600é", "ascii": "\\u7b54\\U0001f600\\xe9"}
    assert learnt.get(encoding, "é") in printed
    assert ("»" if encoding == "latin-1" else ">>") in printed


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_scores_in_other_encodings(answers, encoding, tmp_path):
    done = in_encoding(encoding, ["evaluate", "--metrics-only", answers], tmp_path)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    printed = done.stdout.decode(encoding)
    assert "bleu-4" in printed
    assert not OBEYED & set(printed)


@pytest.mark.slow
def test_an_evaluation_in_another_encoding_is_whole(golden, rows_file, tmp_path):
    """It used to fail behind all answers, when it showed three of them."""
    row = json.loads(rows_file.read_text(encoding="utf-8").splitlines()[0])
    rows = [{"content": f"{row['content']}{HOSTILE}", "summary": f"{row['summary']}\n{HOSTILE}😀"}] * 2
    (tmp_path / "test.json").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    done = command(
        "evaluate", "--model_name_or_path", golden / "model", "--test_file", tmp_path / "test.json", "--prompt_column",
        "content", "--response_column", "summary", "--max_target_length", "6", "--device", "cpu", "--output_dir",
        tmp_path / "run", PYTHONIOENCODING="gbk",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("gbk")
    printed = done.stdout.decode("gbk") + done.stderr.decode("gbk")
    assert "reference" in printed
    assert row["content"][:6] in printed
    assert not OBEYED & set(printed)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_bytes_that_are_no_text_are_one_line_and_those_of_the_encoding_are_read(golden):
    words = ["chat", "--model_name_or_path", golden / "model", "--device", "cpu", "--greedy", "--max_new_tokens", "3"]
    question = "你好\n".encode("gbk")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "ptuning", *map(str, words)]
    done = subprocess.run(run, input=question, capture_output=True, env=environment, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert error_line(done) == "error: the input is not UTF-8 text; convert it first (iconv -f gbk -t utf-8)"
    plain = command(*words, stdin="你好\n")
    coded = subprocess.run(
        run, input=question, capture_output=True, timeout=120, check=False, env=environment | {"PYTHONIOENCODING": "gbk"}
    )
    assert coded.returncode == 0
    assert coded.stdout.decode("gbk") == plain.stdout.decode("utf-8").encode("gbk", "backslashreplace").decode("gbk")


# ---- streams that are closed, full, or read by nobody --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("verb", ["--help", "evaluate --metrics-only FILE"])
@pytest.mark.parametrize(
    ("redirection", "code", "says"),
    [
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        (">/dev/full", 1, "error: standard output: No space left on device; make room there, or name another place\n"),
        (">/dev/full 2>/dev/full", 1, ""),
        ("| exec 0<&-", 141, ""),
    ],
)
def test_output_that_cannot_be_written(answers, verb, redirection, code, says):
    if "full" in redirection and not FULL.exists():
        pytest.skip("no /dev/full here")
    words = verb.replace("FILE", f"'{answers}'")
    script = f"set -o pipefail; '{sys.executable}' -m ptuning {words} {redirection}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, stdin=subprocess.DEVNULL
    )
    errors = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("scoring: "))
    assert (done.returncode, errors) == (code, says)


def test_files_opened_later_are_no_standard_stream(tmp_path):
    """With standard output closed the next file would get its number, and whatever a library prints would land in it."""
    code = (
        "import os, sys; from ptuning.edges import cli\n"
        "def run(argv):\n"
        "    with open(argv[0], 'wb') as file:\n"
        "        os.write(1, b'printed by a library'); assert file.fileno() > 2\n"
        "    return 0\n"
        "cli.run = run; sys.exit(cli.main())"
    )
    file = tmp_path / "file"
    words = ["bash", "-c", '"$0" -c "$1" "$2" >&- 2>&-', sys.executable, code, str(file)]
    assert subprocess.run(words, cwd=ROOT, timeout=60, check=False).returncode == 0
    assert file.read_bytes() == b""


# ---- what ends a command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError(f"a:1: no\n{HOSTILE}"), 2, f"error: a:1: no {shown(HOSTILE.rstrip())}"),
        (GenerationError("scores are NaN\nin layer 3"), 1, "error: scores are NaN in layer 3"),
        (TrainingError("the loss\nis NaN"), 1, "error: the loss is NaN"),
        (StoppedError("stopped\nafter step 3", 143), 143, "stopped after step 3"),
        (OSError(errno.ENOSPC, "No space left on device", "/disk/a\x1bb"), 1,
         "error: /disk/a\\x1bb: No space left on device; make room there, or name another place"),
        (OSError(errno.EROFS, "Read-only file system", b"/rom/x"), 1,
         "error: /rom/x: Read-only file system; name another place"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), 1, "error: x.json: Permission denied"),
        (OSError("the library says so"), 1, "error: the library says so"),
        (OSError(), 1, "error: OSError"),
        (MemoryError(), 1, "error: not enough memory (MemoryError)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nmore"), 1,
         "error: not enough memory ([enforce fail] DefaultCPUAllocator: can't allocate memory: you tried)"),
        (ModuleNotFoundError("No module named 'gradio'", name="gradio"), 2,
         "error: the package gradio is not installed: pip install 'ptuning[web]' (or requirements.txt)"),
        (ModuleNotFoundError("No module named 'jieba'", name="jieba"), 2,
         "error: the package jieba is not installed: pip install jieba (or requirements.txt)"),
        (UnicodeEncodeError("utf-8", "a\udcffb", 1, 2, "surrogates not allowed"), 2,
         "error: '\\udcff' cannot be written as utf-8: half a character, as in the name of a file or folder that is not "
         "UTF-8; rename it"),
        (KeyboardInterrupt(), 130, "\ninterrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_what_is_no_bug_is_one_line(error, code, line, monkeypatch, capsys):
    def run(argv):
        raise error

    monkeypatch.setattr(cli, "run", run)
    assert cli.main([]) == code
    assert capsys.readouterr().err == line + "\n"


def test_recursion_names_the_place(monkeypatch, capsys):
    def run(argv):
        return run(argv)

    monkeypatch.setattr(cli, "run", run)
    assert cli.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the input is nested too deeply (RecursionError in ")
    assert f"{Path(__file__).name}:" in error


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("x"), KeyError("x"), TypeError("x"), RuntimeError("x"), ValueError("x"),
        ModuleNotFoundError("x", name="ptuning.nowhere"), ModuleNotFoundError("x"), ImportError("cannot import name 'x'"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), AssertionError("x"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    def run(argv):
        raise error

    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(type(error)):
        cli.main([])


def test_tracebacks_warnings_and_other_logs_are_shown_by_the_same_rule():
    code = (
        "import logging, sys, threading, warnings; from ptuning.edges import cli\n"
        f"hostile = {HOSTILE!r}\n"
        "def fail(): raise RuntimeError('in a thread ' + hostile)\n"
        "def run(argv):\n"
        "    own = logging.getLogger('a_library'); own.propagate = False; own.addHandler(logging.StreamHandler())\n"
        "    own.warning('of a library %s', hostile)\n"
        "    logging.getLogger('another').warning('of the root %s', 'a\\n' + hostile)\n"
        "    warnings.warn('a warning ' + hostile)\n"
        "    thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "    raise RuntimeError('a bug ' + hostile)\n"
        "cli.run = run; sys.exit(cli.main())"
    )
    done = command(code=code)
    assert done.returncode == 1
    printed = done.stderr.decode("utf-8")
    assert not OBEYED & set(printed)
    for part in ("of a library ", "of the root a\\n", "a warning ", "RuntimeError: in a thread ", "RuntimeError: a bug "):
        assert f"{part}\\x1b]0;owned" in printed, part
    assert printed.count("Traceback") == 2


@pytest.mark.skipif(os.name == "nt", reason="a folder in use cannot be removed")
@pytest.mark.parametrize("words", ["--help", "info tiny-chatglm", "train --help", "chat", "inspect x.json"])
def test_a_working_directory_that_was_deleted(words, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd '{gone}'; rmdir '{gone}'; exec '{sys.executable}' -m ptuning {words}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if words == "--help":
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        assert done.returncode == 2
        assert error_line(done) == "error: the working directory does not exist any more: change to one that does"


@pytest.mark.slow
def test_a_package_that_is_missing_is_one_line(golden):
    code = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "from ptuning.edges import cli; sys.exit(cli.main())"
    )
    done = command("inspect", ROOT / "data" / "adgen-tiny" / "dev.json", code=code)
    assert done.returncode == 2
    assert error_line(done).startswith("error: the package sentencepiece is not installed: pip install sentencepiece")
