"""Every settings file that ships is read by the real parser, for every verb that takes one."""

from pathlib import Path

import pytest

from ptuning.edges.run_arguments import parse_arguments
from ptuning.settings.settings_file import SETTINGS_SUFFIXES

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for path in (ROOT / "configs").rglob("*") if path.is_file())


def test_there_are_files_and_all_of_them_are_settings():
    assert {path.name for path in FILES} >= {"tiny.yaml", "tiny-chat.yaml", "adgen-chatglm-6b-int4.yaml"}
    assert all(path.suffix in SETTINGS_SUFFIXES for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_file_is_read_without_a_word_of_complaint(path, caplog):
    arguments = parse_arguments([str(path)])
    assert arguments.config_file == path
    assert arguments.training.do_train is True
    assert arguments.model.pre_seq_len
    evaluation = parse_arguments([str(path), "--test_file", "rows.json"], task="evaluate").training
    assert (evaluation.do_train, evaluation.do_predict) == (False, True)
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "nothing looks at it" not in line] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_file_says_at_its_top_how_it_is_used(path):
    opening = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert opening.startswith("# ")
    assert "bash scripts/" in opening


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rows_that_ship_are_found_from_any_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = parse_arguments([str(path)]).data
    for name in (data.train_file, data.validation_file, data.test_file):
        if name and "data/" in name:
            assert Path(name).is_file()


@pytest.mark.parametrize(
    ("name", "bits", "dtype"), [("int4", 4, "auto"), ("int8", 8, "auto"), ("fp16", None, "float16")]
)
def test_the_adgen_files_hold_the_published_settings(name, bits, dtype):
    model, data, training = parse_arguments([str(ROOT / "configs" / f"adgen-chatglm-6b-{name}.yaml")])
    assert (model.pre_seq_len, model.quantization_bit, model.dtype) == (128, bits, dtype)
    assert (data.prompt_column, data.response_column) == ("content", "summary")
    assert (data.max_source_length, data.max_target_length) == (64, 64)
    assert (training.learning_rate, training.max_steps, training.save_steps) == (0.02, 3000, 1000)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert training.lr_scheduler_type == "linear"


def test_the_chat_file_holds_the_published_settings():
    _, data, training = parse_arguments([str(ROOT / "configs" / "chat-chatglm-6b-int4.yaml")])
    assert (data.history_column, data.max_source_length, data.max_target_length) == ("history", 256, 256)
    assert training.learning_rate == 0.01
