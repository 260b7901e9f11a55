"""The terminal chat in a real pseudo-terminal, and in a pipe."""

import json
import os
import shutil
import subprocess
import sys

import pexpect
import pytest

from ptuning.edges.cli import main

UP, LEFT, BACKSPACE, TAB = "\x1b[A", "\x1b[D", "\x7f", "\t"


@pytest.fixture
def argv(golden):
    return [
        "-m", "ptuning", "chat",
        "--model_name_or_path", str(golden / "model"),
        "--ptuning_checkpoint", f"golden={golden / 'checkpoint-prefix'}",
        "--ptuning_checkpoint", f"other={golden / 'checkpoint-prefix_projection'}",
        "--device", "cpu",
        "--greedy",
    ]  # fmt: skip


def test_a_conversation(argv, golden_cases, tmp_path):
    """Everything a person does at a terminal, in one sitting."""
    env = os.environ | {"TERM": "xterm", "LANG": "zh_CN.UTF-8", "PYTHONIOENCODING": "utf-8"}
    env.pop("LC_ALL", None)
    child = pexpect.spawn(
        sys.executable, [*argv, "--max_length", "96"], encoding="utf-8", timeout=120, dimensions=(50, 300), env=env
    )
    answer = golden_cases["prefix.chat"][0]["response"]
    child.expect("loaded prefix golden from .*: 6 tokens, 3 layers")
    child.expect("当前模型 golden：前缀 6 个虚拟词元，3 层，来自 .*checkpoint-prefix")
    child.expect("用户：")

    child.sendline("你好")
    child.expect_exact("ChatGLM-6B（golden）：" + answer[:9])
    child.expect("用户：")
    child.send("clear\r")
    child.expect("对话历史已清空")

    child.expect("用户：")  # wide characters typed, deleted, and typed in between
    child.send(f"你们好吗{LEFT}{LEFT}{BACKSPACE}")
    child.send(f"{LEFT}{LEFT}{LEFT}{LEFT}您\r")
    child.expect_exact("ChatGLM-6B（golden）：")
    child.expect("已到长度上限")
    child.expect("用户：")
    child.send(f"/sa{TAB} {tmp_path}/talk.jsonl\r")
    child.expect("已保存 1 轮")
    assert json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["prompt"] == "您你好吗"

    child.expect("用户：")
    child.sendintr()  # at the prompt: nothing ends
    child.expect("输入 stop 终止程序")
    child.expect("用户：")
    child.sendline("/set max_length 2000")
    child.expect("max_length 2000")
    child.expect("用户：")
    child.sendline("clear")
    child.expect("用户：")
    child.sendline("你好")
    child.expect_exact("例看亚腿")
    child.sendintr()  # in an answer: that answer ends
    child.expect("已停止")
    child.expect("用户：")

    child.send("/set max_new_tokens 5\r")
    child.expect("max_new_tokens 5")
    child.expect("用户：")
    child.sendline("/prefix other")
    child.expect("other：前缀 6 个虚拟词元")
    child.expect("用户：")
    child.sendline("再来")
    child.expect_exact("ChatGLM-6B（other）：")
    child.expect("用户：")
    child.sendline("/base")
    child.expect("原始模型")
    child.expect("用户：")
    child.send(f"{UP}{UP}\r")  # the question before
    child.expect_exact("ChatGLM-6B：")
    child.expect("用户：")
    child.sendline("/sve x")
    child.expect("错误：/sve: no such command; did you mean /save?")
    child.expect("用户：")
    child.sendline("stop")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_nothing_that_a_model_or_a_name_holds_reaches_the_terminal_raw(golden, tmp_path):
    """A model is as foreign as a web page: here two words of its vocabulary are sequences, as are folders' names."""
    model, prefix = tmp_path / "model\x1b]0;x\x07\x9b", tmp_path / "prefix\x1b]0;x\x07\x9b\n"
    shutil.copytree(golden / "model", model)
    shutil.copytree(golden / "checkpoint-prefix", prefix)
    vocabulary = model / "ice_text.model"
    words = vocabulary.read_bytes()
    for word, hostile in (("例", "\x1b]0"), ("看", "\x9bm")):  # of three bytes each
        assert word.encode() in words
        words = words.replace(word.encode(), hostile.encode())
    vocabulary.write_bytes(words)
    argv = ["-m", "ptuning", "chat", "--model_name_or_path", str(model), "--device", "cpu", "--greedy", "--max_length", "96"]
    child = pexpect.spawn(
        sys.executable, [*argv, "--lang", "en", "--ptuning_checkpoint", f"golden={prefix}"], encoding="utf-8", timeout=60,
        dimensions=(50, 300), env=os.environ | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    printed = ""
    for line, answer in (
        (None, r"answering: golden: a prefix of 6 tokens, 3 layers, from"),
        ("你好", r"\x1b]0\x9bm"),
        ("/prefix", r"model\x1b]0;x\x07\x9b: the base model"),
        ("/prefix golden", r"prefix\x1b]0;x\x07\x9b\n"),
        ("/save where.txt", "error: /save"),
    ):
        if line is not None:
            child.sendline(line)
        for expected in (answer, "You:"):
            child.expect_exact(expected)
            printed += child.before
    child.sendline("stop")
    child.expect(pexpect.EOF)
    printed += child.before
    child.close()
    assert child.exitstatus == 0
    assert not {"\x9b", "\x07", "\x9d"} & set(printed)
    assert "\x1b]" not in printed


def test_a_pipe_gets_the_answers_only(argv, golden_cases):
    lines = "你好\n\nclear\n你好\n/set temperature hot\n" + "长" * 200 + "\n/base\n"
    done = subprocess.run(
        [sys.executable, *argv, "--max_length", "96", "--no_history"],
        input=lines, capture_output=True, text=True, timeout=300, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout == (golden_cases["prefix.chat"][0]["response"] + "\n") * 2
    assert "/set temperature: 'hot' is not a number" in done.stderr
    assert "the question has" in done.stderr, "one question without an answer ends nothing"
    assert "原始模型" in done.stderr or "the base model" in done.stderr
    assert done.returncode == 1, "but a script must be able to see it"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--top_p", "3"], "error: top_p 3.0 was given; allowed is more than 0, up to 1"),
        (["--max_length", "0"], "error: --max_length 0: must be 2 or more"),
        (["--top_k", str(2**63)], "error: --top_k 9223372036854775808: must be up to 2147483647"),
        (["--seed", "-1"], "error: seed -1 was given; allowed is 0 to "),
        (["--pre_seq_len", "8"], "pre_seq_len"),
        (["--ptuning_checkpoint", "golden=."], "error: "),
    ],
)
def test_a_bad_setting_ends_in_one_line(argv, more, message, capsys):
    assert main([*argv[2:], *more]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.strip().splitlines()[-1]
    assert printed.err.count("error:") == 1
