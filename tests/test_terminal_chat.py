"""The terminal chat in a real pseudo-terminal, and in a pipe."""

import subprocess
import sys

import pexpect
import pytest


@pytest.fixture
def argv(golden):
    return [
        "-m",
        "ptuning",
        "chat",
        "--model_name_or_path",
        str(golden / "model"),
        "--ptuning_checkpoint",
        str(golden / "checkpoint-prefix"),
        "--device",
        "cpu",
        "--temperature",
        "0",
    ]


def test_a_conversation(argv, golden_cases):
    """Question, answer, clear, Ctrl-C in an answer, Ctrl-C at the prompt, stop."""
    child = pexpect.spawn(sys.executable, [*argv, "--max_length", "96"], encoding="utf-8", timeout=120, dimensions=(50, 300))
    child.expect("用户：")
    answer = golden_cases["prefix.chat"][0]["response"]
    for _ in range(2):
        child.sendline("你好")
        child.expect_exact("ChatGLM-6B：" + answer[:9])
        child.expect("用户：")
        child.sendline("clear")
        child.expect("对话历史已清空")
        child.expect("用户：")
    child.sendintr()
    child.expect("输入 stop 终止程序")
    child.expect("用户：")
    child.sendline("stop")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_stops_the_answer_only(argv):
    child = pexpect.spawn(
        sys.executable, [*argv, "--max_length", "2000"], encoding="utf-8", timeout=120, dimensions=(50, 300)
    )
    child.expect("用户：")
    child.sendline("你好")
    child.expect_exact("例看亚腿")
    child.sendintr()
    child.expect("已停止")
    child.expect("用户：")
    child.sendline("stop")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_pipe_gets_the_answers_only(argv, golden_cases):
    done = subprocess.run(
        [sys.executable, *argv, "--max_length", "96", "--plain", "--no_history"],
        input="你好\n\n你好\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (golden_cases["prefix.chat"][0]["response"] + "\n") * 2


def test_a_bad_setting_ends_in_one_line(argv):
    done = subprocess.run([sys.executable, *argv, "--top_p", "3"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: top_p 3.0 was given; allowed is more than 0, up to 1"
