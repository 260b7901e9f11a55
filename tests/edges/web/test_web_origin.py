"""The page and other sites: its own requests pass, those of strangers do not, and a link to it opens it."""

import contextlib
import functools
import http.server
import re
import threading

import httpx
import pytest
from gradio_client import Client
from servers import running

from scripts.chromium import chromium, missing, wait_for

pytestmark = pytest.mark.slow

LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "accept": "text/html"}


@pytest.fixture(scope="module")
def address():
    with running("web", "--request_timeout", 5, "--allowed_hosts", "chat.example.com") as (address, _):
        yield address


def clear_of(address):
    """The page's function that forgets a conversation, as its own script calls it."""
    functions = httpx.get(f"{address}/config").json()["dependencies"]
    number = next(function["id"] for function in functions if function["api_name"] == "clear")
    return {"fn_index": number, "data": [], "session_hash": "s"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_pages_own_requests_pass(address, host):
    own = address.replace("127.0.0.1", host)
    headers = {"origin": own, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    with httpx.Client(base_url=own, headers=headers, timeout=30) as client:
        page = client.get("/", headers={"accept": "text/html"})
        assert "ptuning" in page.text
        assert client.get("/theme.css").status_code == 200
        assert client.post("/gradio_api/run/clear", json=clear_of(address)).status_code == 200
        assert client.post("/", json={"prompt": "你好", "max_new_tokens": 1}).status_code == 200
    with contextlib.closing(Client(own, verbose=False)) as client:  # a program names no origin
        client.predict(api_name="/clear")


def test_the_page_behind_a_proxy(address):
    headers = {"host": "chat.example.com", "origin": "https://chat.example.com"}
    assert httpx.post(f"{address}/gradio_api/run/clear", json=clear_of(address), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/run/clear", "/gradio_api/queue/join", "/gradio_api/upload",
                                  "/gradio_api/heartbeat/s", "/login", "/v1/models", "/theme.css", "/docs"])  # fmt: skip
def test_strangers_reach_nothing_of_the_page(address, path):
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"},
                    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
                    {"origin": address.replace("127.0.0.1", "localhost")}):  # fmt: skip
        for method in ("GET", "POST", "OPTIONS"):
            assert httpx.request(method, f"{address}{path}", headers=headers).status_code == 403


def test_a_link_opens_the_page_and_a_frame_does_not(address):
    assert "ptuning" in httpx.get(address, headers=LINK).text
    assert httpx.head(address, headers=LINK).status_code == 200
    assert httpx.get(address, headers=LINK | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert httpx.post(address, headers=LINK | {"origin": "http://evil.example"}, json={"prompt": "x"}).status_code == 403


def test_large_bodies_are_refused_in_time(address):
    for path in ("/gradio_api/queue/join", "/gradio_api/run/clear", "/"):
        assert httpx.post(f"{address}{path}", content=b"x" * 10_000_000, timeout=60).status_code == 413
        values = httpx.post(f"{address}{path}", content=b"[" + b"[]," * 300_000 + b"[]]", timeout=60)
        assert values.status_code == 413
        assert "values" in values.json()["error"]["message"]


STRANGER = """<!doctype html><title>waiting</title><a id=link href="ADDRESS">a link</a><script>
const asked = [
  fetch("ADDRESS", {method: "POST", mode: "no-cors", body: '{"prompt": "x", "max_new_tokens": 1}'}),
  fetch("ADDRESS", {method: "POST", headers: {"content-type": "application/json"}, body: '{"prompt": "x"}'}),
  fetch("ADDRESS/v1/models"), fetch("ADDRESS/health", {mode: "no-cors"}),
];
Promise.allSettled(asked).then(found => document.title = found.map(one => one.status).join(" "));
</script>"""


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")
def test_a_strangers_page_in_a_browser(address, tmp_path):
    """It may send what it likes and be heard by nobody; its link opens the page."""

    def requests():
        text = httpx.get(f"{address}/metrics").text
        return float(re.search(r"^ptuning_request_seconds_count (\S+)$", text, re.M)[1])

    (tmp_path / "index.html").write_text(STRANGER.replace("ADDRESS", address), encoding="utf-8")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    before = requests()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as stranger, chromium() as driver:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        driver.get(f"http://localhost:{stranger.server_port}/")
        wait_for(lambda: driver.title != "waiting", "the stranger's requests")
        assert driver.title == "fulfilled rejected rejected fulfilled"  # no-cors: sent, and nothing is to be seen of it
        assert requests() == before
        driver.find_element("id", "link").click()
        wait_for(lambda: driver.find_elements("css selector", "#question textarea"), "the page behind the link")
        stranger.shutdown()
