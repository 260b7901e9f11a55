"""What an evaluation scores is what the server answers: one tuned prefix, two processes, 50 rows, letter for letter.

Both cut an answer at the limit of new tokens and tidy it by the same rule (half a character at a cut end is left out), so
answers that were cut are equal too. What may differ, and is outside of these rows, is the prompt: an evaluation cuts one
that is longer than ``--max_source_length``, the server never cuts a question.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from processes import Command
from servers import running

pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[2] / "data" / "adgen-tiny"
ROWS, LIMIT, CLIENTS = 50, 24, 8  # a limit that cuts some of the answers and not others


def run(argv, output):
    command = Command(argv, output)
    assert command.wait() == 0, command.text()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A prefix after 40 steps: it has learnt how an answer begins and is not yet sure about the rest."""
    place = tmp_path_factory.mktemp("tuned")
    settings = {
        "model_name_or_path": "tiny-chatglm", "train_file": DATA / "train.json", "prompt_column": "content",
        "response_column": "summary", "output_dir": place / "run", "pre_seq_len": 16, "source_prefix": "写广告：",
        "max_source_length": 64, "max_target_length": 96, "max_train_samples": 400, "max_steps": 40, "warmup_steps": 5,
        "per_device_train_batch_size": 8, "save_steps": 1000, "device": "cpu",
    }
    run(["train", *(f"--{name}={value}" for name, value in settings.items())], place / "log")
    return place / "run" / "checkpoint-40"


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory):
    """The texts of generated_predictions.txt, and what generated_predictions.jsonl knows besides of each."""
    out = tmp_path_factory.mktemp("evaluated")
    more = (f"--test_file={DATA / 'test.json'}", f"--max_predict_samples={ROWS}", f"--max_target_length={LIMIT}")
    batch = "--per_device_eval_batch_size=12"
    run(["evaluate", checkpoint.parent, *more, batch, f"--output_dir={out / 'out'}"], out / "log")
    lines = (out / "out" / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
    known = (out / "out" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(known) == ROWS
    return [json.loads(line)["predict"] for line in lines], [json.loads(line) for line in known]


@pytest.fixture(scope="module")
def address(checkpoint):
    with running("serve", "--ptuning_checkpoint", f"tuned={checkpoint}") as (address, _):
        yield address


@pytest.fixture(scope="module")
def questions():
    lines = (DATA / "test.json").read_text(encoding="utf-8").splitlines()[:ROWS]
    return [json.loads(line)["content"] for line in lines]


def ask_all(address, path, bodies):
    """The responses to all bodies, several at a time and so in other batches than the evaluation's."""
    with httpx.Client(base_url=address, timeout=60) as http, ThreadPoolExecutor(CLIENTS) as clients:
        responses = list(clients.map(lambda body: http.post(path, json=body), bodies))
    assert {response.status_code for response in responses} == {200}
    return responses


def chat_bodies(questions, **more):
    return [
        {"model": "tuned", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": LIMIT} | more
        for text in questions
    ]


def test_the_rows_tell_something(evaluated, address, questions):
    """Answers that were cut and answers that were not, nearly all of them different, and not those of the base model."""
    texts, known = evaluated
    reasons = [answer["finish_reason"] for answer in known]
    assert min(reasons.count("stop"), reasons.count("length")) >= 5
    assert len(set(texts)) > ROWS // 2
    base = ask_all(address, "/v1/chat/completions", chat_bodies(questions[:10], model="tiny-chatglm"))
    assert [one.json()["choices"][0]["message"]["content"] for one in base] != texts[:10]


def test_the_published_route_answers_as_the_evaluation(evaluated, address, questions):
    bodies = [{"prompt": text, "history": [], "temperature": 0, "max_new_tokens": LIMIT} for text in questions]
    assert [response.json()["response"] for response in ask_all(address, "/", bodies)] == evaluated[0]


def test_openais_route_answers_as_the_evaluation(evaluated, address, questions):
    """The texts, how each of them ended, and after how many tokens."""
    texts, known = evaluated
    found = [response.json() for response in ask_all(address, "/v1/chat/completions", chat_bodies(questions))]
    assert [one["choices"][0]["message"]["content"] for one in found] == texts
    assert [one["choices"][0]["finish_reason"] for one in found] == [answer["finish_reason"] for answer in known]
    assert [one["usage"]["completion_tokens"] for one in found] == [answer["tokens"] for answer in known]


def test_pieces_of_a_stream_add_up_to_the_evaluations_answer(evaluated, address, questions):
    streams = ask_all(address, "/v1/chat/completions", chat_bodies(questions, stream=True))
    events = [[json.loads(line[6:]) for line in one.text.splitlines() if line.startswith("data: {")] for one in streams]
    joined = ["".join(event["choices"][0]["delta"].get("content", "") for event in stream) for stream in events]
    assert joined == evaluated[0]
