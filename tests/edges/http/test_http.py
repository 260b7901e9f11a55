"""The server as its clients meet it: a real process, real sockets, the real openai client, and clients that misbehave."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefixes import random_encoder, save_random_prefix
from servers import running, wait_for

import ptuning

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
KEY, ADMIN = "a key", "another key"
ENDLESS = {"temperature": 0, "repetition_penalty": 0.3}  # what stands there already is preferred: <eop> never comes
LENGTHS = {"a": 4, "b": 4, "c": 7}
QUESTIONS = ["你好", "今天天气怎么样？", "你是谁", "类型#裙*颜色#红", "hello, what is this?", "讲个故事", "1+1=?", "再见"]


@pytest.fixture(scope="module")
def parts():
    return ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm")


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    top = tmp_path_factory.mktemp("prefixes")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        save_random_prefix(top / name, parts[0].config, length, seed, base_model="tiny-chatglm")
    return top


@pytest.fixture(scope="module")
def server(folder):
    """Open to all on this machine, with three prefixes."""
    with running("serve", "--ptuning_checkpoint", folder, "--max_waiting", 100, fresh=True) as (address, process):
        yield address, process


@pytest.fixture(scope="module")
def address(server):
    return server[0]


@pytest.fixture(scope="module")
def strict(folder):
    """With keys, one row, one place to wait, and small bodies."""
    flags = ("--ptuning_checkpoint", f"a={folder / 'a'}", "--max_rows", 1, "--max_waiting", 1, "--max_body_bytes", 5000)
    with running("serve", *flags, "--checkpoint_root", folder, API_KEY=KEY, API_ADMIN_KEY=ADMIN) as (address, _):
        yield httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def solo(parts, folder):
    """What ``model.chat`` answers, greedily, to one question with one prefix."""
    model, tokenizer = parts
    known = {}

    def answer(name, query, history, tokens):
        key = (name, query, str(history), tokens)
        if key not in known:
            if name in LENGTHS:
                model.attach_prefix(random_encoder(model.config, LENGTHS[name], list(LENGTHS).index(name)))
            known[key] = model.chat(tokenizer, query, history, max_new_tokens=tokens, do_sample=False)[0]
            model.detach_prefix()
        return known[key]

    return answer


def messages_of(query, history=()):
    pairs = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in history]
    return [*(message for pair in pairs for message in pair), {"role": "user", "content": query}]


def metric(address, name, headers=None):
    text = httpx.get(f"{address}/metrics", headers=headers).text
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)[1])


# ---- the published route


def test_the_published_route_field_for_field(address, solo):
    history = [["你好", "你好！"]]
    body = {"prompt": "你是谁", "history": history, "max_length": 60, "top_p": 0.7, "temperature": 0}
    answer = httpx.post(address, json=body).json()
    assert set(answer) == {"response", "history", "status", "time"}
    assert answer["status"] == 200
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", answer["time"])
    assert answer["history"] == [*history, ["你是谁", answer["response"]]]
    again = httpx.post(address, content=json.dumps(body).encode()).json()  # no content type: as curl -d and old scripts
    assert again["response"] == answer["response"]


def test_temperature_0_is_greedy_and_the_default_is_the_first_prefix(address, solo):
    body = {"prompt": "你好", "history": [], "temperature": 0, "max_new_tokens": 8}
    assert httpx.post(address, json=body).json()["response"] == solo("a", "你好", [], 8)
    base = httpx.post(address, json=body | {"model": "tiny-chatglm"}).json()
    assert base["response"] == solo("tiny-chatglm", "你好", [], 8)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "max_length": 0}, "max_length"),
        ({"prompt": "x", "history": [["q"]]}, "history.0"),
        ({"prompt": "x", "history": "q"}, "history"),
    ],
)
def test_a_wrong_field_is_named(address, body, field):
    response = httpx.post(address, content=json.dumps(body))
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith(field)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 5000, b"null", b'{"prompt": "x", "temperature": NaN}']
)
def test_bodies_that_are_no_json_object(address, content):
    assert httpx.post(address, content=content).status_code == 422


def test_half_a_character_in_a_text_does_no_harm(address):
    body = json.dumps({"prompt": "a\ud800", "history": [["\udfff", "x"]], "max_new_tokens": 2, "stop": "\ud83d"})
    response = httpx.post(address, content=body)
    assert response.status_code == 200
    assert response.json()["history"][1][0] == "a\ufffd"


def test_a_long_history_loses_its_oldest_rounds_and_says_so(address):
    history = [[f"问题{number}", "回答。" * 40] for number in range(40)]
    response = httpx.post(address, json={"prompt": "你好", "history": history, "max_new_tokens": 2}, timeout=60).json()
    assert 0 < response["dropped_rounds"] < 40
    assert len(response["history"]) == 41
    too_long = httpx.post(address, json={"prompt": "长" * 5000})
    assert too_long.status_code == 400
    assert "the question has" in too_long.json()["error"]["message"]


# ---- OpenAI's routes with its own client


def test_models_by_openai_client(client):
    assert [one.id for one in client.models.list()] == ["tiny-chatglm", "a", "b", "c"]
    assert client.models.retrieve("b").id == "b"
    with pytest.raises(openai.NotFoundError, match="no model or prefix 'nobody'; there are tiny-chatglm, a, b, c"):
        client.models.retrieve("nobody")


def test_a_completion_by_openai_client(client, solo):
    history = [("你好", "你好！")]
    response = client.chat.completions.create(
        model="b", messages=messages_of("你是谁", history), temperature=0, max_tokens=6, user="me"
    )
    assert response.choices[0].message.content == solo("b", "你是谁", history, 6)
    assert response.choices[0].message.role == "assistant"
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens
    assert response.choices[0].finish_reason == ("length" if response.usage.completion_tokens == 6 else "stop")
    assert response.model == "b"


def test_a_stream_by_openai_client(client, solo):
    stream = client.chat.completions.create(
        model="tiny-chatglm", messages=messages_of("今天天气怎么样？"), temperature=0, max_tokens=30, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == solo("tiny-chatglm", "今天天气怎么样？", [], 30)
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] in (["stop"], ["length"])
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens > 0
    assert len(chunks) > 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_in_done(address):
    body = {"model": "a", "messages": messages_of("你好"), "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1])


def test_stop_texts_seeds_and_choices(client, solo):
    asked = {"model": "tiny-chatglm", "messages": messages_of("讲个故事"), "max_tokens": 40}
    whole = solo("tiny-chatglm", "讲个故事", [], 40)
    stop = whole[len(whole) // 2]
    response = client.chat.completions.create(**asked, temperature=0, stop=[stop, "不会出现"])
    assert response.choices[0].message.content == whole[: whole.index(stop)]
    assert response.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**asked, temperature=0, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole[: whole.index(stop)]
    asked |= {"temperature": 2, "top_p": 1, "max_tokens": 10}
    three = client.chat.completions.create(**asked, seed=3, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in three.choices}) > 1
    second = client.chat.completions.create(**asked, seed=4)
    assert second.choices[0].message.content == three.choices[1].message.content
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, seed=3, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in three.choices]


@pytest.mark.parametrize(
    ("messages", "query", "history"),
    [
        ([("system", "s"), ("user", "q")], "s\nq", []),
        ([("user", "a"), ("user", "b")], "a\nb", []),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")], "d", [("a", "b\nc")]),
        ([("assistant", "hi"), ("user", "q")], "q", [("", "hi")]),
        ([("user", "q"), ("system", "s"), ("assistant", "a"), ("user", "r")], "s\nr", [("q", "a")]),
    ],
)
def test_odd_histories_are_used_not_dropped(client, solo, messages, query, history):
    """As one prompt: equal to the greedy answer to that question after those rounds."""
    sent = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    response = client.chat.completions.create(model="tiny-chatglm", messages=sent, temperature=0, max_tokens=5)
    assert response.choices[0].message.content == solo("tiny-chatglm", query, history, 5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages.1.role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"model": None}, "model"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 1}, "presence_penalty"),
    ],
)
def test_errors_have_openais_form_and_name_the_field(address, change, field):
    body = {"model": "a", "messages": messages_of("x"), "max_tokens": 2} | change
    response = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert response.json()["error"]["type"] == "invalid_request_error"


# ---- many at once


def test_64_clients_get_what_each_would_get_alone(address, solo):
    """Prefixes, lengths and settings mixed, streamed or not; /health answers meanwhile."""
    rng = random.Random(1)
    asked = [
        (rng.choice(["tiny-chatglm", *LENGTHS]), rng.choice(QUESTIONS), rng.randint(1, 20), number % 4 == 0, number % 3 == 0)
        for number in range(64)
    ]

    async def ask(http, name, query, tokens, sampled, stream):
        body = {"model": name, "messages": messages_of(query), "max_tokens": tokens, "stream": stream}
        body |= {"temperature": 1.5, "seed": tokens} if sampled else {"temperature": 0}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        if not stream:
            return response.json()["choices"][0]["message"]["content"]
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    async def all_of_them():
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=80)) as http:
            tasks = [asyncio.create_task(ask(http, *one)) for one in asked]
            busy, waits = 0, 0
            while not all(task.done() for task in tasks):
                health = (await http.get("/health")).json()
                busy, waits = max(busy, health["running"]), waits + 1
                await asyncio.sleep(0.02)
            return [await task for task in tasks], busy, waits

    answers, busy, waits = asyncio.run(all_of_them())
    for (name, query, tokens, sampled, _), text in zip(asked, answers, strict=True):
        if not sampled:
            assert text == solo(name, query, [], tokens), (name, query, tokens)
    assert busy > 8
    assert waits > 3


def test_memory_does_not_grow(server):
    """500 short requests after the first 100: a generous bound on the process's resident memory."""
    address, process = server
    status = Path(f"/proc/{process.pid}/status")
    if not status.is_file():
        pytest.skip("needs /proc")

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024

    async def many(count):
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            gate = asyncio.Semaphore(24)

            async def one(number):
                async with gate:
                    body = {"model": list(LENGTHS)[number % 3], "messages": messages_of(QUESTIONS[number % 8])}
                    body |= {"max_tokens": 3, "stream": number % 2 == 0}
                    response = await http.post("/v1/chat/completions", json=body)
                    assert response.status_code == 200

            await asyncio.gather(*map(one, range(count)))

    asyncio.run(many(100))
    before = resident()
    asyncio.run(many(500))
    assert resident() - before < 40  # MiB


def test_clients_that_go_away_leave_no_running_row(address):
    cancelled = metric(address, 'ptuning_requests_finished_total{reason="cancelled"}')
    body = {"model": "b", "messages": messages_of("x")} | ENDLESS
    with contextlib.ExitStack() as stack:
        for number in range(6):
            http = stack.enter_context(httpx.Client(base_url=address, timeout=30))
            sent = body | {"stream": True, "seed": number}
            lines = stack.enter_context(http.stream("POST", "/v1/chat/completions", json=sent)).iter_lines()
            stack.callback(next, lines)  # read a little before it is closed
    for timeout in (0.3, 0.3):  # and two that wait for a whole answer
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/chat/completions", json=body | {"seed": 9}, timeout=timeout)
    wait_for(lambda: httpx.get(f"{address}/health").json()["running"] == 0)
    assert metric(address, 'ptuning_requests_finished_total{reason="cancelled"}') >= cancelled + 8


# ---- keys, limits, prefixes that come and go


def test_keys(strict):
    assert httpx.get(f"{strict.base_url}/health").status_code == 200
    for sent in (None, "Bearer wrong", f"Basic {KEY}", "Bearer ключ"):
        headers = {} if sent is None else {"Authorization": sent.encode()}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            response = httpx.get(f"{strict.base_url}{path}", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
    assert strict.get("/v1/models").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{strict.base_url}/v1", api_key="wrong", max_retries=0).models.list()


def test_large_bodies(strict):
    assert strict.post("/", json={"prompt": "x" * 6000}).status_code == 413

    def pieces():  # without a length in front
        for _ in range(100):
            yield b"x" * 100

    with contextlib.suppress(httpx.TransportError):  # the server may close while the rest is on its way
        assert strict.post("/", content=pieces()).status_code == 413
    assert strict.get("/health").status_code == 200


def test_a_full_queue_answers_429_and_recovers(strict):
    body = {"model": "a", "messages": messages_of("x"), "stream": True} | ENDLESS
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(strict.stream("POST", "/v1/chat/completions", json=body))
        lines = first.iter_lines()  # kept: httpx closes the connection when its reader is forgotten
        while '"content":"' not in (line := next(lines)) or '"content":""' in line:
            pass
        stack.enter_context(strict.stream("POST", "/v1/chat/completions", json=body))
        refused = strict.post("/v1/chat/completions", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert strict.get("/health").json()["waiting"] == 1
    wait_for(lambda: strict.get("/health").json()["running"] == 0)
    assert strict.post("/", json={"prompt": "你好", "max_new_tokens": 2}).status_code == 200


def test_prefixes_are_loaded_and_unloaded_while_it_runs(strict, solo, folder):
    admin = {"Authorization": f"Bearer {ADMIN}"}
    body = {"name": "新", "path": "b"}
    assert strict.post("/admin/prefixes", json=body).status_code == 401
    response = strict.post("/admin/prefixes", json=body, headers=admin)
    assert response.status_code == 201, response.text
    assert response.json()["pre_seq_len"] == 4
    answer = strict.post("/", json={"prompt": "你好", "model": "新", "temperature": 0, "max_new_tokens": 6}).json()
    assert answer["response"] == solo("b", "你好", [], 6)
    assert strict.post("/admin/prefixes", json=body, headers=admin).status_code == 409
    for name, path, field in (("x", "../..", "path"), ("x", "/etc", "path"), ("x", "nowhere", "path"), ("../x", "b", None)):
        refused = strict.post("/admin/prefixes", json={"name": name, "path": path}, headers=admin)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == field
    assert strict.delete("/admin/prefixes/新", headers=admin).json() == {"unloaded": "新"}
    assert strict.delete("/admin/prefixes/新", headers=admin).status_code == 404
    assert strict.delete("/admin/prefixes/tiny-chatglm", headers=admin).status_code == 400
    assert strict.post("/", json={"prompt": "你好", "model": "新"}).status_code == 404


def test_without_an_admin_key_nobody_changes_prefixes(address):
    assert httpx.get(f"{address}/admin/prefixes").status_code == 403


def test_no_page_of_another_origin_is_allowed(address):
    response = httpx.get(f"{address}/v1/models", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in response.headers


# ---- beginning and end


def test_sigterm_ends_streams_in_order(folder):
    """Listening to everybody without a key is said; a running stream is cut and closed, and the exit code is 0."""
    flags = ("--host", "0.0.0.0", "--shutdown_seconds", 1, "--ptuning_checkpoint", folder / "a")
    with running("serve", *flags, fresh=True) as (address, process):
        assert any("WARNING" in line and "without a key" in line for line in [*process.log, process.stderr.readline()])
        body = {"model": "a", "messages": messages_of("x"), "stream": True} | ENDLESS
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=30) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] in ("length", "stop")
        assert process.wait(20) == 0


def test_an_address_that_is_taken_is_refused_at_once(address):
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "ptuning", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert f"--port {port}: cannot listen there" in done.stderr


# ---- whatever else somebody sends

NUMBERS = st.one_of(st.integers(), st.floats())
JUNK = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.lists(st.integers(), max_size=2))
TEXT = st.text(max_size=12)
MESSAGE = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.one_of(TEXT, JUNK)}
    ),
    JUNK,
)
SHARED = {
    "temperature": st.one_of(st.floats(0, 5), JUNK),
    "top_p": st.one_of(st.floats(0, 1), JUNK),
    "top_k": st.one_of(st.integers(-1, 3000), JUNK),
    "seed": JUNK,
    "stop": st.one_of(TEXT, st.lists(TEXT, max_size=3), JUNK),
    "repetition_penalty": st.one_of(st.floats(0.5, 2), JUNK),
    "no_repeat_ngram_size": st.one_of(st.integers(0, 5), JUNK),
}
OPENAI_BODY = st.fixed_dictionaries(
    {
        "model": st.one_of(st.sampled_from(["a", "tiny-chatglm"]), TEXT),
        "messages": st.lists(MESSAGE, max_size=3).flatmap(
            lambda messages: st.sampled_from([messages, [*messages, *messages_of("x")]])
        ),
        # Never absent, null or large: an answer at temperature 5 would go on to the end of the context.
        "max_tokens": st.sampled_from([2, 2, 2, 2, 0, -1, 2.5, "2", "x", [], True]),
    },
    optional={**SHARED, "stream": JUNK, "n": st.one_of(st.integers(-1, 3), JUNK), "stream_options": JUNK},
)
PUBLISHED_BODY = st.fixed_dictionaries(
    {"prompt": st.one_of(TEXT, JUNK), "max_new_tokens": st.just(2)},
    optional={**SHARED, "history": st.one_of(st.lists(st.lists(TEXT, max_size=3), max_size=3), JUNK), "max_length": JUNK},
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_that_is_sent_gives_a_500(address, data):
    """The routes of the OpenAPI schema, with bodies that are right, nearly right, and wrong."""
    path, bodies = data.draw(st.sampled_from([("/v1/chat/completions", OPENAI_BODY), ("/", PUBLISHED_BODY)]))
    sent = json.dumps(data.draw(bodies)).encode()
    response = httpx.post(f"{address}{path}", content=sent, headers={"content-type": "application/json"}, timeout=60)
    assert response.status_code in (200, 400, 404, 422), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    elif path == "/":
        assert response.json()["status"] == 200


def test_every_route_is_in_the_schema(address):
    schema = httpx.get(f"{address}/openapi.json").json()
    assert {"/", "/v1/models", "/v1/chat/completions", "/health", "/metrics", "/admin/prefixes"} <= set(schema["paths"])
    body = schema["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["prompt"]


def test_figures_for_prometheus(address):
    text = httpx.get(f"{address}/metrics").text
    for name in ("ptuning_requests_running", "ptuning_generated_tokens_total", "ptuning_time_to_first_token_seconds_bucket"):
        assert re.search(rf"^{name}", text, re.M), name
