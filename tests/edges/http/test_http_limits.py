"""What clients may cost: slow ones, many idle ones, large bodies, ones that leave; and /health beside all of it."""

import contextlib
import json
import re
import select
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from servers import running, wait_for

from ptuning.core.errors import UserError
from ptuning.edges.http.json_body import MAX_VALUES, has_too_many_values
from ptuning.edges.serve import ServerArguments

BASE = "tiny-chatglm"
ENDLESS = {"temperature": 0, "repetition_penalty": 0.3}  # <eop> never comes
LARGE = b"x" * 10_000_000
SECONDS = 2


@pytest.fixture(scope="module")
def server():
    """Impatient, with few places."""
    with running("serve", "--request_timeout", SECONDS, "--max_connections", 20) as (address, process):
        yield address, process


@pytest.fixture(scope="module")
def address(server):
    return server[0]


@contextlib.contextmanager
def connected(address):
    host, port = re.fullmatch(r"http://(.+):(\d+)", address).groups()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def rest_of(connection):
    """Everything until the server closes the connection."""
    parts = []
    while piece := connection.recv(65536):
        parts.append(piece)
    return b"".join(parts)


def head(path, *headers, method="POST"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def trickle(connection, data):
    """Send byte by byte until the server answers."""
    for place in range(len(data)):
        connection.sendall(data[place : place + 1])
        if select.select([connection], [], [], 0.1)[0]:
            break
    return rest_of(connection)


# ---- slow ones and many


SLOW_SENDERS = [  # what is sent at once, what byte by byte, and the status
    (b"", b"", b""),  # a connection on which nothing is sent
    (b"", head("/health", "X-Long: " + "a" * 500, method="GET"), b"408"),
    (b"GET /health HTTP/1.1\r\n", b"", b"408"),
    (head("/", "Content-Length: 1000"), b"{" * 1000, b"408"),
    (head("/", "Content-Length: 1000"), b"", b"408"),
    (head("/", "Transfer-Encoding: chunked"), b"1\r\n{\r\n" * 100, b"408"),
    (head("/v1/chat/completions", "Transfer-Encoding: chunked"), b"", b"408"),
    (head("/nowhere", "Content-Length: 1000"), b"{" * 1000, b"408"),
    (head("/", "Content-Length: 5000000"), b"{" * 1000, b"413"),  # refused at once, and not listened to for ever
    (head("/", "Origin: http://evil.example", "Content-Length: 50000"), b"{" * 1000, b"403"),
]


@pytest.fixture(scope="module")
def answers_to_slow_senders(address):
    """All of them at a time: each waits for the same two seconds."""

    def answer(first, then):
        with connected(address) as connection:
            connection.sendall(first)
            return trickle(connection, then)

    with ThreadPoolExecutor(len(SLOW_SENDERS)) as clients:
        return list(clients.map(lambda sender: answer(*sender[:2]), SLOW_SENDERS))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SLOW_SENDERS)))
def test_who_sends_slowly_is_closed(answers_to_slow_senders, number):
    found, said = answers_to_slow_senders[number], SLOW_SENDERS[number][2]
    assert found.split(b"\r\n")[0].split()[1:2] == ([said] if said else [])
    if said == b"408":
        assert b"the request was not complete after 2 seconds" in found


@pytest.mark.slow
def test_a_second_request_that_trickles_on_a_kept_connection(address):
    with connected(address) as connection:
        connection.sendall(head("/health", method="GET"))
        assert b"200 OK" in connection.recv(65536)
        assert b"408" in trickle(connection, head("/health", "X-Long: " + "a" * 500, method="GET"))


@pytest.mark.slow
def test_an_answer_may_take_longer_than_its_request(address):
    body = {"prompt": "你好", "max_new_tokens": 1900} | ENDLESS
    assert httpx.post(address, json=body, timeout=120).status_code == 200


@pytest.mark.slow
def test_who_does_not_read_answers_is_closed(address):
    """Ten large answers, one after the other, which no network holds for somebody who takes none of them."""
    body = json.dumps({"prompt": "x", "history": [["a", "b" * 1_900_000]], "max_new_tokens": 1}).encode()
    asked = head("/", f"Content-Length: {len(body)}") + body

    def send(connection):
        with contextlib.suppress(OSError):
            connection.sendall(asked * 10)

    with connected(address) as connection:
        sender = threading.Thread(target=send, args=(connection,))
        sender.start()
        sender.join(30)  # the server does not read on before it can answer, and closes the connection in the end
        assert not sender.is_alive()
        with contextlib.suppress(ConnectionResetError):
            assert len(rest_of(connection)) < 10 * len(body)


@pytest.mark.slow
def test_idle_connections_make_room(address):
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(address)) for _ in range(40)]
        for _ in range(3):
            assert httpx.get(f"{address}/health", timeout=10).status_code == 200
        assert idle[0].recv(100) == b""  # the oldest went first
    assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.slow
def test_where_all_are_busy_one_more_is_told_so(address):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(connected(address))
            connection.sendall(head("/", "Content-Length: 10", "Expect: 100-continue"))
            assert b"100 Continue" in connection.recv(1000)  # its body is waited for
        with connected(address) as connection:
            connection.sendall(head("/health", "Connection: close", method="GET"))
            assert rest_of(connection).startswith(b"HTTP/1.1 503 ")
    wait_for(lambda: _answers(address))


def _answers(address):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/health").status_code == 200
    return False


def test_settings_of_the_limits():
    for name in ("request_timeout", "max_connections"):
        with pytest.raises(UserError, match=f"--{name} 0: must be 1 or more"):
            ServerArguments(port=1, **{name: 0})


# ---- bodies that are too large


def pieces():
    for place in range(0, len(LARGE), 100_000):
        yield LARGE[place : place + 100_000]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/admin/prefixes", "/nowhere"])
def test_413_reaches_clients_that_send_everything_first(address, path):
    for content in (LARGE, pieces()):
        response = httpx.post(f"{address}{path}", content=content, timeout=60)
        assert response.status_code == 413
        assert response.json()["error"]["message"] == "the body is larger than 2000000 bytes"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(f"{address}{path}", LARGE), timeout=60)
    assert error.value.code == 413
    assert b"larger than 2000000 bytes" in error.value.read()


@pytest.mark.slow
def test_413_reaches_a_plain_socket(address):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces()) + b"0\r\n\r\n"
    for sent in (head("/", f"Content-Length: {len(LARGE)}") + LARGE, head("/", "Transfer-Encoding: chunked") + chunks):
        with connected(address) as connection:
            connection.sendall(sent)
            response = rest_of(connection)
        assert response.startswith(b"HTTP/1.1 413 ")
        assert response.endswith(b'"code":"body_too_large"}}')
    with connected(address) as connection:  # one that asks first sends nothing
        connection.sendall(head("/", f"Content-Length: {len(LARGE)}", "Expect: 100-continue"))
        assert rest_of(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("flags", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]])
def test_413_reaches_curl(address, tmp_path, flags):
    (tmp_path / "large").write_bytes(LARGE)
    command = ["curl", "-sS", "-w", "%{http_code}", "--data-binary", f"@{tmp_path / 'large'}", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("413"), done.stderr
    assert "larger than 2000000 bytes" in done.stdout


@pytest.mark.slow
def test_other_refusals_reach_clients_with_large_bodies_too(address):
    for headers, status in (({"origin": "https://evil.example"}, 403), ({"host": "evil.example"}, 403)):
        assert httpx.post(address, content=b"x" * 1_900_000, headers=headers, timeout=60).status_code == status


@pytest.mark.slow
def test_a_length_that_is_none(address):
    for length in ("9" * 30, "-1", "x", "1e3"):
        with connected(address) as connection:
            connection.sendall(head("/", f"Content-Length: {length}", "Connection: close") + b"{}")
            assert rest_of(connection).split()[1] in (b"400", b"413"), length


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[" + b"[]," * 99_000 + b"[]]", False),
        (b"[" + b"[]," * 120_000 + b"[]]", True),
        (b"[" * (MAX_VALUES + 1), True),
        (b'{"a":0,' * 70_000, True),
        (b'{"a":"' + b"[{,:" * 90_000 + b'"}', False),
        (b'{"a":"' + b'\\"[,' * 150_000 + b'"}', False),
        (b'{"a":"' + b"\\\\" * 100 + b'":' + b"[" * 250_000, True),
        (b'"' + b'\\"' * 900_000, False),  # a string that does not end is gone through once
        (b'"' + b"[" * 900_000 + b"\\", False),
        (b"," * 900_000, True),
    ],
)
def test_values_are_counted_without_those_in_texts(data, expected):
    assert has_too_many_values(data) is expected


# ---- clients that leave


@pytest.mark.slow
def test_clients_that_leave_are_no_traceback():
    """In the middle of the head, the body, the answer; in good order and not. The server's log ends with it."""
    question = json.dumps({"prompt": "你好"} | ENDLESS).encode()
    stream = {"model": BASE, "messages": [{"role": "user", "content": "x"}], "stream": True} | ENDLESS
    stream = json.dumps(stream).encode()
    as_json = "Content-Type: application/json"
    sent = [
        b"POST / HT",
        head("/", "Content-Length: 100") + b"{",
        head("/", "Transfer-Encoding: chunked") + b"5\r\n{",
        head("/", f"Content-Length: {len(LARGE)}") + LARGE[:3_000_000],
        head("/", f"Content-Length: {len(question)}") + question,
        head("/v1/chat/completions", as_json, f"Content-Length: {len(stream)}") + stream,
        head("/v1/chat/completions", as_json, "Content-Length: 100") + b"{",
        head("/admin/prefixes", "Content-Length: 100") + b"{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody who speaks TLS
    ]
    with running("serve") as (address, process):
        for reset in (False, True):
            for data in sent:
                with connected(address) as connection:
                    if reset:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.sendall(data)
                    time.sleep(0.1)
        wait_for(lambda: httpx.get(f"{address}/health").json()["running"] == 0)
        process.terminate()
        log = process.stderr.read()
    assert "Traceback" not in log
    assert "Exception" not in log


# ---- /health beside all of it


def heavy_bodies():
    """Each of nearly as many bytes as a body may have, of the kinds that once held up everybody."""
    texts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 8000
    replies = [{"role": "assistant", "content": "长" * 60}] * 7900
    bodies = [
        ("/", {"prompt": "你好世界" * 158_000}),
        ("/", {"prompt": "the quick, brown: [fox] " * 79_000}),
        ("/", {"prompt": "x", "history": [["a", "b"]] * 150_000}),
        ("/", {"prompt": "x", "history": [["a" * 200, "b" * 200]] * 4000, "max_length": 300, "max_new_tokens": 1}),
        ("/", {"prompt": "x", "stop": [str(number) for number in range(130_000)]}),
        ("/", {f"{number:x}": 0 for number in range(60_000)}),
        ("/", {"prompt": "x", "metadata": [[]] * 90_000, "max_new_tokens": 1}),
        ("/v1/chat/completions", {"model": BASE, "messages": texts}),
        ("/v1/chat/completions", {"model": BASE, "messages": [*replies, texts[0]], "max_length": 300, "max_tokens": 1}),
        ("/v1/chat/completions", {"model": BASE, "messages": [{"role": "user", "content": "问" * 600_000}]}),
    ]
    return [(path, json.dumps(body, ensure_ascii=False)) for path, body in bodies]


SENDER = """
import http.client, json, sys, threading
host, port, file = sys.argv[1:]
def send(path, body):
    connection = http.client.HTTPConnection(host, int(port), timeout=200)
    connection.request("POST", path, body.encode(), {"content-type": "application/json"})
    statuses.append(connection.getresponse().status)
statuses, bodies = [], json.load(open(file, encoding="utf-8"))
threads = [threading.Thread(target=send, args=one) for one in bodies * 4 + bodies[:1] * 40]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(statuses))
"""


@pytest.mark.slow
def test_health_beside_heavy_requests(tmp_path):
    """Many of all kinds at a time, from a process of their own; every single /health is answered."""
    bodies = heavy_bodies()
    (tmp_path / "bodies").write_text(json.dumps(bodies), encoding="utf-8")
    with running("serve", "--max_waiting", 500) as (address, _), httpx.Client(base_url=address, timeout=30) as client:
        where = re.fullmatch(r"http://(.+):(\d+)", address).groups()
        command = [sys.executable, "-c", SENDER, *where, str(tmp_path / "bodies")]
        times = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
            while sender.poll() is None:
                began = time.perf_counter()
                assert client.get("/health").json()["status"] == "ok"
                times.append(time.perf_counter() - began)
                time.sleep(0.005)
            statuses = json.loads(sender.stdout.read())
    assert len(statuses) == 4 * len(bodies) + 40
    assert set(statuses) == {200, 400, 413, 422}
    print(f"/health {len(times)} times: median {statistics.median(times):.3f} s, most {max(times):.3f} s")
    assert statistics.median(times) < 0.2
    assert sorted(times)[len(times) * 9 // 10] < 0.2
