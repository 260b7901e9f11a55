"""What a stranger can make of the page: real servers, with and without a login, and whatever can be sent to them."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import threading
from types import SimpleNamespace

import httpx
import pytest
from echo_page import echo_page
from gradio_client import Client
from servers import running, wait_for
from starlette.testclient import TestClient

import ptuning
from ptuning.edges.http.app import create_app
from ptuning.edges.web import queue_limits
from ptuning.edges.web.page_app import create_page_app, mounted
from ptuning.engine.engine import Engine
from ptuning.serving.chat_service import ChatService
from ptuning.serving.prefix_store import PrefixStore

pytestmark = pytest.mark.slow

BASE, CANARY = "tiny-chatglm", "what no stranger reads"
JSON = {"content-type": "application/json"}
SETTINGS = [BASE, False, BASE, 2048, 0.7, 0, "tuned", 0, 50, 0.3, 0, 0]  # greedy, and <eop> never comes
NEEDED = {  # of gradio's routes, those that a page and gradio's own client use
    "/", "/assets/{path:path}", "/config", "/favicon.ico", "/gradio_api/app_id", "/gradio_api/cancel",
    "/gradio_api/heartbeat/{session_hash}", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/queue/join",
    "/gradio_api/run/{api_name}", "/login", "/logout", "/manifest.json", "/robots.txt", "/static/{path:path}", "/theme.css",
}  # fmt: skip
WITHOUT_LOGIN = {"/", "/assets/{path:path}", "/favicon.ico", "/login", "/logout", "/manifest.json", "/robots.txt",
                 "/static/{path:path}", "/theme.css"}  # fmt: skip


@pytest.fixture(scope="module")
def asked_elsewhere():
    """Its address, and what was asked there: nothing, if the server can be made to ask nobody."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CANARY.encode())

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{opened.server_port}/inside", seen
        opened.shutdown()


@pytest.fixture(scope="module", params=["open", "login"])
def server(request, tmp_path_factory):
    top = tmp_path_factory.mktemp(request.param)
    (top / "canary.txt").write_text(CANARY, encoding="utf-8")
    (top / "output" / "run").mkdir(parents=True)
    (top / "output" / "run" / "report.html").write_text("<h1>a report</h1>", encoding="utf-8")
    (top / "tmp").mkdir()
    login = ["--auth", "me:secret", "--api_key", "k"] if request.param == "login" else []
    flags = ["--report_root", top / "output", *login]
    places = {"GRADIO_TEMP_DIR": str(top / "cache"), "TMPDIR": str(top / "tmp")}
    with running("web", *flags, **places) as (address, process), httpx.Client(base_url=address, timeout=30) as client:
        if request.param == "login":
            assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
        events = client.get("/config").json()["dependencies"]
        yield SimpleNamespace(
            address=address, process=process, client=client, top=top, login=request.param == "login", events=events,
            number={one["api_name"]: one["id"] for one in events},
        )  # fmt: skip


def call(server, name, data, session="s", client=None, **more):
    body = {"fn_index": server.number[name], "data": data, "session_hash": session} | more
    return (client or server.client).post("/gradio_api/run/predict", json=body)


def join(server, question="你好", session="s", client=None):
    body = {"fn_index": server.number["send"], "data": [question, *SETTINGS], "session_hash": session}
    return (client or server.client).post("/gradio_api/queue/join", json=body)


def copies(server):
    """Files that the server has made of what it should not have read."""
    places = [path for name in ("cache", "tmp") for path in (server.top / name).rglob("*") if path.is_file()]
    return [path for path in places if CANARY in path.read_text(encoding="utf-8", errors="replace")]


def disguises(path, url):
    """A file as gradio knows it, and whatever it might take for one."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [
        file, {"path": url, "meta": {"_type": "gradio.FileData"}}, {"path": "", "url": url}, {"path": path}, [file],
        [[{"a": [file]}]], {"__type__": "update", "value": file}, {"value": path, "meta": "x", "path": path},
        {"text": "x", "files": [file]}, {"component": "image", "value": {"image": "x"}, "props": {}},
        {"path": path, "meta": {"_type": "gradio.FileData"}, "is_stream": True, "orig_name": "x"},
    ]  # fmt: skip


# ---- files


def test_no_function_gives_a_file_away_or_asks_elsewhere(server, asked_elsewhere):
    url, seen = asked_elsewhere
    sent = 0
    for event in server.events:
        ways = [("/gradio_api/run/predict", True), ("/gradio_api/queue/join", True)]
        ways += [(f"/gradio_api/{way}/{event['api_name']}", False) for way in ("run", "api", "call", "call/v2")]
        count = len(event["inputs"])
        for place in range(count or 1):
            for file in disguises(str(server.top / "canary.txt"), url)[: None if place == 0 else 1]:
                data = [None] * count
                data[place : place + 1] = [file]
                for path, by_number in ways[: None if place == 0 else 2]:
                    body = {"data": data, "session_hash": "s"} | ({"fn_index": event["id"]} if by_number else {})
                    answer = server.client.post(path, json=body)
                    assert answer.status_code in (400, 404), (path, body, answer.text)
                    assert CANARY not in answer.text
                    sent += 1
    assert sent > 400
    assert copies(server) == []
    assert seen == []


@pytest.mark.parametrize("where", ["event_data", "trigger_id", "event_id", "oauth_token", "anything", "session_hash"])
def test_a_file_beside_the_data_is_refused_too(server, asked_elsewhere, where):
    for file in disguises(str(server.top / "canary.txt"), asked_elsewhere[0]):
        if "path" not in str(file):
            continue  # something else with parts, which the data alone must not hold
        for path in ("/gradio_api/run/predict", "/gradio_api/queue/join"):
            body = {"fn_index": server.number["open_report"], "data": ["run"], "session_hash": "s", where: file}
            assert server.client.post(path, json=body).status_code == 400
    assert copies(server) == []


@pytest.mark.parametrize("path", [
    "file={}", "file/{}", "/file={}", "file%3D{}", "file=%2e%2e/{}", "proxy={}", "proxy=https://a.hf.space/{}",
    "component_server", "upload", "upload_progress?upload_id=x", "process_recording", "startup-events",
    "stream/s/1/2/playlist-file", "deep_link?session_hash=s", "vibe-code", "run-history/connect",
    "custom_component/x/client/y/style.css", "mcp/sse",
])  # fmt: skip
def test_files_uploads_and_other_peoples_pages_are_not_served(server, asked_elsewhere, path):
    url, seen = asked_elsewhere
    for named in (server.top / "canary.txt", url, "http://example.com/x"):
        for method in ("GET", "POST", "HEAD"):
            files = {"files": CANARY.encode()} if method == "POST" else None
            answer = server.client.request(method, f"/gradio_api/{path.format(named)}", files=files)
            assert answer.status_code == 404, (method, path)
            assert CANARY not in answer.text
    assert copies(server) == []
    assert seen == []


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """gradio's application as the page has it, for what only its inside shows."""
    engine = Engine(ptuning.load_model(BASE, device="cpu"), ptuning.load_tokenizer(BASE), max_rows=1)
    service = ChatService(engine, PrefixStore(engine, BASE)).start()
    yield create_page_app(service, create_app(service).state.metrics, report_root=tmp_path_factory.mktemp("reports"))
    service.stop()


def test_gradios_own_check_holds_without_the_guard(page, tmp_path, monkeypatch, asked_elsewhere, capfd):
    """The second lock: nothing of ours stands before gradio here."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    (tmp_path / "canary.txt").write_text(CANARY, encoding="utf-8")
    url, seen = asked_elsewhere
    with TestClient(page):  # starts and ends gradio
        alone = TestClient(mounted(page), raise_server_exceptions=False)
        events = [one for one in alone.get("/config").json()["dependencies"] if one["inputs"]]
        for event in events:
            for path in (str(tmp_path / "canary.txt"), url, "/etc/passwd"):
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                body = {"fn_index": event["id"], "data": [file] + [None] * (len(event["inputs"]) - 1), "session_hash": "s"}
                answer = alone.post("/gradio_api/run/predict", json=body)
                assert (answer.status_code, answer.json()) == (500, {"error": None})
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert seen == []
    assert "it was not uploaded by a user" in capfd.readouterr().err


# ---- what there is of gradio


def routes_of(app):
    """(method, path) of everything that gradio serves, apart from the description that the API has as well."""
    routes = []
    for route in app.routes:
        inside = getattr(route, "original_router", None)  # of a newer FastAPI, which does not copy routes
        routes += [(method, route.path) for method in getattr(route, "methods", ())] if inside is None else routes_of(inside)
    return [(method, path) for method, path in routes if path != "/openapi.json"]


def filled_in(path):
    return re.sub(r"\{[^}]+\}", "x", path)


def test_of_gradio_only_what_the_page_needs_is_there(page, server):
    routes = routes_of(mounted(page))
    closed = {path for _, path in routes} - NEEDED
    assert len(closed) > 30  # or gradio is another one than these tests were written for
    assert {path for _, path in routes} >= NEEDED
    for method, path in routes:
        if path in closed:
            assert server.client.request(method, filled_in(path)).status_code in (404, 405), (method, path)
    for path in NEEDED:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            if path == "/":
                continue  # the API's
            assert server.client.request(method, filled_in(path)).status_code == 405, (method, path)


def test_nothing_but_the_login_is_there_without_one(page, server):
    if not server.login:
        assert httpx.get(f"{server.address}/config").status_code == 200
        return
    for cookies in ({}, {"access-token-x": "x"}, {"access-token-unsecure-": "None"}):
        with httpx.Client(base_url=server.address, cookies=cookies) as stranger:
            for method, path in routes_of(mounted(page)):
                answer = stranger.request(method, filled_in(path))
                expected = (200, 302, 400, 404, 405, 500) if path in WITHOUT_LOGIN else (401, 404, 405)
                assert answer.status_code in expected, (method, path)
                assert answer.status_code != 500
            assert "components" not in stranger.get("/").text.partition('"auth_required":true')[0]
            for number in range(40):
                body = {"fn_index": number, "data": [], "session_hash": "s"}
                for path in ("run/predict", "queue/join", "run/clear", "cancel"):
                    assert stranger.post(f"/gradio_api/{path}", json=body).status_code == 401


@pytest.mark.parametrize("path", [
    "/assets/../../../routes.py", "/assets/..%2f..%2f..%2froutes.py", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py",
    "/static//etc/passwd", "/static/%5c..%5c..%5croutes.py", "/assets/x%00.js", "/svelte/x", "/static/.hidden",
])  # fmt: skip
def test_nothing_beside_the_pages_own_files(server, path):
    text = raw(server, f"GET {path} HTTP/1.1\r\nHost: {name_of(server)}\r\nConnection: close\r\n\r\n")
    assert text.startswith("HTTP/1.1 404")


def test_what_the_page_needs_is_there(server):
    assert "ptuning" in server.client.get("/?page=x&deep_link=x&__theme=dark").text
    assert server.client.get("/config?page=x&deep_link=../x").json()["title"].startswith("ptuning")
    assert "a report" in call(server, "open_report", ["run"]).json()["data"][0]
    named = server.client.post("/gradio_api/run/open_report", json={"data": ["run"]})
    assert "a report" in named.json()["data"][0]


def test_gradios_own_client_logs_in_and_talks(server):
    auth = ("me", "secret") if server.login else None
    with contextlib.closing(Client(server.address, auth=auth, verbose=False)) as client:
        chat = client.predict("你好", *SETTINGS[:7], 3, *SETTINGS[8:], api_name="/send")[0]["value"]
        assert [message["role"] for message in chat] == ["user", "assistant"]


# ---- bodies


def raw(server, text):
    """What comes back for bytes that no client would send."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as opened:
        opened.sendall(text.encode("latin-1"))
        received = b""
        while piece := opened.recv(65536):
            received += piece
    return received.decode("latin-1")


def name_of(server):
    """As a Host header has it."""
    return server.address.removeprefix("http://")


BODIES = {
    "nested": ('{"data": ' + "[" * 5000, "nested too deeply"),
    "nested objects": ('{"a":' * 5000, "nested too deeply"),
    "not a number": ('{"data": [NaN], "fn_index": 0}', "question: a number was given; allowed is a string"),
    "endless": ('{"data": ["x", null, null, null, 1e999]}', "needed are 13"),
    "digits": ('{"data": [' + "9" * 5000 + "]}", "a number with too many digits"),
    "twice": ('{"data": ["run"], "data": [{"path": "/etc/passwd"}]}', "'data' stands twice"),
    "no JSON": ("{", "cannot be read as JSON"),
    "empty": ("", "cannot be read as JSON"),
    "a list": ("[]", "not a JSON object"),
    "no data": ("{}", "data: null was given; allowed is a list"),
    "data a text": ('{"data": "run"}', "data: a string was given"),
    "too few": ('{"data": []}', "data: 0 values were given; needed are 1 (report)"),
    "too many": ('{"data": ["run", "run"]}', "data: 2 values were given"),
    "a number": ('{"data": [3]}', "report: a number was given; allowed is a string"),
    "true": ('{"data": [true]}', "report: true or false was given"),
    "bytes": (b'{"data": ["\xff"]}', "not UTF-8"),
    "gbk": ('{"data": ["报告"]}'.encode("gbk"), "not UTF-8"),
    "utf-16": ('{"data": ["run"]}'.encode("utf-16"), "not UTF-8"),
    "session": ('{"data": ["run"], "session_hash": "../../x"}', "session_hash"),
    "long session": (json.dumps({"data": ["run"], "session_hash": "s" * 999}), "session_hash"),
    "session a number": ('{"data": ["run"], "session_hash": 3}', "session_hash"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_cannot_be_is_one_clear_error(server, name):
    body, message = BODIES[name]
    path = "/gradio_api/run/predict" if "fn_index" in str(body) else "/gradio_api/run/open_report"
    path = "/gradio_api/run/send" if name == "endless" else path
    answer = server.client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert len(answer.text) < 1000
    assert "Traceback" not in answer.text


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
FILE = b'--x\r\nContent-Disposition: form-data; name="username"; filename="f"\r\n\r\nme\r\n--x--\r\n'


@pytest.mark.parametrize(("headers", "body"), [
    ({}, b""), (JSON, b'{"username": "me"}'), (MULTIPART, b"x"), (MULTIPART, FILE), (MULTIPART, FILE[:40]),
    ({"content-type": "multipart/form-data"}, b"x"), ({"content-type": "multipart/form-data; boundary=" + "x" * 300}, b"x"),
    ({"content-type": "application/x-www-form-urlencoded"}, b"username=me&password="),
    ({"content-type": "application/x-www-form-urlencoded"}, b"a=1&" * 100_000),
    ({"content-type": "application/x-www-form-urlencoded"}, b"username=%ff%00&password=" + "密".encode("gbk")),
])  # fmt: skip
def test_a_login_that_is_none_is_one_clear_error(server, headers, body):
    answer = httpx.post(f"{server.address}/login", content=body, headers=headers)
    assert answer.status_code == (400 if server.login else 404)
    assert isinstance(answer.json()["detail"], str)
    assert len(answer.text) < 500


@pytest.mark.parametrize("number", [-1, 99, 10**30, "0", True, 1.5, [0], None])
def test_a_function_that_is_none(server, number):
    for path in ("run/predict", "run/nothing", "queue/join", "cancel"):
        body = {"fn_index": number, "data": [], "session_hash": "s", "event_id": "0" * 32}
        answer = server.client.post(f"/gradio_api/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (404, "the page has no such function")


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, JSON | {"content-encoding": "gzip"}])
def test_a_body_of_another_kind_is_named(server, headers):
    answer = server.client.post("/gradio_api/run/open_report", content=b'{"data": ["run"]}', headers=headers)
    assert answer.status_code == 415
    assert "Content-" in answer.json()["error"]


@pytest.mark.parametrize("place", range(13))
def test_every_setting_of_a_question_has_its_kind(server, place):
    """Numbers where a text belongs, and so on: refused by name before anything is asked."""
    good = ["你好", *SETTINGS]
    wrong = {str: [3, True, 1e300], bool: [3, "x", 1.0], int: ["3", True], float: ["0.5", False]}[type(good[place])]
    for value in [*wrong, [], {}, [good[place]], {"value": good[place]}, *(["x"] if good[place] == "tuned" else [])]:
        data = [*good[:place], value, *good[place + 1 :]]
        for path in ("run/send", "queue/join"):
            body = {"fn_index": server.number["send"], "data": data, "session_hash": "s"}
            answer = server.client.post(f"/gradio_api/{path}", json=body)
            assert answer.status_code == 400, (value, answer.text)
            assert " was given; allowed " in answer.json()["error"]


HOSTS = ["[", "a b", "a:99999", "[::::]", "", "1.2.3.999", "a/b", "a@b", "x" * 300, "xn--\xff", "a\x7f"]


@pytest.mark.parametrize("host", HOSTS)
def test_an_address_that_is_none_is_no_traceback(server, host):
    for path in ("/", "/theme.css", "/gradio_api/heartbeat/abc"):
        text = raw(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert text.startswith("HTTP/1.1 4"), text[:100]
    for name in ("X-Forwarded-Host", "X-Gradio-Server"):
        text = raw(server, f"GET / HTTP/1.1\r\nHost: {name_of(server)}\r\n{name}: {host}\r\nConnection: close\r\n\r\n")
        assert text.startswith("HTTP/1.1 200"), text[:100]
        assert server.address in text


def test_another_origin_is_told_nothing(server):
    evil = {"origin": "http://evil.example"}
    for headers in (evil, {"origin": "null"}, evil | {"host": "a.example"}):
        answer = server.client.get("/theme.css", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


# ---- sessions


def asked_by(server, client, session):
    """What the server takes the session of a client to hold."""
    shown = call(server, "compare", [False], session, client).json()["data"]
    return [message["content"][0]["text"] for message in shown[3]["value"]]


@pytest.fixture
def browsers(server):
    """Two that have looked at the page, and know each other's sessions."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(2):
            client = stack.enter_context(httpx.Client(base_url=server.address, timeout=30))
            if server.login:
                client.post("/login", data={"username": "me", "password": "secret"})
            client.get("/")
            clients.append(client)
        yield clients


def test_a_session_is_that_of_the_browser_that_opened_it(server, browsers):
    mine, other = browsers
    assert mine.cookies["ptuning_visitor"] != other.cookies["ptuning_visitor"]
    event = join(server, "mine", "session-1", mine).json()["event_id"]
    assert other.get("/gradio_api/queue/data?session_hash=session-1").status_code == 404
    body = {"session_hash": "session-1", "fn_index": server.number["send"], "event_id": event}
    assert other.post("/gradio_api/cancel", json=body).status_code == 404
    assert call(server, "stop", [], "session-1", other).status_code == 200
    with mine.stream("GET", "/gradio_api/queue/data?session_hash=session-1") as answer:
        lines = answer.iter_lines()
        wait_for(lambda: "process_generating" in next(lines))
        assert running_now(server) == 1
        call(server, "stop", [], "session-1", mine)
        assert "process_completed" in "".join(lines)
    assert asked_by(server, mine, "session-1")[0] == "mine"
    assert asked_by(server, other, "session-1") == []
    call(server, "clear", [], "session-1", other)
    assert asked_by(server, mine, "session-1")[0] == "mine"
    cookie = mine.get("/theme.css").headers.get("set-cookie")
    assert cookie is None


def test_the_cookie_is_for_this_page_alone(server):
    with httpx.Client(base_url=server.address) as fresh:
        cookie = fresh.get("/").headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
        assert "set-cookie" not in fresh.get("/").headers


def running_now(server):
    return httpx.get(f"{server.address}/health").json()["running"]


def test_an_answer_that_nobody_reads_is_given_up_and_ends_nobody_elses(tmp_path, monkeypatch):
    """Strangers ask and do not listen, more of them than there is room for, while somebody reads a long answer."""
    monkeypatch.setattr(queue_limits, "MAX_WAITING_SESSIONS", 12)
    monkeypatch.setattr(queue_limits, "CROWDED_UNREAD_SECONDS", 0.0)
    long = "一二三四五六七八九十" * 1000
    with echo_page(tmp_path) as address, httpx.Client(base_url=address, timeout=30) as client:
        events = client.get("/config").json()["dependencies"]
        server = SimpleNamespace(number={one["api_name"]: one["id"] for one in events}, client=client)
        assert join(server, long, "listener").status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=listener") as answer:
            lines = answer.iter_lines()
            wait_for(lambda: "process_generating" in next(lines))
            with httpx.Client(base_url=address, timeout=30) as strangers:
                statuses = {join(server, long, f"stranger-{number}", strangers).status_code for number in range(60)}
                assert statuses <= {200, 503}
                assert 200 in statuses
            assert "process_completed" in "".join(lines)
        assert asked_by(server, client, "listener") == [long, long]


def test_the_row_of_an_answer_that_nobody_reads_is_free_again(page, monkeypatch):
    engine = page.state.page.service.engine
    with TestClient(page) as client:
        events = client.get("/config").json()["dependencies"]
        server = SimpleNamespace(number={one["api_name"]: one["id"] for one in events}, client=client)
        join(server, "你好", "asked-and-gone")
        wait_for(lambda: engine.running)
        monkeypatch.setattr(queue_limits, "UNREAD_SECONDS", -1.0)
        join(server, "", "somebody-else")
        wait_for(lambda: engine.idle)


def test_who_does_not_read_is_not_answered_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(queue_limits, "MAX_UNREAD", 20)
    with echo_page(tmp_path) as address, httpx.Client(base_url=address, timeout=30) as client:
        events = client.get("/config").json()["dependencies"]
        server = SimpleNamespace(number={one["api_name"]: one["id"] for one in events}, client=client)
        wait_for(lambda: join(server, "x").status_code == 429)
        assert join(server, "x", "another").status_code == 200


# ---- the log


def test_a_fault_of_our_own_is_still_told(page, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr("ptuning.edges.web.page.reports_below", broken)
    with TestClient(page) as client:
        answer = client.post("/gradio_api/run/open_report", json={"data": [None]})
    assert (answer.status_code, answer.json()) == (500, {"error": None})
    log = capfd.readouterr().err
    assert "Traceback" in log
    assert "a fault of our own" in log


def test_the_log_holds_nothing_of_all_this(server):
    """The last test of a server: whatever strangers and clumsy clients have sent above."""
    server.process.send_signal(signal.SIGTERM)
    _, log = server.process.communicate(timeout=30)
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if "Invalid HTTP request" not in line]
    assert len(lines) < 10, log
    assert os.waitstatus_to_exitcode(0) == server.process.returncode
