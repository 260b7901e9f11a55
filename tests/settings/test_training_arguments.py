"""Whole command lines: the published ones unchanged, what a verb implies, and where training starts."""

import json
import os
import shlex

import pytest
from checkpoints import whole_checkpoint

from ptuning.core.errors import UserError
from ptuning.edges.run_arguments import parse_arguments
from ptuning.settings.arguments import ModelArguments
from ptuning.settings.parsing import SettingsParser
from ptuning.settings.training_arguments import TuningArguments, save_arguments

TRAIN = """--do_train --train_file AdvertiseGen/train.json --validation_file AdvertiseGen/dev.json
    --prompt_column content --response_column summary --overwrite_cache --model_name_or_path THUDM/chatglm-6b
    --output_dir output/adgen-chatglm-6b-pt-128-2e-2 --overwrite_output_dir --max_source_length 64
    --max_target_length 64 --per_device_train_batch_size 1 --per_device_eval_batch_size 1
    --gradient_accumulation_steps 16 --predict_with_generate --max_steps 3000 --logging_steps 10 --save_steps 1000
    --learning_rate 2e-2 --pre_seq_len 128 --quantization_bit 4"""
EVALUATE = """--do_predict --validation_file AdvertiseGen/dev.json --test_file AdvertiseGen/dev.json --overwrite_cache
    --prompt_column content --response_column summary --model_name_or_path THUDM/chatglm-6b
    --ptuning_checkpoint ./output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000
    --output_dir ./output/adgen-chatglm-6b-pt-128-2e-2 --overwrite_output_dir --max_source_length 64
    --max_target_length 64 --per_device_eval_batch_size 1 --predict_with_generate --pre_seq_len 128
    --quantization_bit 4"""
EVALUATE_FINETUNE = """--do_predict --validation_file AdvertiseGen/dev.json --test_file AdvertiseGen/dev.json
    --overwrite_cache --prompt_column content --response_column summary
    --model_name_or_path ./output/adgen-chatglm-6b-ft-1e-4/checkpoint-3000
    --output_dir ./output/adgen-chatglm-6b-ft-1e-4 --overwrite_output_dir --max_source_length 256
    --max_target_length 256 --per_device_eval_batch_size 1
    --predict_with_generate --fp16_full_eval"""
TRAIN_CHAT = """--do_train --train_file chat/train.json --validation_file chat/dev.json --prompt_column prompt
    --response_column response --history_column history --overwrite_cache --model_name_or_path THUDM/chatglm-6b
    --output_dir my_chat --overwrite_output_dir --max_source_length 256 --max_target_length 256
    --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --gradient_accumulation_steps 16
    --predict_with_generate --max_steps 3000 --logging_steps 10 --save_steps 1000 --learning_rate 1e-2
    --pre_seq_len 128 --quantization_bit 4"""
DS_TRAIN_FINETUNE = """--local_rank=0 --deepspeed deepspeed.json --do_train --train_file AdvertiseGen/train.json
    --test_file AdvertiseGen/dev.json --prompt_column content --response_column summary --overwrite_cache
    --model_name_or_path THUDM/chatglm-6b --output_dir ./output/adgen-chatglm-6b-ft-1e-4 --overwrite_output_dir
    --max_source_length 64 --max_target_length 64 --per_device_train_batch_size 4 --per_device_eval_batch_size 1
    --gradient_accumulation_steps 1 --predict_with_generate --max_steps 5000 --logging_steps 10 --save_steps 1000
    --learning_rate 1e-4 --fp16"""
WEB_DEMO = """--model_name_or_path THUDM/chatglm-6b
    --ptuning_checkpoint output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000 --pre_seq_len 128"""
ROWS = "--train_file t.json --test_file e.json --prompt_column p --response_column r"
LEAST = f"--model_name_or_path m --output_dir o {ROWS}"


def parse(line, task="train"):
    return parse_arguments(shlex.split(line), task=task)


def test_published_train_sh():
    model, data, training = parse(TRAIN)
    assert (model.model_name_or_path, model.pre_seq_len, model.quantization_bit) == ("THUDM/chatglm-6b", 128, 4)
    assert (data.prompt_column, data.response_column, data.overwrite_cache) == ("content", "summary", True)
    assert (data.max_source_length, data.max_target_length) == (64, 64)
    assert (training.do_train, training.do_predict, training.overwrite_output_dir) == (True, False, True)
    assert (training.max_steps, training.logging_steps, training.save_steps) == (3000, 10, 1000)
    assert (training.learning_rate, training.gradient_accumulation_steps) == (0.02, 16)
    assert training.report_to == []


@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_published_evaluate_sh(task):
    model, data, training = parse(EVALUATE, task)
    assert model.ptuning_checkpoint == "./output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000"
    assert (training.do_train, training.do_predict, training.predict_with_generate) == (False, True, True)
    assert data.test_file == "AdvertiseGen/dev.json"


def test_published_evaluate_finetune_sh():
    model, data, training = parse(EVALUATE_FINETUNE, "evaluate")
    assert training.fp16_full_eval is True
    assert (data.max_source_length, data.max_target_length, model.pre_seq_len) == (256, 256, None)


def test_published_train_chat_sh():
    _, data, training = parse(TRAIN_CHAT)
    assert (data.prompt_column, data.response_column, data.history_column) == ("prompt", "response", "history")
    assert training.learning_rate == 0.01


def test_published_ds_train_finetune_sh():
    model, _, training = parse(DS_TRAIN_FINETUNE)
    assert (training.fp16, training.per_device_train_batch_size, training.max_steps) == (True, 4, 5000)
    assert (training.deepspeed, model.pre_seq_len) == (None, None)


def test_published_web_demo_sh():
    parser = SettingsParser({"model and prefix": ModelArguments}, prog="ptuning web", description="")
    model = parser.parse(shlex.split(WEB_DEMO)).build(ModelArguments)
    assert (model.pre_seq_len, model.ptuning_checkpoint) == (128, "output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000")


def test_published_form_with_one_json_file(tmp_path):
    words = shlex.split(TRAIN)
    settings = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            settings[word[2:]] = True if following.startswith("--") else following
    settings |= {"max_steps": 3000, "learning_rate": 2e-2, "pre_seq_len": 128, "max_source_length": 64}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    from_file, from_flags = parse(str(path)), parse(TRAIN)
    assert from_file.model == from_flags.model
    assert from_file.data == from_flags.data
    assert from_file.given == from_flags.given
    assert from_file.config_file == path


def test_flags_that_transformers_5_dropped(monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    dropped = """--overwrite_output_dir --warmup_ratio 0.03 --evaluation_strategy steps --eval_steps 5
        --logging_dir runs/a --no_cuda --use_mps_device --fp16_backend auto
        --half_precision_backend auto --include_tokens_per_second
        --use_legacy_prediction_loop --use_auth_token True --per_gpu_train_batch_size 3 --save_safetensors False"""
    arguments = parse(f"{LEAST} --validation_file v.json {dropped}")
    training = arguments.training
    assert training.overwrite_output_dir is True
    assert training.warmup_steps == 0.03
    assert (training.eval_strategy.value, training.eval_steps, training.do_eval) == ("steps", 5, True)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "runs/a"
    assert (training.use_cpu, arguments.model.device) == (True, "cpu")
    assert training.per_device_train_batch_size == 3
    assert arguments.model.token is None


def test_length_grouping_under_its_old_and_its_new_name():
    fields = TuningArguments.__dataclass_fields__
    training = parse(f"{LEAST} --group_by_length").training
    if "train_sampling_strategy" in fields:
        assert training.train_sampling_strategy == "group_by_length"
    else:
        assert training.group_by_length is True


def test_the_verb_decides_what_is_done_unless_a_switch_does():
    assert parse(LEAST).training.do_train is True
    assert parse(f"{LEAST} --do_predict").training.do_train is False
    both = parse(f"{LEAST} --do_train --do_predict").training
    assert (both.do_train, both.do_predict) == (True, True)
    evaluation = parse(f"{LEAST} --do_train", "evaluate").training
    assert (evaluation.do_train, evaluation.do_predict) == (False, True)


def test_evaluate_takes_a_checkpoint_folder_first(tmp_path):
    arguments = parse_arguments([str(tmp_path), *shlex.split(ROWS)], task="evaluate")
    assert arguments.model.ptuning_checkpoint == str(tmp_path)
    assert arguments.training.output_dir == os.path.join("output", "evaluation")


def test_evaluate_takes_the_last_checkpoint_of_a_run_with_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.json").write_text("{}")
    for step in (5, 10):
        whole_checkpoint(tmp_path / "run", step)
    run = parse(f"{LEAST} --output_dir run --pre_seq_len 7 --do_train --token secret --max_target_length 9")
    saved = save_arguments(tmp_path / "run", run)
    assert "secret" not in saved.read_text()
    monkeypatch.chdir("/")
    for folder, step in (("run", 10), ("run/checkpoint-5", 5)):
        model, data, training = parse_arguments([str(tmp_path / folder), "--max_target_length", "8"], task="evaluate")
        assert model.ptuning_checkpoint == str(tmp_path / "run" / f"checkpoint-{step}")
        assert (model.model_name_or_path, model.token) == ("m", None)
        assert (data.test_file, data.max_target_length) == (str(tmp_path / "e.json"), 8)
        assert (training.do_train, training.output_dir) == (False, str(tmp_path / "run"))


def test_evaluate_with_a_settings_file_does_not_look_at_saved_ones(tmp_path):
    whole_checkpoint(tmp_path, 5)
    (tmp_path / "arguments.json").write_text('{"model_name_or_path": "saved"}')
    (tmp_path / "a.yaml").write_text("model_name_or_path: named\n")
    words = [str(tmp_path / "a.yaml"), str(tmp_path), *shlex.split(ROWS)]
    assert parse_arguments(words, task="evaluate").model.model_name_or_path == "named"


def test_another_form_of_rows_leaves_the_columns_of_the_run_aside(tmp_path):
    whole_checkpoint(tmp_path, 5)
    save_arguments(tmp_path, parse(f"{LEAST} --pre_seq_len 7"))
    assert parse_arguments([str(tmp_path)], task="evaluate").data.prompt_column == "p"
    for name in ("messages", "auto"):
        data = parse_arguments([str(tmp_path), "--row_format", name], task="evaluate").data
        assert (data.row_format, data.prompt_column, data.response_column) == (name, None, None)


def test_evaluate_says_when_the_folder_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        parse_arguments([str(tmp_path / "gone")], task="evaluate")


def test_the_cpu_may_be_asked_for_either_way():
    assert parse(f"{LEAST} --device cpu").training.use_cpu is True
    assert parse(f"{LEAST} --use_cpu").model.device == "cpu"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"--output_dir o {ROWS}", "--model_name_or_path is missing"),
        (f"--model_name_or_path m {ROWS}", "--output_dir FOLDER is missing"),
        ("--model_name_or_path m --output_dir o --prompt_column p --response_column r", "--train_file is missing"),
        ("--model_name_or_path m --output_dir o --train_file t --response_column r", "--prompt_column is missing"),
        (f"{LEAST} --do_eval", "--validation_file is missing: --do_eval"),
        (f"{LEAST} --device cuda --no_cuda", "contradict"),
        (f"{LEAST} --fp16 --bf16 --use_cpu", "fp16 and bf16"),
        (f"{LEAST} --logging_steps 0", "logging"),
        (f"{LEAST} --quantization_bit 3", "'3' is not one of 0, 4, 8"),
        (f"{LEAST} --learning_rat 1", "did you mean --learning_rate"),
        (f"{LEAST} --dataset_name x", "--train_file"),
        (f"{LEAST} --report_to wandb", "the package is not installed"),
        (f"{LEAST} --report_to tensorbord", "no such reporting package"),
        (f"{LEAST} --prefix_dropout 1", "allowed is 0 or more, below 1"),
        (f"{LEAST} --early_stopping_patience 2", "add --eval_strategy steps --eval_steps N"),
        (f"{LEAST} --eval_generate_samples 0", "must be 1 or more"),
        (f"somewhere {LEAST}", "'somewhere': not expected here"),
    ],
)
def test_what_is_missing_or_contradictory_is_named(line, message):
    with pytest.raises(UserError, match=message):
        parse(line)


def test_an_unused_validation_file_is_mentioned(caplog):
    parse(f"{LEAST} --validation_file v.json")
    assert "nothing looks at it" in caplog.text
    caplog.clear()
    parse(f"{LEAST} --validation_file v.json --do_eval")
    assert caplog.text == ""
