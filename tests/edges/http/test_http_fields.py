"""What stands in a body: fields that are followed, that may stand there, and that are refused by name; never a 500."""

import gzip
import json
import re

import httpx
import openai
import pytest
from servers import running

BASE = "tiny-chatglm"
ROUTES = ("/", "/v1/chat/completions")
MESSAGES = [{"role": "user", "content": "你是谁"}]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def address():
    with running("serve") as (address, _):
        yield address


def body_of(path, **more):
    """A greedy question of a few tokens, in the form of a route."""
    asked = {"prompt": "你是谁"} if path == "/" else {"model": BASE, "messages": MESSAGES}
    return asked | {"temperature": 0, "max_new_tokens": 3} | more


def written(body):
    """As JSON, with escapes where nothing else can say it."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(body).encode()


def post(address, path, body, **headers):
    content = body if isinstance(body, bytes) else written(body)
    return httpx.post(f"{address}{path}", content=content, headers=JSON | headers, timeout=60)


def text_of(response):
    assert response.status_code == 200, response.text
    value = response.json()
    return value["response"] if "response" in value else value["choices"][0]["message"]["content"]


def refused(response, path, status=None):
    """The error of a refused request: what was wrong, without anything of the server's inside."""
    assert response.status_code == (status or (422 if path == "/" else 400)), response.text
    error = response.json()["error"]
    inside = r"function-|whole_characters|pydantic|validator|ValidationError|Input should|Traceback|<class|set_int_max"
    assert not re.search(inside, response.text)
    assert error["message"]
    return error


# ---- fields that are followed


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_limits_by_all_of_their_names(address, path):
    whole = text_of(post(address, path, body_of(path, max_new_tokens=12)))
    cut = text_of(post(address, path, body_of(path)))
    assert whole.startswith(cut)
    assert len(cut) < len(whole)
    for name in ("max_tokens", "max_completion_tokens") if path != "/" else ():
        assert text_of(post(address, path, body_of(path, max_new_tokens=None, **{name: 3}))) == cut
    assert len(text_of(post(address, path, body_of(path, max_new_tokens=None, max_length=12)))) < len(whole)
    assert text_of(post(address, path, body_of(path, temperature=1.9, do_sample=False))) == cut
    assert text_of(post(address, path, body_of(path, temperature=None, do_sample=True, top_k=1))) == cut


@pytest.mark.slow
def test_one_limit_is_enough(address):
    path = ROUTES[1]
    assert text_of(post(address, path, body_of(path, max_tokens=3, max_completion_tokens=3)))
    error = refused(post(address, path, body_of(path, max_tokens=5)), path)
    assert error["message"] == "max_tokens 5, max_new_tokens 3: they mean the same; give one of them"


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_at_the_very_start_gives_an_empty_answer(address, path, stream):
    whole = text_of(post(address, path, body_of(path)))
    body = body_of(path, stop=[whole[0]])
    if path == "/":
        assert text_of(post(address, path, body)) == ""
        return
    if not stream:
        choice = post(address, path, body).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
        return
    lines = post(address, path, body | {"stream": True}).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == ""
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.slow
def test_content_in_parts_is_read_as_one_text(address):
    path = ROUTES[1]
    parts = [{"type": "text", "text": "你是"}, {"type": "text", "text": "谁", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": parts}]
    assert text_of(post(address, path, body_of(path, messages=messages))) == text_of(post(address, path, body_of(path)))


# ---- what may stand there


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_what_changes_nothing_is_let_through(address, path):
    neutral = {
        "n": 1, "stream": False, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "top_logprobs": 0,
        "logit_bias": {}, "tools": [], "tool_choice": "auto", "functions": [], "function_call": "none", "num_beams": 1,
        "min_p": 0, "best_of": 1, "response_format": {"type": "text"}, "length_penalty": 1.0, "early_stopping": False,
        "user": "me", "metadata": {"a": [1]}, "store": True, "service_tier": "auto", "parallel_tool_calls": True,
        "prompt_cache_key": "x", "safety_identifier": "y", "top_logprobs ": None, "num_return_sequences": 1,
    }  # fmt: skip
    expected = text_of(post(address, path, body_of(path)))
    assert text_of(post(address, path, body_of(path, **neutral))) == expected
    nothing = dict.fromkeys([*neutral, "stop", "seed", "top_k", "top_p", "whatever"])
    assert text_of(post(address, path, body_of(path, **nothing))) == expected


@pytest.mark.slow
def test_the_servers_own_answer_may_be_sent_back(address):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    first = client.chat.completions.create(model=BASE, messages=MESSAGES, max_tokens=3)
    messages = [*MESSAGES, first.choices[0].message, first.choices[0].message.model_dump(), *MESSAGES]
    response = client.chat.completions.create(
        model=BASE, messages=messages, max_tokens=2, stream=True, user="me", metadata={"a": "b"}, store=False, n=1,
        stream_options={"include_usage": True, "include_obfuscation": False}, presence_penalty=0,
    )  # fmt: skip
    assert list(response)[-1].usage.completion_tokens > 0


# ---- what is refused, by its name


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_beams", 4, "not supported"),
        ("min_p", 0.1, "not supported"),
        ("logprobs", True, "not supported"),
        ("top_logprobs", 5, "not supported"),
        ("logit_bias", {"5": 100}, "not supported"),
        ("presence_penalty", 0.5, "repetition_penalty is there"),
        ("frequency_penalty", -1, "repetition_penalty is there"),
        ("best_of", 2, "not supported"),
        ("tools", [{}], "not supported"),
        ("tool_choice", "required", "not supported"),
        ("response_format", {"type": "json_object"}, "not supported"),
        ("reasoning_effort", "high", "not supported"),
        ("ignore_eos", True, "not supported"),
        ("temprature", 0.5, "did you mean temperature?"),
        ("Temperature", 0.5, "did you mean temperature?"),
        ("top-k", 5, "did you mean top_k?"),
        ("max_new_token", 5, "did you mean max_new_tokens?"),
        ("repeat_penalty", 1.1, "did you mean repetition_penalty?"),
        ("zzz", 0, "no such field"),
        ("", 0, "no such field"),
        ("\ud800", 0, "no such field"),
        ("x" * 100_000, 0, "no such field"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(address, path, name, value, message):
    error = refused(post(address, path, body_of(path, **{name: value})), path)
    assert message in error["message"]
    assert error["param"] == (name.replace("\ud800", "\ufffd")[:60] or None)
    assert len(error["message"]) < 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("max_tokens", 3, "did you mean max_new_tokens?"), ("stream", True, "not supported"), ("n", 2, "not supported"),
     ("messages", MESSAGES, "no such field"), ("max_completion_tokens", 3, "did you mean")],
)  # fmt: skip
def test_openais_names_on_the_published_route(address, name, value, message):
    error = refused(post(address, "/", body_of("/", **{name: value})), "/")
    assert (error["param"], message in error["message"]) == (name, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"messages": [MESSAGES[0] | {"weight": 1}]}, "messages.0.weight", "no such field"),
        ({"messages": [MESSAGES[0] | {"contents": "x"}]}, "messages.0.contents", "did you mean content?"),
        ({"messages": [MESSAGES[0] | {"name": "me"}]}, "messages.0.name", "not supported"),
        ({"messages": [MESSAGES[0] | {"tool_calls": [{}]}]}, "messages.0.tool_calls", "not supported"),
        ({"messages": [{"role": "user", "content": {"type": "text", "text": "x"}}]}, "messages.0.content", "list of parts"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "must be a string or a list of parts"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0", "must be an object"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "is required"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "weight": 1}]}]},
         "messages.0.content.0.weight", "no such field"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages.0.content.0.type", "allowed is text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'tool' was given; allowed is 'system'"),
        ({"messages": ["x"]}, "messages.0", "must be an object"),
        ({"messages": "x"}, "messages", "must be a list"),
        ({"stream_options": {"include_usage": True, "usage": 1}}, "stream_options.usage", "did you mean include_usage?"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "must be true or false"),
        ({"stream_options": []}, "stream_options", "must be an object"),
    ],
)  # fmt: skip
def test_fields_inside_of_fields(address, change, field, message):
    path = ROUTES[1]
    error = refused(post(address, path, body_of(path, **change)), path)
    assert error["param"] == field
    assert message in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_settings_in_the_address_are_refused(address, path):
    for name in ("temperature", "stop", "num_beams", "max_length"):
        error = refused(post(address, f"{path}?{name}=0", body_of(path)), path)
        assert error["param"] == name
        assert "in the JSON body" in error["message"]
    assert post(address, f"{path}?api-version=1&_=2", body_of(path)).status_code == 200


# ---- counts


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": ["x"] * 17}, "stop: has 17 entries; allowed are at most 16"),
        ({"stop": [str(number) for number in range(130_000)]}, "stop: has 130000 entries; allowed are at most 16"),
        ({"stop": "x" * 257}, "stop: a stop string may have at most 256 characters"),
        ({"stop": ["x", 5]}, "stop: must be a string or a list of strings"),
        ({"stop": {"a": "b"}}, "stop: must be a string or a list of strings"),
        ({"stop": 5}, "stop: must be a string or a list of strings"),
    ],
)
def test_stop_texts(address, path, change, message):
    error = refused(post(address, path, body_of(path, **change)), path)
    assert (error["message"], error["param"]) == (message, "stop")


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_stop_texts_that_may_be(address, path):
    for stop in ([], "", [""], ["x"] * 16, "x" * 256, [""] * 16):
        assert post(address, path, body_of(path, stop=stop)).status_code == 200


@pytest.mark.slow
def test_rounds_messages_and_parts(address):
    for path, change, field in (
        ("/", {"history": [["a", "b"]] * 4001}, "history"),
        ("/", {"history": [["a", "b"]] * 150_000}, None),
        (ROUTES[1], {"messages": MESSAGES * 8001}, "messages"),
        (ROUTES[1], {"messages": [MESSAGES[0] | {"content": [{"type": "text", "text": ""}] * 1001}]}, "messages.0.content"),
        (ROUTES[1], {"n": 17}, "n"),
    ):
        error = refused(post(address, path, body_of(path, **change)), path, 413 if field is None else None)
        assert error["param"] == field
        assert "allowed" in error["message"] or "too large" in error["message"]
    assert post(address, "/", body_of("/", history=[["a", "b"]] * 4000)).json()["dropped_rounds"] > 3000
    signs = body_of("/", prompt="[{,:\\\"" * 60_000)  # in a text they are no values
    assert "the question has more than" in post(address, "/", signs).json()["error"]["message"]


@pytest.mark.slow
def test_no_work_goes_into_what_cannot_fit(address):
    for query in ("长" * 600_000, "a b" * 500_000, "\u200b" * 600_000):
        response = post(address, "/", body_of("/", prompt=query))
        assert response.status_code == 400
        assert "the question has more than 2048 tokens" in response.json()["error"]["message"]
    history = [["a", "长" * 500_000], ["你好", "你好！"]]
    assert post(address, "/", body_of("/", history=history)).json()["dropped_rounds"] == 1


# ---- values

VALUES = [
    "0", "-1", "9223372036854775808", "-9223372036854775809", f"1{'0' * 400}", "NaN", "Infinity", "-Infinity", "1e-45",
    "1e400", "1e308", "true", "false", '"1"', '""', "null", "[]", "{}", "2.5", "-0.0", "9" * 5000, f"0.{'1' * 5000}",
]  # fmt: skip
NUMBERS = [
    "temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "seed", "max_length", "max_new_tokens",
    "max_tokens", "max_completion_tokens", "n", "do_sample", "stream", "min_p", "num_beams",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", NUMBERS)
def test_no_value_is_too_wild(address, path, name):
    with httpx.Client(base_url=address, headers=JSON, timeout=60) as client:
        for value in VALUES:
            body = body_of(path, max_new_tokens=2)
            body.pop(name, None)
            if name == "max_length":
                body["max_new_tokens"] = 2
            content = f'{json.dumps(body)[:-1]}, "{name}": {value}}}'
            response = client.post(path, content=content)
            assert response.status_code in (200, 400, 422), (value, response.text)
            if response.status_code != 200:
                assert len(refused(response, path, response.status_code)["message"]) < 300
            if value in ('"1"', "[]", "{}") and name not in ("stream", "min_p", "num_beams"):
                assert response.status_code != 200, value
        assert client.get("/health").json()["status"] == "ok"


# ---- bodies that are none


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is empty"),
        (b"  \n", "the body is empty"),
        (b"[]", "the body must be an object"),
        (b"5", "the body must be an object"),
        (b'"x"', "the body must be an object"),
        (b"null", "the body must be an object"),
        (b"{", "the body is not valid JSON: "),
        (b"prompt=x", "the body is not valid JSON: Expecting value at line 1 column 1"),
        (b'{"prompt": "x"} {}', "the body is not valid JSON: Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"prompt": "a", "prompt": "b"}', "the name 'prompt' stands twice"),
        (b'{"metadata": {"a": 1, "a": 2}}', "the name 'a' stands twice"),
        (b'{"metadata": NaN}', "JSON has no NaN"),
        (b'{"metadata": [-Infinity]}', "JSON has no -Infinity"),
        (b'{"metadata": ' + b"9" * 4301 + b"}", "too many digits"),
        ('{"prompt": "你好"}'.encode("gbk"), "not UTF-8 text"),
        ('{"prompt": "你好"}'.encode("utf-16"), "not UTF-8 text"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (gzip.compress(b'{"prompt": "x"}', mtime=0), "compressed (gzip)"),
        (b"PK\x03\x04xxxx", "compressed (zip)"),
    ],
)
def test_bodies_that_are_none(address, path, content, message):
    error = refused(post(address, path, content), path)
    assert message in error["message"]
    assert error["param"] is None


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_what_a_body_says_that_it_is(address, path):
    body = json.dumps(body_of(path)).encode()
    types = ("application/json", "application/json; charset=UTF-8", 'Application/JSON;charset="utf8"', "application/x+json")
    for sent_as in types:
        assert post(address, path, body, **{"content-type": sent_as}).status_code == 200, sent_as
    assert post(address, path, b"\xef\xbb\xbf" + body).status_code == 200  # as some editors begin a file
    assert post(address, path, body, **{"content-encoding": "identity"}).status_code == 200
    wrong = [("content-encoding", "gzip"), ("content-encoding", "br"), ("content-type", "application/json; charset=gbk")]
    for name, value in wrong:
        message = refused(post(address, path, body, **{name: value}), path, 415)["message"]
        assert value.rpartition("=")[2] in message
        assert "send the body as" in message
    for sent_as in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"):
        response = post(address, path, body, **{"content-type": sent_as})
        if path == "/":
            assert response.status_code == 200  # as the published route
        else:
            message = refused(response, path, 415)["message"]
            assert message == f"the Content-Type header must be application/json; {sent_as} was sent"
    missing = httpx.post(f"{address}{path}", content=body)
    if path == "/":
        assert missing.status_code == 200
    else:
        assert "the Content-Type header must be application/json; there is none" in refused(missing, path)["message"]
    form = httpx.post(f"{address}{path}", files={"prompt": b"x"})
    assert "multipart/form-data" in refused(form, path, 422 if path == "/" else 415)["message"]


@pytest.mark.slow
def test_halves_of_characters_do_no_harm(address):
    for path, change in (("/", {"prompt": "\ud800", "history": [["\udfff", "\ud83d"]], "stop": "\udc00", "user": "\ud800"}),
                         ("/", {"model": "\ud800"}), (ROUTES[1], {"model": "\ud800"}),
                         (ROUTES[1], {"messages": [{"role": "user", "content": "\ud800"}], "stop": ["\udfff"]}),
                         (ROUTES[1], {"messages": [{"role": "\ud800", "content": "x"}]}),
                         (ROUTES[1], {"messages": [{"role": "user", "content": [{"type": "\ud800"}]}]})):  # fmt: skip
        assert post(address, path, body_of(path, **change)).status_code in (200, 400, 404)


# ---- paths and methods


@pytest.mark.slow
def test_head_and_slashes(address):
    for path in ("/health", "/metrics", "/v1/models", f"/v1/models/{BASE}", "/openapi.json", "/docs", "/health/"):
        got, head = httpx.get(f"{address}{path}"), httpx.head(f"{address}{path}")
        assert (got.status_code, head.status_code) == (200, 200), path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
    assert httpx.head(f"{address}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{address}/v1/models/").json() == httpx.get(f"{address}/v1/models").json()
    expected = text_of(post(address, ROUTES[1], body_of(ROUTES[1])))
    for path in ("/v1/chat/completions/", "/v1/chat/completions//"):
        assert text_of(post(address, path, body_of(path))) == expected
    assert httpx.get(f"{address}/v1/nothing/").status_code == 404
    missing = httpx.get(f"{address}/v1/models/nobody/")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == f"there is no model or prefix 'nobody'; there are {BASE}"


@pytest.mark.slow
def test_the_documents_load_nothing(address):
    page = httpx.get(f"{address}/docs")
    assert "<script" not in page.text
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/v1/chat/completions" in page.text
    assert "repetition_penalty" in page.text
    assert httpx.get(f"{address}/redoc").status_code == 404
    schema = httpx.get(f"{address}/openapi.json").json()
    assert "$ref" not in json.dumps(schema["paths"]["/v1/chat/completions"]["post"]["requestBody"])
    fields = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert fields["required"] == ["model", "messages"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 10**18), ("max_completion_tokens", 2**31), ("max_new_tokens", 2**31), ("max_length", 2**40),
        ("no_repeat_ngram_size", 101), ("repetition_penalty", 0.001), ("seed", -1), ("num_beams", True), ("min_p", False),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_told_by_the_name_it_was_sent_under(address, field, value):
    error = refused(post(address, ROUTES[1], body_of(ROUTES[1], **{field: value})), ROUTES[1])
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")
