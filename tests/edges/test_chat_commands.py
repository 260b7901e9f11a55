"""The commands of the terminal chat: what they change, and one clear line for what they do not take."""

import pytest

from ptuning.core.errors import UserError
from ptuning.edges.chat_commands import ChatCommands, Leave
from ptuning.edges.language import language_of, language_of_environment
from ptuning.edges.terminal_texts import _TEXTS, Texts
from ptuning.serving.chat_service import load_service
from ptuning.serving.conversation import Conversation
from ptuning.settings.arguments import ServingArguments


@pytest.fixture(scope="module")
def service(golden):
    given = [f"golden={golden / 'checkpoint-prefix'}"]
    model = ServingArguments(model_name_or_path=str(golden / "model"), ptuning_checkpoint=given, device="cpu")
    service = load_service(model, max_rows=1).start()
    yield service
    service.stop()


@pytest.fixture
def commands(service):
    return ChatCommands(Conversation(service), Texts("en"))


@pytest.mark.parametrize("line", ["你好", "clear 一下缓存怎么做", "/usr/bin 是什么", "//", "stop words 是什么"])
def test_what_is_no_command_is_a_question(commands, line):
    assert commands.run(line) is None


@pytest.mark.parametrize("line", ["stop", "exit", " stop ", "/stop", "/exit"])
def test_leaving(commands, line):
    with pytest.raises(Leave):
        commands.run(line)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/set temperature 0.2", "temperature", 0.2),
        ("/set temperature=0", "temperature", 0.0),
        ("/set top_p 1", "top_p", 1.0),
        ("/set top_k 0", "top_k", 0),
        ("/set max_length 100", "max_length", 100),
        ("/set max_new_tokens 5", "max_new_tokens", 5),
        ("/set max_new_tokens none", "max_new_tokens", None),
        ("/set repetition_penalty 1.2", "repetition_penalty", 1.2),
        ("/set no_repeat_ngram_size 3", "no_repeat_ngram_size", 3),
        ("/set seed 7", "seed", 7),
        ("/set do_sample off", "do_sample", False),
    ],
)
def test_set(commands, line, name, value):
    assert name in commands.run(line)
    assert getattr(commands.conversation.settings, name) == value


def test_set_history_and_the_list(commands):
    assert "history auto (on)" in commands.run("/set")
    assert "history off" in commands.run("/set history off")
    assert commands.conversation.alone
    commands.run("/set history auto")
    assert not commands.conversation.alone


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temprature 1", "did you mean temperature?"),
        ("/set temperature", "/set temperature 0.95"),
        ("/set temperature hot", "'hot' is not a number"),
        ("/set temperature -1", "temperature -1.0 was given; allowed is 0"),
        ("/set top_p 0", "allowed is more than 0, up to 1"),
        ("/set top_k 1.5", "not a whole number"),
        ("/set max_length 0", "must be 2 or more"),
        ("/set do_sample maybe", "neither true nor false"),
        ("/set history maybe", "allowed are on, off, auto"),
        ("/prefix nosuch", "there are model, golden"),
        ("/base golden", "/base takes no argument"),
        ("/save", "name a file"),
        ("/save talk.txt", "ends in .json or .jsonl"),
        ("/save talk.jsonl", "nothing to save"),
        ("/colour", "no such command"),
    ],
)
def test_mistakes(commands, line, message):
    with pytest.raises(UserError) as caught:
        commands.run(line)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", "9223372036854775808"), ("top_k", "9" * 5000), ("top_k", "-1"), ("top_k", "1e3"), ("top_k", "none"),
        ("top_k", '""'), ("top_k", "true"), ("temperature", "nan"), ("temperature", "inf"), ("temperature", "-inf"),
        ("temperature", "1e999"), ("temperature", "1e-45"), ("temperature", "null"), ("temperature", "1,5"),
        ("top_p", "nan"), ("top_p", "1.01"), ("top_p", "-0"), ("repetition_penalty", "1e-45"),
        ("repetition_penalty", "1e30"), ("repetition_penalty", "0"), ("no_repeat_ngram_size", "101"),
        ("no_repeat_ngram_size", "-2"), ("seed", "-1"), ("seed", "9223372036854775808"), ("seed", "0.5"),
        ("seed", "1" * 4000), ("max_new_tokens", "0"), ("max_new_tokens", "99999999999"), ("max_new_tokens", "nan"),
        ("max_length", "-1"), ("max_length", "1"), ("max_length", "none"), ("max_length", "1" * 30),
        ("do_sample", "none"), ("do_sample", "2"), ("history", "none"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_and_changes_nothing(commands, name, value):
    before, history = commands.conversation.settings, commands.conversation.no_history
    for line in (f"/set {name} {value}", f"/set {name}={value}"):
        with pytest.raises(UserError) as caught:
            commands.run(line)
        assert str(caught.value).startswith(f"/set {name}")
        assert "--" not in str(caught.value)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)
    assert (commands.conversation.settings, commands.conversation.no_history) == (before, history)


def test_prefixes_are_listed_with_tokens_layers_and_source(commands):
    assert "* golden: a prefix of 6 tokens, 3 layers, from " in commands.run("/prefix")
    assert commands.run("/base") == "model: the base model, no prefix"
    assert "* model" in commands.run("/prefix")
    assert commands.run("/prefix golden").startswith("golden: a prefix of 6 tokens")


def test_a_file_that_is_there_is_not_overwritten_but_our_own_is(commands, tmp_path):
    commands.run("/set max_new_tokens 3")
    list(commands.conversation.ask("你好"))
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(UserError, match="the file exists already"):
        commands.run(f"/save {tmp_path / 'mine.json'}")
    for rounds in (1, 2):
        assert f"{rounds} rounds" in commands.run(f"/save {tmp_path / 'talk of 今天.jsonl'}")
        list(commands.conversation.ask("再来"))
    assert (tmp_path / "mine.json").read_text() == "[]"


def test_completion(commands):
    assert commands.completions("/s") == ["/set", "/save", "/stop"]
    assert commands.completions("/set top_") == ["top_p", "top_k"]
    assert commands.completions("/prefix g") == ["golden"]
    assert commands.completions("") == commands.completions("你") == commands.completions("/set top_p 1") == []


def test_every_text_is_there_in_both_languages():
    for name, texts in _TEXTS.items():
        assert set(texts) == {"zh", "en"}, name
        assert texts["zh"].count("{}") == texts["en"].count("{}"), name


@pytest.mark.parametrize(
    ("name", "language"),
    [(None, "zh"), ("C.UTF-8", "zh"), ("zh_CN.UTF-8", "zh"), ("zh-TW,en;q=0.8", "zh"), ("en_US.UTF-8", "en"), ("de", "en")],
)
def test_language(name, language):
    assert language_of(name) == language
    assert language_of_environment({"LANG": name or ""}) == language
    assert language_of_environment({"LANG": name or "", "LC_ALL": "en_GB"}) == "en"
