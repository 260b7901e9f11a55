"""Which pages may call the server: every header that tells, one by one, and then a real server with browsers' headers."""

import json
import re
import socket

import httpx
import pytest
from servers import running

from ptuning.core.errors import UserError
from ptuning.edges.http.errors import ApiError
from ptuning.edges.http.hosts import allowed_host, allowed_origin, parse_host
from ptuning.edges.http.middleware.origin import OriginMiddleware
from ptuning.edges.serve import ServerArguments

LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def origin_middleware(**settings):
    return OriginMiddleware(None, **({"own_host": "127.0.0.1", "loopback": True} | settings))


def status(middleware, headers, method="POST", kind="http"):
    """What a request gets: None where it is let in."""
    pairs = [(name.encode(), value.encode()) for name, value in (headers.items() if isinstance(headers, dict) else headers)]
    scope = {"type": kind, "method": method, "path": "/", "headers": pairs, "server": ("127.0.0.1", 8000)}
    try:
        middleware.check(scope)
    except ApiError as error:
        return error.status
    return None


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LOCALHOST:8000", "localhost.", "localhost.:8000", "127.0.0.1", "127.0.0.1:9999",
        "127.8.9.10:1", "127.1", "0x7f.1", "2130706433", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80",
        "localhost:",
    ],
)  # fmt: skip
def test_the_servers_own_names(host):
    assert status(origin_middleware(), {"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "localhost8000", "10.0.0.1",
        "128.0.0.1", "0.0.0.0:8000", "[::2]", "xn--localhost-x", "_", "127.0.0.1-evil.example", "1.localhost",
    ],
)  # fmt: skip
def test_names_of_strangers(host):
    assert status(origin_middleware(), {"host": host}) == 403
    assert status(origin_middleware(loopback=False), {"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "a b", "localhost:8000:1", "localhost:x", "localhost:99999", "user@localhost", "localhost/", "[::1", "::1",
        "[localhost]", "localhost,evil.example", "http://localhost", "é", "a" * 300, ".", "999.1.1.1", "[::1]x", "-",
        "localhost\\",
    ],
)  # fmt: skip
def test_what_is_no_host(host):
    pairs = [(b"host", host.encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": pairs}
    for loopback in (True, False):
        with pytest.raises(ApiError) as error:
            origin_middleware(loopback=loopback).check(scope)
        assert error.value.status == 400


def test_a_host_is_named_once():
    assert status(origin_middleware(), {}) == 400
    assert status(origin_middleware(), [("host", "localhost"), ("host", "localhost")]) == 400
    assert status(origin_middleware(), [("Host", "localhost"), ("host", "evil.example")]) == 400
    assert status(origin_middleware(loopback=False), {}) is None
    assert status(origin_middleware(loopback=False), {"origin": "http://evil.example"}) == 403


def test_a_proxys_word_is_believed_for_known_names_only():
    middleware = origin_middleware(allowed_hosts=["chat.example.com"])
    for forwarded, kept in (
        ("chat.example.com", True), ("localhost:8000", True), ("chat.example.com, inner", True), ("evil.example", False),
        ("evil.example, chat.example.com", False), ("", False), ("a b", False),
    ):  # fmt: skip
        scope = {"type": "http", "headers": [(b"host", b"localhost"), (b"X-Forwarded-Host", forwarded.encode())]}
        assert (len(middleware.without_foreign_proxy(scope)["headers"]) == 2) is kept, forwarded


def test_further_names():
    middleware = origin_middleware(allowed_hosts=["chat.example.com", "Second.example:8443"], cors_origins=["https://third.example"])
    for host in ("chat.example.com", "CHAT.example.com.:80", "second.example:8443", "second.example", "third.example"):
        assert status(middleware, {"host": host}) is None, host
    assert status(middleware, {"host": "sub.chat.example.com"}) == 403
    assert status(origin_middleware(allowed_hosts=["*"]), {"host": "evil.example"}) is None
    assert status(origin_middleware(own_host="box"), {"host": "box:80"}) is None
    # on other addresses the names are checked where some were given; the server's own address is always one
    middleware = origin_middleware(loopback=False, own_host="0.0.0.0", allowed_hosts=["chat.example.com"])
    assert status(middleware, {"host": "evil.example"}) == 403
    reached_by = {"192.0.2.7": "192.0.2.7:80", "2001:db8::7": "[2001:DB8:0::7]", "::ffff:192.0.2.7": "192.0.2.7"}
    for reached, host in reached_by.items():
        headers = [(b"host", host.encode())]
        middleware.check({"type": "http", "method": "GET", "path": "/", "headers": headers, "server": (reached, 80)})


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("localhost:8000", "http://localhost:8000", None),
        ("localhost:8000", "HTTP://LOCALHOST:8000", None),
        ("[::1]:8000", "http://[::1]:8000", None),
        ("localhost", "http://localhost", None),
        ("localhost:80", "http://localhost", None),
        ("localhost", "https://localhost", None),  # a proxy in front has the certificate
        ("localhost:443", "https://localhost", None),
        ("localhost:8000", "http://localhost:3000", 403),
        ("localhost:8000", "http://localhost", 403),
        ("localhost:8000", "https://localhost", 403),
        ("localhost", "http://localhost:8000", 403),
        ("localhost:8000", "http://127.0.0.1:8000", 403),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "http://localhost:8000.evil.example", 403),
        ("localhost:8000", "http://localhost:8000@evil.example", 403),
        ("localhost:8000", "http://localhost:8000/", 403),
        ("localhost:8000", "null", 403),
        ("localhost:8000", "NULL", 403),
        ("localhost:8000", "", 403),
        ("localhost:8000", "file://", 403),
        ("localhost:8000", "chrome-extension://abc", 403),
        ("localhost:8000", "localhost:8000", 403),
        ("localhost:8000", "http://localhost:8000 http://localhost:8000", 403),
    ],
)
def test_origins(host, origin, expected):
    for middleware in (origin_middleware(), origin_middleware(loopback=False)):
        for method in ("GET", "POST", "OPTIONS"):
            assert status(middleware, {"host": host, "origin": origin}, method) == expected
        assert status(middleware, {"host": host, "origin": origin}, "GET", "websocket") == expected
    headers = {"host": host, "origin": origin, "sec-fetch-site": "cross-site"}
    assert status(origin_middleware(cors_origins=["*"]), headers) is None


def test_two_origins_are_none():
    pairs = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")]
    assert status(origin_middleware(), pairs) == 403


def test_origins_that_were_named():
    origins = ["https://example.com", "http://localhost:3000", "null"]
    middleware = origin_middleware(cors_origins=origins, allowed_hosts=["chat.example.com"])
    for origin in ("https://example.com", "http://localhost:3000", "null", "https://chat.example.com"):
        for site in ("cross-site", "same-site"):
            expected = 403 if (origin, site) == ("https://chat.example.com", "cross-site") else None
            assert status(middleware, {"host": "localhost", "origin": origin, "sec-fetch-site": site}) == expected
    for origin in ("http://example.com", "https://example.com:444", "https://sub.example.com", "https://chat.example.com:8443"):
        assert status(middleware, {"host": "localhost", "origin": origin}) == 403


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {}, None),
        ("GET", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, None),
        ("GET", {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, None),
        ("GET", LINK, None),
        ("HEAD", LINK, None),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None),
        ("POST", LINK, 403),
        ("GET", LINK | {"sec-fetch-dest": "iframe"}, 403),
        ("GET", LINK | {"sec-fetch-dest": "object"}, 403),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
        ("GET", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", {"sec-fetch-site": "Cross-Site "}, 403),
        ("POST", {"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
    ],
)
def test_what_a_browser_says_of_a_request(method, headers, expected):
    assert status(origin_middleware(), {"host": "localhost"} | headers, method) == expected
    assert status(origin_middleware(loopback=False), {"host": "localhost"} | headers, method) == expected


def test_settings():
    settings = ServerArguments(port=1, cors_origins=["https://Example.com/", "http://localhost:80", "*", "null"])
    assert settings.cors_origins == ["https://example.com", "http://localhost", "*", "null"]
    assert allowed_origin("http://[::1]:3000") == "http://[::1]:3000"
    assert parse_host(allowed_host("聊天.example"))
    for wrong in ("example.com", "https://example.com/path", "ftp://example.com", "", "https://", "https://a b"):
        with pytest.raises(UserError, match="--cors_origins"):
            ServerArguments(port=1, cors_origins=[wrong])
    for wrong in ("http://example.com", "", "a b", "example.com/path", "a:b", "\udc80"):
        with pytest.raises(UserError, match="--allowed_hosts"):
            ServerArguments(port=1, allowed_hosts=[wrong])


# ---- a real server


@pytest.fixture(scope="module")
def address():
    flags = ("--allowed_hosts", "chat.example.com", "--cors_origins", "https://friend.example")
    with running("serve", *flags) as (address, _):
        yield address


BODY = {"prompt": "你好", "max_new_tokens": 1}


def ask(address, **headers):
    """As the page of somebody does it: a text, for which a browser asks nobody's leave."""
    return httpx.post(address, content=json.dumps(BODY), headers={"content-type": "text/plain"} | headers)


@pytest.mark.slow
def test_programs_and_the_own_page_go_on_working(address):
    own = address.removeprefix("http://")
    assert ask(address).status_code == 200
    assert ask(address, origin=address).status_code == 200
    assert ask(address, host="chat.example.com", origin="https://chat.example.com").status_code == 200
    assert ask(address, host=own.replace("127.0.0.1", "localhost")).status_code == 200


@pytest.mark.slow
def test_strangers_pages_and_names_are_refused_on_every_path(address):
    paths = ("/", "/v1/models", "/health", "/metrics", "/docs", "/admin/prefixes", "/nowhere", "/v1/chat/completions")
    for path in paths:
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"},
                        {"sec-fetch-site": "cross-site"}):  # fmt: skip
            for method in ("GET", "POST", "OPTIONS"):
                response = httpx.request(method, f"{address}{path}", headers=headers)
                assert response.status_code == 403, (method, path, headers)
                assert response.json()["error"]["type"] == "permission_error"
                assert "access-control-allow-origin" not in response.headers
    assert "--allowed_hosts evil.example" in ask(address, host="evil.example").json()["error"]["message"]
    assert "--cors_origins https://evil.example" in ask(address, origin="https://evil.example").json()["error"]["message"]


@pytest.mark.slow
def test_a_page_that_was_named_may_ask_first_and_read_the_answer(address):
    friend = {"origin": "https://friend.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, authorization"}
    first = httpx.options(f"{address}/v1/chat/completions", headers=friend | asked)
    assert first.status_code == 200
    assert first.headers["access-control-allow-origin"] == "https://friend.example"
    assert ask(address, **friend).headers["access-control-allow-origin"] == "https://friend.example"


@pytest.mark.slow
def test_requests_that_httpx_would_not_send(address):
    host, port = re.fullmatch(r"http://(.+):(\d+)", address).groups()

    def sent(text):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(text)
            return connection.recv(4000).split(b"\r\n")[0]

    assert sent(b"GET /health HTTP/1.0\r\n\r\n").split()[1] == b"200"  # a simple probe's; every browser names a host
    assert sent(b"GET /health HTTP/1.1\r\n\r\n").split()[1] == b"400"
    assert sent(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n").split()[1] == b"400"
    assert sent(b"GET /health HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n").split()[1] == b"400"
    assert sent(b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n").split()[1] == b"400"
    assert sent(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n").split()[1] == b"200"
    upgrade = b"GET /x HTTP/1.1\r\nHost: evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert sent(upgrade + key).split()[1] == b"403"
