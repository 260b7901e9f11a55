"""``ptuning web`` as a process, and its page by gradio's own client: one server, started as the published web demo was."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from gradio_client import Client
from prefixes import save_random_prefix
from servers import ROOT, running, wait_for

import ptuning
from ptuning.core.errors import UserError
from ptuning.edges.http.server import open_socket
from ptuning.edges.web_command import WebArguments, _announce

ADMIN = {"Authorization": "Bearer admin"}
BASE = "tiny-chatglm"
# Every connection and every name that the process looks up, written down by Python itself.
WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {args[1] if event == 'socket.connect' else args[0]!r}\\n")
sys.addaudithook(watch)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("web")
    config = ptuning.load_model(BASE, device="cpu").config
    for seed, name in enumerate(("one", "two")):
        save_random_prefix(top / name, config, 24, seed + 1, base_model=BASE)
    (top / "output" / "run").mkdir(parents=True)
    (top / "output" / "run" / "report.html").write_text("<h1>a report</h1>", encoding="utf-8")
    (top / "watch").mkdir()
    (top / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    published = {"model_name_or_path": BASE, "ptuning_checkpoint": str(top / "one"), "pre_seq_len": 24}
    (top / "web_demo.json").write_text(json.dumps(published), encoding="utf-8")
    return top


@pytest.fixture(scope="module")
def server(place):
    """With one settings file, as the published demo takes it, and the port where gradio's users set it."""
    flags = ["--admin_key", "admin", "--checkpoint_root", place, "--report_root", place / "output", "--max_rows", 4]
    port = str(free_port())
    watched = {"PYTHONPATH": str(place / "watch"), "WATCHED": str(place / "watched")}
    with running("web", place / "web_demo.json", *flags, GRADIO_SERVER_PORT=port, **watched) as (address, process):
        assert address == f"http://127.0.0.1:{port}"
        yield address, process


@pytest.fixture
def client(server):
    with contextlib.closing(Client(server[0], verbose=False)) as made:
        yield made


def health(server):
    return httpx.get(f"{server[0]}/health").json()


def wishes(model="one", beside=None, max_length=2048, temperature=0, tokens=0, penalty=1):
    """The page's settings in their order."""
    return (model, beside is not None, beside or BASE, max_length, 0.7, temperature, "tuned", tokens, 50, penalty, 0, 0)


def talk(result):
    """(rounds of both columns, notes, error, text put back into the input)."""
    chats = [[message["content"][0]["text"] for message in one["value"]] for one in result[:2]]
    back = result[5].get("value") if isinstance(result[5], dict) else result[5]
    return chats, list(result[2:4]), result[4]["value"], back


def say(client, query, *given, **more):
    return talk(client.predict(query, *wishes(*given, **more), api_name="/send"))


def published(server, query, model="one", history=(), tokens=20, **more):
    body = {"prompt": query, "model": model, "history": list(history), "temperature": 0, "max_new_tokens": tokens} | more
    return httpx.post(server[0], json=body).json()["response"]


ENDLESS = {"penalty": 0.3}  # what stands there already is preferred: <eop> never comes


@pytest.mark.slow
def test_an_answer_arrives_in_pieces_and_is_that_of_the_api(server, client):
    job = client.submit("你好", *wishes(tokens=150, **ENDLESS), api_name="/send")
    job.result()
    seen = [talk(one)[0][0][-1] for one in job.outputs() if len(talk(one)[0][0]) == 2]
    answer = published(server, "你好", tokens=150, repetition_penalty=0.3)
    assert seen[-1] == answer
    assert len(set(seen)) > 2
    assert all(answer.startswith(text) for text in seen)
    second = say(client, "你是谁", tokens=20)[0][0]
    assert second[-1] == published(server, "你是谁", history=[("你好", answer)])
    assert len(second) == 4


@pytest.mark.slow
def test_sessions_do_not_mix(server, client):
    with contextlib.closing(Client(server[0], verbose=False)) as other:
        assert len(say(client, "你好", tokens=3)[0][0]) == 2
        assert say(other, "再见", tokens=3)[0][0][0] == "再见"
        assert say(client, "你是谁", tokens=3)[0][0][::2] == ["你好", "你是谁"]


@pytest.mark.slow
def test_side_by_side_answers_twice(server, client):
    chats, notes, error, _ = say(client, "讲个故事", "one", BASE, tokens=20)
    assert [chat[-1] for chat in chats] == [published(server, "讲个故事", name) for name in ("one", BASE)]
    assert ("one" in notes[0], BASE in notes[1], error) == (True, True, "")


@pytest.mark.slow
def test_stop_frees_the_row(server, client):
    job = client.submit("你好", *wishes(**ENDLESS), api_name="/send")
    wait_for(lambda: health(server)["running"] == 1)
    client.predict(api_name="/stop")
    wait_for(lambda: health(server)["running"] == 0, seconds=2)
    chats, notes, _, _ = talk(job.result())
    assert chats[0][1]
    assert "已停止" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2])
def test_leaving_the_page_cancels_its_answers(server, columns):
    """As a browser's page does it: it holds a connection that ends with the page."""
    send = next(one for one in httpx.get(f"{server[0]}/config").json()["dependencies"] if one["api_name"] == "send")
    session = f"leaving{columns}"
    body = {"fn_index": send["id"], "session_hash": session}
    body["data"] = ["你好", *wishes("one", BASE if columns == 2 else None, **ENDLESS)]
    with httpx.stream("GET", f"{server[0]}/gradio_api/heartbeat/{session}", timeout=30) as held:
        lines = held.iter_lines()
        next(lines)
        assert httpx.post(f"{server[0]}/gradio_api/queue/join", json=body).status_code == 200
        wait_for(lambda: health(server)["running"] == columns)
    wait_for(lambda: health(server)["running"] == 0, seconds=2)


@pytest.mark.slow
def test_retry_and_clear(server, client):
    say(client, "你好", BASE, tokens=10)
    chats = talk(client.predict(*wishes("one", tokens=10), api_name="/retry"))[0]
    assert chats[0] == ["你好", published(server, "你好", tokens=10)]
    assert talk(client.predict(api_name="/clear"))[0] == [[], []]
    assert say(client, "   ")[0] == [[], []]


@pytest.mark.slow
def test_what_cannot_be_answered_is_a_message_and_the_question_comes_back(server, client):
    for query, given, message in (
        ("你好", {"max_length": 0}, "最大长度 0 容不下任何回答"),
        ("长" * 3000, {}, "问题有 3003 个词元"),
        ("你好", {"penalty": 0}, "repetition_penalty 0 was given"),
    ):
        chats, _, error, back = say(client, query, **given)
        assert message in error
        assert (chats[0], back) == ([], query)
    assert "Traceback" not in error


PLACES = {"max_length": 3, "top_p": 4, "temperature": 5, "max_new_tokens": 7, "top_k": 8, "repetition_penalty": 9,
          "no_repeat_ngram_size": 10, "seed": 11}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "message"), [
    ("max_length", -5, "最大长度 -5 容不下任何回答"), ("max_length", 1.5, "max_length 1.5 was given"),
    ("max_length", 1e300, "max_length 1e+300 was given"), ("top_p", 0, "top_p 0"), ("top_p", 1.01, "top_p 1.01"),
    ("top_p", -1e300, "top_p -1e+300"), ("temperature", -0.1, "temperature -0.1"), ("top_k", -1, "top_k -1"),
    ("top_k", 2.5, "top_k 2.5 was given"), ("top_k", 2.0**63, "top_k 9.22337e+18 was given"),
    ("max_new_tokens", -1, "max_new_tokens -1"), ("max_new_tokens", 0.5, "max_new_tokens 0.5 was given"),
    ("repetition_penalty", -1, "repetition_penalty -1"), ("no_repeat_ngram_size", -3, "no_repeat_ngram_size -3"),
    ("seed", 1.5, "seed 1.5 was given"), ("seed", 1e25, "seed 1e+25 was given"),
])  # fmt: skip
def test_a_setting_out_of_range_is_told_on_the_page(server, client, name, value, message):
    """Sent straight to the function, past what a slider lets through; the question comes back."""
    given = list(wishes())
    given[PLACES[name]] = value
    chats, _, error, back = talk(client.predict("你好", *given, api_name="/send"))
    assert message in error
    assert "不能回答" in error or "容不下" in error
    assert (chats[0], back) == ([], "你好")
    assert health(server)["running"] == 0


@pytest.mark.slow
def test_a_question_that_no_model_can_hold_is_told_and_not_carried_around(server, client):
    """Typed into the page (private, so by its number), and sent straight to the function."""
    events = httpx.get(f"{server[0]}/config").json()["dependencies"]
    take = next(one["id"] for one in events if one["targets"] and one["targets"][0][1] == "submit")
    most = 16 * ptuning.load_model(BASE, device="cpu").config.max_sequence_length
    for text in ("长" * 600_000, "*" * 1_900_000, " x" * (most // 2 + 1)):
        body = {"fn_index": take, "data": [text], "session_hash": "typed"}
        answer = httpx.post(f"{server[0]}/gradio_api/run/predict", json=body, timeout=60)
        assert answer.status_code == 200
        assert len(answer.text) < 2000
        assert answer.json()["data"][1] == ""  # nothing goes on, and the input keeps what was typed
        chats, _, error, _ = say(client, text)
        assert f"超过 {most} 个字符" in error
        assert chats == [[], []]
    assert len(say(client, "你好", tokens=3)[0][0]) == 2


@pytest.mark.slow
def test_a_prefix_comes_and_goes_while_the_page_is_open(server, place, client):
    def admin(method, path, **more):
        return httpx.request(method, f"{server[0]}/admin/prefixes{path}", headers=ADMIN, **more).status_code

    def chosen(model):
        return client.predict(model, BASE, api_name="/refresh")

    assert admin("POST", "", json={"name": "late", "path": str(place / "two")}) == 201
    assert [value for _, value in chosen("one")[0]["choices"]] == [BASE, "one", "late"]
    assert say(client, "1+1=?", "late", tokens=20)[0][0][-1] == published(server, "1+1=?", "late")
    assert admin("DELETE", "/late") == 200
    _, _, error, back = say(client, "你好", "late")
    assert "选中的前缀已不在" in error
    assert back == "你好"
    assert chosen("late")[0]["value"] == "one"


@pytest.mark.slow
def test_reports_below_the_root_open_and_nothing_else(client):
    assert client.predict(None, api_name="/reports")["choices"] == [["run", "run"]]
    assert "&lt;h1&gt;a report&lt;/h1&gt;" in client.predict("run", api_name="/open_report")
    for trick in ("..", "../output/run/../..", "/etc", "run/../../one"):
        assert "打不开" in client.predict(trick, api_name="/open_report")


@pytest.mark.slow
def test_language_of_the_browser_and_of_the_switch(server):
    for header, label in (("zh-CN,zh;q=0.9", "发送"), ("de-DE,de", "Send")):
        with contextlib.closing(Client(server[0], verbose=False, headers={"accept-language": header})) as client:
            assert ("最大长度" in say(client, "你好", max_length=0)[2]) == (label == "发送")
    with contextlib.closing(Client(server[0], verbose=False, headers={"accept-language": "zh"})) as client:
        client.predict("en", "one", BASE, api_name="/language")
        assert "maximum length" in say(client, "你好", max_length=0)[2]


@pytest.mark.slow
def test_answers_of_the_page_are_in_the_figures(server, client):
    def requests():
        text = httpx.get(f"{server[0]}/metrics").text
        return float(re.search(r"^ptuning_request_seconds_count (\S+)$", text, re.M)[1])

    before = requests()
    say(client, "你好", "one", BASE, tokens=2)
    assert requests() == before + 2


@pytest.mark.slow
def test_nothing_outside_of_this_machine_is_asked(server, place, client):
    """After everything above, and gradio's start."""
    say(client, "你好", tokens=2)
    watched = place / "watched"
    lines = watched.read_text(encoding="utf-8").splitlines() if watched.exists() else []
    assert not [line for line in lines if not re.search(r"127\.0\.0\.1|'::1'|'localhost'|socketpair", line)]


@pytest.mark.slow
def test_sigterm_ends_it_although_a_page_is_open(server, client):
    """The last test of this server: pages keep a connection open that would never end by itself."""
    process = server[1]
    job = client.submit("你好", *wishes(tokens=30, **ENDLESS), api_name="/send")
    wait_for(lambda: health(server)["running"] == 1 or job.done())
    process.send_signal(signal.SIGTERM)
    assert process.wait(14) == 0  # a second later it would have given up waiting for the connections


# ---- settings


def test_host_and_port_come_from_gradios_environment(monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    monkeypatch.setenv("API_PORT", "1")
    assert (WebArguments().host, WebArguments().port) == ("0.0.0.0", 7999)
    assert WebArguments(port=7000).port == 7000
    monkeypatch.setenv("GRADIO_SERVER_PORT", "x")
    with pytest.raises(UserError, match="GRADIO_SERVER_PORT=x: a port is a number"):
        WebArguments()
    monkeypatch.delenv("GRADIO_SERVER_NAME")
    monkeypatch.delenv("GRADIO_SERVER_PORT")
    assert (WebArguments().host, WebArguments().port) == ("127.0.0.1", 7860)


def test_an_answer_is_sent_at_once():
    """asyncio lets a socket send at once where it knows by name that it is of TCP; 40 ms of every answer hang on it."""
    with open_socket("127.0.0.1", 0) as opened:
        assert opened.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("auth", ["me", "me:", ":x", ":"])
def test_a_password_has_a_user(auth):
    with pytest.raises(UserError, match="USER:PASSWORD"):
        WebArguments(auth=auth)
    assert WebArguments(auth="me:a:b").user_and_password == ("me", "a:b")


@pytest.mark.parametrize(("given", "said"), [
    ({"host": "0.0.0.0"}, "its page and its API needs no password"),
    ({"host": "0.0.0.0", "api_key": "k"}, "its page needs no password"),
    ({"host": "0.0.0.0", "auth": "me:x"}, ""),
    ({"host": "127.0.0.1"}, ""),
])  # fmt: skip
def test_strangers_are_warned_of(caplog, given, said):
    with caplog.at_level(logging.INFO, logger="ptuning"):
        _announce(WebArguments(port=1, **given), 1, ["a"], "a")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (said in warnings[0]) if said else not warnings
    assert ("closed" in caplog.text) == ("auth" in given)


@pytest.mark.slow
def test_without_gradio_one_line_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('No module named gradio', name='gradio')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "ptuning", "web", "--port", "0"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: ptuning web needs gradio: pip install 'ptuning[web]' (or requirements.txt)"
    ]
