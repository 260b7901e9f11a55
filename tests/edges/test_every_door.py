"""The same answer by every door: Python, stream, engine, service, terminal, HTTP and evaluation.

Greedy, with and without a prefix; one of the limits cuts an answer inside a character.
"""

import io

import pytest
from sampling import greedy
from starlette.testclient import TestClient

import ptuning
from ptuning.data.rows import Row
from ptuning.data.truncation import prompt_ids
from ptuning.edges.http.app import create_app
from ptuning.edges.terminal import ChatTerminal
from ptuning.edges.terminal_texts import Texts
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.evaluation.predictions import evaluate_rows
from ptuning.serving.chat_service import Question, load_service
from ptuning.serving.conversation import Conversation
from ptuning.settings.arguments import AnswerArguments, DataArguments, ServingArguments

QUERIES, LIMITS = ("你好", "类型#裙*颜色#红", "what is it?"), (5, 11, 40)


@pytest.fixture(scope="module")
def tokenizer(golden):
    return ptuning.load_tokenizer(golden / "model")


@pytest.fixture(scope="module")
def model(golden):
    return ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")


@pytest.fixture(scope="module")
def service(golden):
    given = [f"tuned={golden / 'checkpoint-prefix'}"]
    settings = ServingArguments(model_name_or_path=str(golden / "model"), ptuning_checkpoint=given, device="cpu")
    service = load_service(settings, max_rows=4).start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture(scope="module", params=["model", "tuned"])
def asked(request, model):
    """The base model and the prefix: the name at the service, and ``model`` in that state."""
    if request.param == "tuned":
        yield request.param
    else:
        with model.prefix_disabled():
            yield request.param


@pytest.fixture(scope="module")
def texts(asked, model, tokenizer):
    """What the engine answers, by query and limit."""
    engine = Engine(model, tokenizer)
    key_values = model.prefix_key_values()
    prefix = None if key_values is None else engine.add_prefix("p", key_values)
    pairs = [(query, limit) for query in QUERIES for limit in LIMITS]
    requests = [Request(prompt_ids(tokenizer, query), prefix, greedy(limit)) for query, limit in pairs]
    answers = {pairs[one.index]: one for one in engine.run(requests)}
    if asked == "tuned":
        assert tokenizer.decode(answers["你好", 11].ids).endswith("\ufffd"), "this limit should cut inside a character"
    assert not [one.text for one in answers.values() if one.text.endswith("\ufffd")]
    return {pair: one.text for pair, one in answers.items()}


def test_chat(model, tokenizer, texts):
    for (query, limit), text in texts.items():
        assert model.chat(tokenizer, query, do_sample=False, max_new_tokens=limit) == (text, [(query, text)])


def test_stream_chat(model, tokenizer, texts):
    for (query, limit), text in texts.items():
        items = list(model.stream_chat(tokenizer, query, temperature=0, max_new_tokens=limit))
        assert items[-1] == (text, [(query, text)])


def test_transformers(model, tokenizer, texts):
    """A setting that only transformers knows, and that changes nothing."""
    for (query, limit), text in texts.items():
        settings = {"do_sample": False, "max_new_tokens": limit, "num_assistant_tokens": 20}
        assert model.chat(tokenizer, query, **settings)[0] == text
        assert list(model.stream_chat(tokenizer, query, **settings))[-1][0] == text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_service(service, asked, texts, stream):
    for (query, limit), text in texts.items():
        (generation,) = service.ask(Question(query, model=asked, sampling=greedy(limit), stream=stream)).generations
        pieces = "".join(generation.pieces()) if stream else None
        assert generation.wait(60)
        assert generation.text == text
        assert pieces in (None, text)


def test_terminal(service, asked, texts, monkeypatch, capsys):
    for limit in LIMITS:
        conversation = Conversation(service, AnswerArguments(do_sample=False, max_new_tokens=limit), no_history=True)
        conversation.choose(asked)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{query}\n" for query in QUERIES)))
        capsys.readouterr()
        assert ChatTerminal(conversation, Texts("en"), plain=True).run() == 0
        assert capsys.readouterr().out == "".join(f"{texts[query, limit]}\n" for query in QUERIES)


def test_http(client, asked, texts):
    for (query, limit), text in texts.items():
        body = {"prompt": query, "model": asked, "temperature": 0, "max_new_tokens": limit}
        assert client.post("/", json=body).json()["response"] == text
        body = {"model": asked, "messages": [{"role": "user", "content": query}], "do_sample": False, "max_tokens": limit}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == text


def test_evaluation(model, tokenizer, texts):
    rows = [Row(query, "好", None, "rows:1") for query in QUERIES]
    for limit in LIMITS:
        data = DataArguments(max_source_length=64, val_max_target_length=limit)
        predictions = evaluate_rows(model, tokenizer, rows, data, batch_size=2).predictions
        assert predictions == [texts[query, limit] for query in QUERIES]
