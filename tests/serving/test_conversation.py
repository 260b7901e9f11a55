"""A conversation: pieces that add up, history, prefixes, settings, and rows to train on."""

import math
from dataclasses import replace

import pytest
import torch
from prefixes import random_encoder, save_prefix

import ptuning
from ptuning.core.errors import GenerationError, UserError
from ptuning.data.rows import read_rows
from ptuning.model.config import ChatGLMConfig
from ptuning.serving.chat_service import load_service
from ptuning.serving.conversation import Conversation
from ptuning.settings.arguments import AnswerArguments, ServingArguments


@pytest.fixture(scope="module")
def service(golden, tmp_path_factory):
    """The golden model with its prefix, one tuned on single questions, and one that is broken."""
    folder = tmp_path_factory.mktemp("prefixes")
    config = ChatGLMConfig.from_pretrained(golden / "model")
    for name, settings in (("single", {"history": False}), ("broken", {})):
        encoder = random_encoder(config, 2, seed=1)
        if name == "broken":
            torch.nn.init.constant_(encoder.embedding.weight, 3e38)
        save_prefix(folder / name, encoder, settings)
    given = [f"golden={golden / 'checkpoint-prefix'}", str(folder)]
    model = ServingArguments(model_name_or_path=str(golden / "model"), ptuning_checkpoint=given, device="cpu")
    service = load_service(model, max_rows=2).start()
    yield service
    service.stop()


@pytest.fixture
def talk(service):
    return Conversation(service, AnswerArguments(max_new_tokens=60, temperature=0))


def test_pieces_add_up_to_the_chat_answer(golden, talk):
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")
    tokenizer, history = ptuning.load_tokenizer(golden / "model"), []
    for query in ("你好", "第二问\n换行"):
        response, history = model.chat(tokenizer, query, history, max_new_tokens=60, do_sample=False)
        answer = talk.ask(query)
        pieces = list(answer)
        assert "".join(pieces) == answer.text == response
        assert answer.truncated
        assert len(pieces) > 3
    assert [(one.query, one.reply) for one in talk.rounds] == history
    talk.clear()
    assert talk.rounds == []


def test_a_stopped_answer_stays_as_far_as_it_was_shown_and_frees_its_row(service, talk):
    talk.change(max_new_tokens=2000)
    pieces = iter(talk.ask("你好"))
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert [(one.query, one.reply) for one in talk.rounds] == [("你好", shown)]
    assert service.worker.drain(timeout=60)
    assert service.engine.counters.finished["cancelled"] >= 1


class Stopping:
    """The service, every question with stop texts besides."""

    def __init__(self, service, stop):
        self.service, self.store, self.stop = service, service.store, stop

    def ask(self, question):
        return self.service.ask(replace(question, sampling=replace(question.sampling, stop=self.stop)))


def test_an_empty_answer_is_a_round(service, talk, tmp_path):
    """A stop text at its very start ends it: it is said, it is history, and it is saved."""
    whole = "".join(talk.ask("你好"))
    talk.clear()
    talk.service = Stopping(service, (whole[0],))
    answer = talk.ask("你好")
    assert list(answer) == []
    assert (answer.text, answer.truncated) == ("", False)
    assert [(one.query, one.reply) for one in talk.rounds] == [("你好", "")]
    again = talk.ask("你好")
    assert again.asked.prompt_tokens > answer.asked.prompt_tokens
    list(again)
    assert talk.rounds[1].earlier == (("你好", ""),)
    assert talk.save(tmp_path / "talk.jsonl") == 2


def test_an_answer_that_was_stopped_before_its_first_character_is_none(service, talk):
    talk.change(max_new_tokens=2000)
    answer = talk.ask("你好")
    answer.asked.cancel()
    assert "".join(answer) == answer.text
    assert [(one.query, one.reply) for one in talk.rounds] == ([("你好", answer.text)] if answer.text else [])
    pieces = iter(talk.ask("你好"))
    pieces.close()
    assert service.worker.drain(60)
    assert len(talk.rounds) <= 1


@pytest.mark.parametrize("place", [1, 5, 9])
def test_a_stop_text_that_comes_in_several_tokens(service, talk, place):
    whole = "".join(talk.ask("你好"))
    talk.clear()
    stop = whole[place : place + 6]
    talk.service = Stopping(service, (stop,))
    answer = talk.ask("你好")
    assert "".join(answer) == answer.text == whole.partition(stop)[0]
    assert talk.rounds[0].reply == answer.text


def test_without_history_every_question_stands_alone(service, talk):
    def prompts():
        answers = [talk.ask("你好") for _ in range(2)]
        for answer in answers:
            list(answer)
        answers.append(talk.ask("你好"))
        list(answers[-1])
        return len({answer.asked.prompt_tokens for answer in answers})

    talk.change(max_new_tokens=3)
    talk.no_history = True
    assert prompts() == 1
    talk.no_history = None
    assert prompts() == 2
    talk.select_prefix("single")  # its settings say that it was tuned on single questions
    assert talk.alone
    assert prompts() == 1
    talk.no_history = False
    assert not talk.alone


def test_the_oldest_rounds_that_do_not_fit_are_left_out_and_counted(talk):
    talk.change(max_length=120, max_new_tokens=20)
    dropped = []
    for number in range(8):
        answer = talk.ask(f"第{number}问")
        list(answer)
        dropped.append(answer.asked.dropped_rounds)
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0
    assert len(talk.rounds) == 8, "they are forgotten by the model, not by the user"


def test_an_answer_that_cannot_be_given_is_not_remembered(talk):
    talk.select_prefix("broken")
    with pytest.raises(GenerationError, match="NaN or infinite"):
        list(talk.ask("你好"))
    with pytest.raises(UserError, match="the question has"):
        talk.ask("长" * 3000)
    assert talk.rounds == []
    talk.select_prefix("golden")
    assert "".join(talk.ask("你好"))


def test_prefix_base_and_names_that_do_not_exist(service, talk):
    assert talk.prefix.name == "golden"
    assert talk.select_prefix(None).name == service.store.base_name == "model"
    with pytest.raises(UserError, match="there are model, golden, broken, single"):
        talk.select_prefix("gold")
    assert talk.prefix.path is None


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1.0), ("temperature", math.nan), ("top_p", 0.0), ("top_k", -1), ("max_length", 0)]
)
def test_a_bad_setting_changes_nothing(talk, name, value):
    before = talk.settings
    with pytest.raises(UserError, match=name):
        talk.change(**{name: value})
    assert talk.settings == before


def test_saved_rounds_are_rows_to_train_on(talk, tmp_path):
    with pytest.raises(UserError, match="nothing to save"):
        talk.save(tmp_path / "talk.jsonl")
    talk.change(max_new_tokens=8)
    for query in ("你好", "再\n来"):
        list(talk.ask(query))
    talk.no_history = True
    list(talk.ask("单独"))
    assert talk.save(tmp_path / "talk.jsonl") == 3
    rows = list(read_rows(tmp_path / "talk.jsonl"))
    assert [row.prompt for row in rows] == ["你好", "再\n来", "单独"]
    assert [row.response for row in rows] == [one.reply for one in talk.rounds]
    assert [list(map(tuple, row.history or [])) for row in rows] == [[], [("你好", talk.rounds[0].reply)], []]
    with pytest.raises(UserError, match="cannot be written"):
        talk.save(tmp_path / "nowhere" / "talk.jsonl")
