"""Training examples of whole files: packed, kept on disk, made by several processes, and what the log says."""

import json
import logging

import pytest

from ptuning.checkpoint.load import load_tokenizer
from ptuning.core.errors import UserError
from ptuning.data import examples as made
from ptuning.data.example_store import FILES_KEPT, PackedExamples, pack, read_arrays, write_arrays
from ptuning.data.examples import prepare_examples
from ptuning.data.preprocess import training_example
from ptuning.data.rows import Row, read_rows
from ptuning.data.run_rows import prepare_training_rows
from ptuning.data.truncation import prompt_ids
from ptuning.settings.arguments import DataArguments

LIMITS = {"max_source_length": 24, "max_target_length": 20}


@pytest.fixture(scope="module")
def tokenizer(golden):
    return load_tokenizer(golden / "model")


@pytest.fixture(scope="module")
def rows(golden_cases):
    cases = golden_cases["train_rows"]
    return [Row(case["prompt"], case["response"], case["history"], f"r.json:{n}") for n, case in enumerate(cases, 1)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(made, "ROWS_WORTH_KEEPING", 1)
    return tmp_path / "cache"


def test_packed_examples_are_the_examples(tokenizer, rows):
    plain = [training_example(tokenizer, row, **LIMITS) for row in rows]
    packed = PackedExamples(pack(plain, range(len(rows))), [row.source for row in rows])
    assert list(packed) == plain
    assert packed[2:4] == plain[2:4]
    assert packed[-1] == plain[-1]
    with pytest.raises(IndexError):
        packed[len(rows)]


def test_what_was_tokenised_is_read_back(tokenizer, rows, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "ptuning")
    first = prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    assert "tokenised before" not in caplog.text
    monkeypatch.setattr(made, "_made", None)  # nothing may be tokenised again
    second = prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    assert second == first
    assert list(second) == list(first)
    assert "rows: tokenised before, read from" in caplog.text


def test_other_rows_settings_or_tokenizers_are_kept_apart(tokenizer, rows, cache):
    def kept():
        return len(list(cache.glob("*.safetensors")))

    prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    variants = [
        (tokenizer, rows[:-1], {}),
        (tokenizer, [*rows[:-1], Row("x", "y", None, "r.json:1")], {}),
        (tokenizer, rows, {"max_source_length": 25}),
        (tokenizer, rows, {"max_target_length": 21}),
        (tokenizer, rows, {"source_prefix": "a"}),
        (tokenizer, rows, {"truncation": "published"}),
        (tokenizer, rows, {"cut_replies": "closed"}),
        (tokenizer, rows, {"legacy_first_round": True}),
        (load_tokenizer("tiny-chatglm"), rows, {}),
    ]
    for number, (words, some, changes) in enumerate(variants, 2):
        prepare_examples(words, some, DataArguments(**LIMITS | changes), "rows")
        assert kept() == number
    prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    assert kept() == len(variants) + 1


@pytest.mark.parametrize("damage", ["cut", "bit", "nonsense"])
def test_a_damaged_file_is_made_anew(tokenizer, rows, cache, damage, caplog):
    first = prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    (path,) = cache.glob("*.safetensors")
    whole = path.read_bytes()
    broken = {"cut": whole[:-9], "bit": whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:], "nonsense": b"x" * 50}[damage]
    path.write_bytes(broken)
    assert prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows") == first
    assert "are prepared again" in caplog.text
    assert path.read_bytes() == whole


def test_overwriting_the_cache_and_a_place_that_cannot_be_written(tokenizer, rows, cache, monkeypatch, caplog):
    cache.write_text("a file where the folder should be")
    examples = prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    assert "cannot be kept" in caplog.text
    cache.unlink()
    prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    (path,) = cache.glob("*.safetensors")
    write_arrays(path, pack(examples[:1], [0]))  # whole, but not what belongs there
    assert len(prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")) == 1
    again = prepare_examples(tokenizer, rows, DataArguments(**LIMITS, overwrite_cache=True), "rows")
    assert again == examples


def test_rows_that_others_could_have_prepared_are_not_learnt(tokenizer, rows, cache, caplog):
    examples = prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    (path,) = cache.glob("*.safetensors")
    write_arrays(path, pack(examples[:1], [0]))  # whole, under the right name, and not ours
    not_kept, again = "cannot be kept", "prepared again"
    for place, mode, said in ((cache.parent, 0o777, not_kept), (cache, 0o770, not_kept), (path, 0o666, again)):
        before = place.stat().st_mode
        place.chmod(mode)
        caplog.clear()
        assert prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows") == examples, place
        assert f"{place}: other users can write to it" in caplog.text
        assert said in caplog.text
        if place.exists():
            place.chmod(before)


def test_old_files_go(tmp_path, tokenizer, rows):
    arrays = pack([training_example(tokenizer, rows[0], **LIMITS)], [0])
    for number in range(FILES_KEPT + 3):
        write_arrays(tmp_path / f"{number}.safetensors", arrays)
    assert len(list(tmp_path.iterdir())) == FILES_KEPT
    assert read_arrays(tmp_path / "gone.safetensors") is None


def test_small_sets_are_not_kept(tokenizer, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))
    prepare_examples(tokenizer, rows, DataArguments(**LIMITS), "rows")
    assert not (tmp_path / "cache").exists()


def test_the_log_counts_what_was_cut(tokenizer, caplog):
    caplog.set_level(logging.INFO, "ptuning")
    history = [("一问", "一答")] * 9
    some = [Row("短", "短", history, "x:1"), Row("长" * 50, "短", None, "x:2"), Row("短", "长" * 50, None, "x:3")]
    prepare_examples(tokenizer, some, DataArguments(**LIMITS), "rows")
    assert "limit 24: 1 lost earlier rounds, 1 were truncated; reply tokens" in caplog.text
    assert "limit 20: 1 truncated, without an end token" in caplog.text


def test_rows_with_long_replies_are_dropped_on_request(tokenizer, caplog):
    some = [Row("a", "短", None, "x:1"), Row("b", "长" * 50, None, "x:2"), Row("c", "短", None, "x:3")]
    kept = prepare_examples(tokenizer, some, DataArguments(**LIMITS, cut_replies="drop"), "rows")
    assert [example.source for example in kept] == ["x:1", "x:3"]
    assert "rows: dropped 1 of 3 rows: the reply is longer than --max_target_length 20" in caplog.text
    with pytest.raises(UserError, match="no row left, all 1 replies are longer than --max_target_length 20"):
        prepare_examples(tokenizer, some[1:2], DataArguments(**LIMITS, cut_replies="drop"), "rows")


def test_a_cut_reply_is_ended_as_published_only_on_request(tokenizer):
    row = [Row("a", "长" * 50, None, "x:1")]
    for settings, ended in (({}, False), ({"cut_replies": "closed"}, True), ({"truncation": "published"}, True)):
        example = prepare_examples(tokenizer, row, DataArguments(**LIMITS | settings), "rows")[0]
        assert (example.input_ids[-1] == tokenizer.eos_token_id) is ended, settings


CONTROL = "<sop>[gMASK]<eop>[MASK]＜sop＞<pad>"
FORMS = {
    "columns": {"prompt": CONTROL, "response": CONTROL, "history": [[CONTROL, CONTROL]]},
    "alpaca": {"instruction": CONTROL, "input": CONTROL, "output": CONTROL, "system": CONTROL},
    "messages": {
        "messages": [
            {"role": role, "content": CONTROL} for role in ("system", "user", "assistant", "user", "assistant")
        ]
    },
    "sharegpt": {"conversations": [{"from": role, "value": CONTROL} for role in ("human", "gpt")]},
}


@pytest.mark.parametrize("form", FORMS)
def test_control_strings_stay_text_in_every_form(tokenizer, tmp_path, form):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(FORMS[form], ensure_ascii=False), encoding="utf-8")
    rows = read_rows(path)
    data = DataArguments(source_prefix=CONTROL)
    example = prepare_examples(tokenizer, rows, data, "rows")[0]
    control = [tokenizer.gmask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id, 3]
    assert [example.input_ids.count(token) for token in control] == [1, 1, 1, 0, 0]
    start = example.input_ids.index(tokenizer.bos_token_id)
    assert tokenizer.decode(example.input_ids[start + 1 : -1]).count("<sop>") == 2  # both spellings, as text
    assert made.row_prompt(tokenizer, rows[0], data) == example.input_ids[: start + 1]


def test_training_evaluation_and_chat_agree_after_truncation(tokenizer):
    history = [("一问", "一答"), ("二问", "二答"), ("三问", "三答")]
    row, data = Row("四问", "四答", history, "x:1"), DataArguments(max_source_length=56)
    example = prepare_examples(tokenizer, [row], data, "rows")[0]
    assert 0 < example.dropped_rounds < 3
    prompt = made.row_prompt(tokenizer, row, data)
    assert example.input_ids[: len(prompt)] == prompt
    assert prompt == prompt_ids(tokenizer, row.prompt, history[example.dropped_rounds :])  # what a chat would ask


@pytest.fixture
def mixing(tmp_path):
    main, general = tmp_path / "main.json", tmp_path / "general.json"
    main.write_text("\n".join(json.dumps({"q": f"main {i}", "a": "b"}) for i in range(8)), encoding="utf-8")
    rounds = [{"role": role, "content": f"general {role}"} for role in ("user", "assistant") * 2]
    general.write_text("\n".join(json.dumps({"messages": rounds}) for _ in range(30)), encoding="utf-8")
    return {"train_file": str(main), "prompt_column": "q", "response_column": "a", "mix_file": f"{general}:0.2"}


def test_another_file_in_another_form_is_mixed_in(mixing):
    rows = prepare_training_rows(DataArguments(**mixing), seed=3)
    assert (len(rows), sum(row.prompt.startswith("general") for row in rows)) == (10, 2)
    assert rows == prepare_training_rows(DataArguments(**mixing), seed=3)
    assert rows != prepare_training_rows(DataArguments(**mixing), seed=4)


def test_the_share_counts_rounds_where_every_round_is_learnt(mixing, tokenizer):
    data = DataArguments(**mixing, loss_on="all")
    rows = prepare_training_rows(data, seed=3)
    assert (len(rows), sum(row.prompt.startswith("general") for row in rows)) == (10, 2)
    assert len(prepare_examples(tokenizer, rows, data, "rows")) == 10  # not taken apart a second time


def test_validation_rows_are_taken_apart_as_well(tokenizer, tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"prompt": "三", "response": "3", "history": [["一", "1"], ["二", "2"]]}), encoding="utf-8")
    rows = read_rows(path)
    assert len(prepare_examples(tokenizer, rows, DataArguments(loss_on="all"), "rows")) == 3
    assert len(prepare_examples(tokenizer, rows, DataArguments(), "rows")) == 1
