"""API and page at one address: who answers what, keys and passwords, and what a browser is told. No answer is made here."""

import re

import pytest
from starlette.testclient import TestClient

import ptuning
from ptuning.edges.http.app import create_app
from ptuning.edges.web.dispatcher import PathDispatcher, first_segment
from ptuning.edges.web.page_app import create_page_app
from ptuning.engine.engine import Engine
from ptuning.serving.chat_service import ChatService
from ptuning.serving.prefix_store import PrefixStore

HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def service():
    engine = Engine(ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm"), max_rows=1)
    running = ChatService(engine, PrefixStore(engine, "tiny-chatglm")).start()
    yield running
    running.stop()


def both(service, tmp_path, auth=None, **keys):
    api = create_app(service, max_bytes=3000, **keys)
    page = create_page_app(service, api.state.metrics, report_root=tmp_path, auth=auth, max_bytes=3000)
    return PathDispatcher(api, page)


@pytest.fixture(scope="module")
def open_client(service, tmp_path_factory):
    with TestClient(both(service, tmp_path_factory.mktemp("reports"))) as client:
        yield client


@pytest.fixture(scope="module")
def closed_client(service, tmp_path_factory):
    """The API wants a key, the page a password."""
    app = both(service, tmp_path_factory.mktemp("reports"), auth=("me", "a password"), api_key="k", admin_key="a")
    with TestClient(app, follow_redirects=False) as client:
        yield client


def test_page_and_api_share_the_address(open_client):
    page = open_client.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert "ptuning · ChatGLM-6B" in page.text
    assert open_client.get("/health").json()["status"] == "ok"
    assert [one["id"] for one in open_client.get("/v1/models").json()["data"]] == ["tiny-chatglm"]
    published = open_client.post("/", json={"prompt": "你好", "temperature": 0, "max_new_tokens": 2})
    assert published.json()["status"] == 200
    assert open_client.get("/config").json()["title"] == "ptuning · ChatGLM-6B"
    assert open_client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert open_client.delete("/").json()["error"]["message"] == "Method Not Allowed"


def test_no_route_of_the_page_is_taken_by_the_api(open_client):
    from gradio.routes import INTERNAL_ROUTES

    app = open_client.app
    assert not app.api_segments & set(INTERNAL_ROUTES)
    assert {"v1", "health", "metrics", "admin", "docs", "openapi.json"} <= app.api_segments
    assert first_segment("//v1/models") == "v1"


@pytest.mark.parametrize("path", ["/v1/models", "/v1", "/v1/x", "/metrics", "/admin/prefixes", "/docs", "/openapi.json"])
def test_the_api_wants_its_key(closed_client, path):
    assert closed_client.get(path).status_code == 401


@pytest.mark.parametrize(("method", "path", "api"), [
    ("GET", "/", False), ("HEAD", "", False), ("POST", "/", True), ("DELETE", "/", True), ("OPTIONS", "/", True),
    ("GET", "//v1/models", True), ("GET", "/v1", True), ("GET", "/v12", False), ("POST", "/gradio_api/queue/join", False),
])  # fmt: skip
def test_who_answers(open_client, method, path, api):
    assert open_client.app.is_for_api(method, path) is api


def test_keys_and_passwords_are_of_different_doors(closed_client):
    assert closed_client.post("/", json={"prompt": "x"}).status_code == 401
    with_key = closed_client.get("/v1/models", headers={"authorization": "Bearer k"})
    assert with_key.status_code == 200
    assert closed_client.get("/health").status_code == 200
    assert closed_client.get("/config", headers={"authorization": "Bearer k"}).status_code == 401
    assert closed_client.post("/gradio_api/queue/join", json={}).status_code == 401
    assert "auth_required" in closed_client.get("/", headers=HTML).text
    assert closed_client.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert closed_client.post("/login", data={"username": "me", "password": "a password"}).status_code == 200
    assert closed_client.get("/config").status_code == 200
    closed_client.cookies.clear()


def test_only_answers_are_streamed(open_client):
    """gradio's client ends its one connection with the last stream, and what is asked in that moment is never heard of."""
    events = open_client.get("/config").json()["dependencies"]
    streamed = [one for one in events if one["queue"] and one["targets"][0][1] != "unload"]
    assert [one["api_name"] for one in streamed] == ["send", "retry"]
    assert [one["trigger_mode"] for one in streamed] == ["multiple", "multiple"]  # one that is lost must not block the next


def test_bodies_are_limited_at_both(open_client):
    large = {"prompt": "x" * 4000}
    assert open_client.post("/", json=large).status_code == 413
    assert open_client.post("/gradio_api/queue/join", json=large).status_code == 413
    assert open_client.post("/gradio_api/upload", files={"files": b"x" * 4000}).status_code == 413


def test_no_file_of_the_machine_is_served(open_client):
    for path in ("/gradio_api/file=README.md", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/static/../../x.py"):
        assert open_client.get(path).status_code in (403, 404), path


def test_scripts_have_a_number_that_is_new_each_time(open_client):
    first, second = (open_client.get("/", headers=HTML) for _ in range(2))
    policy = first.headers["content-security-policy"]
    nonce = re.search(r"script-src 'self' 'unsafe-eval' 'nonce-([\w-]+)'", policy)[1]
    assert len(nonce) > 20
    assert nonce not in second.headers["content-security-policy"]
    tags = re.findall(r"<script[^>]*>", first.text)
    assert len(tags) > 3
    assert all(f'nonce="{nonce}"' in tag for tag in tags)
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert first.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host(open_client):
    """In what a browser would fetch: sources of scripts, styles and pictures, and the style sheet."""
    page = open_client.get("/", headers=HTML).text
    fetched = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", page)
    assert fetched
    assert not [one for one in fetched if "//" in one]
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", open_client.get("/theme.css").text)
    config = open_client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("space_id")
