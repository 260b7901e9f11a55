"""Answers over HTTP that are empty, and settings that no answer can be made with, beside answers that run."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from servers import running

pytestmark = pytest.mark.slow

LONG = {"prompt": "讲个故事", "temperature": 0, "repetition_penalty": 0.3, "max_new_tokens": 150}
OUTSIDE = {
    "top_k": [2**63, 2**31, -1, 10**30], "seed": [2**63, -1, 10**40], "no_repeat_ngram_size": [2**63, 2**31, 101],
    "repetition_penalty": [1e-45, 1e30, 1e39, 1e-3], "temperature": [1e-45, 1e39, 1e300], "top_p": [1e39, 0, -1e-45],
    "stop": [["x"] * 100_000, ["x" * 100_000]],
}  # fmt: skip


@pytest.fixture(scope="module")
def address():
    with running("serve", "--max_rows", 4) as (address, _):
        yield address


def post(address, path, **body):
    if path.startswith("/v1"):
        body |= {"model": "tiny-chatglm", "messages": [{"role": "user", "content": body.pop("prompt")}]}
    return httpx.post(f"{address}{path}", content=json.dumps(body), headers={"content-type": "application/json"}, timeout=60)


def test_a_stop_text_at_the_very_start_gives_an_empty_answer(address):
    asked = {"prompt": "你是谁", "temperature": 0}
    whole = post(address, "/", **asked, max_new_tokens=20).json()["response"]
    for stop in (whole[0], whole[:4]):
        response = post(address, "/", **asked, stop=[stop]).json()
        assert (response["response"], response["history"], response["status"]) == ("", [["你是谁", ""]], 200)
        response = post(address, "/v1/chat/completions", **asked, stop=[stop]).json()["choices"][0]
        assert (response["message"]["content"], response["finish_reason"]) == ("", "stop")
        lines = post(address, "/v1/chat/completions", **asked, stop=stop, stream=True).text.splitlines()
        chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == ""
        assert chunks[-1]["finish_reason"] == "stop"
        assert lines[-2] == "data: [DONE]"


def test_settings_out_of_range_end_nobodys_answer(address):
    """Every one of them at both routes, while four answers run and others wait."""
    expected = post(address, "/", **LONG).json()["response"]
    with ThreadPoolExecutor(8) as clients:
        running_answers = [clients.submit(post, address, "/", **LONG) for _ in range(8)]
        for name, value in ((name, value) for name, values in OUTSIDE.items() for value in values):
            for path, limit in (("/", "max_new_tokens"), ("/v1/chat/completions", "max_tokens")):
                response = post(address, path, prompt="a", **{limit: 3, name: value})
                assert response.status_code in (400, 422), (name, value, path)
                assert name in response.json()["error"]["message"]
        answers = [one.result() for one in running_answers]
    assert [(one.status_code, one.json()["response"]) for one in answers] == [(200, expected)] * 8
    health = httpx.get(f"{address}/health").json()
    assert (health["status"], health["running"], health["waiting"]) == ("ok", 0, 0)
