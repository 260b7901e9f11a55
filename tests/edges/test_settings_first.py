"""Mistakes in settings are told before anything is loaded: in one line, with the flag, with exit code 2.

What transformers, torch or accelerate would find while they build a trainer, at the first step or after an hour.
"""

import json

import pytest
from test_bad_inputs import GOOD, everything_in

from ptuning.core.errors import UserError
from ptuning.data.rows import Row
from ptuning.edges.cli import main
from ptuning.engine.generation import PRESETS, generate_answers
from ptuning.evaluation.predictions import evaluate_rows
from ptuning.settings.arguments import DataArguments
from ptuning.settings.training_arguments import TuningArguments

RUN = [
    "train", "--model_name_or_path", "tiny-chatglm", "--train_file", "rows.json", "--prompt_column", "content",
    "--response_column", "summary", "--output_dir", "out", "--pre_seq_len", "4", "--max_steps", "2", "--device", "cpu",
]  # fmt: skip
WATCHED = ["--eval_strategy", "steps", "--eval_steps", "1", "--validation_file", "rows.json"]
SCORED = [*WATCHED, "--predict_with_generate"]


def bad(flags, *words):
    """Flags of a run, and what the message holds."""
    return pytest.param(flags if isinstance(flags, list) else flags.split(), words, id=str(flags)[:70])


NUMBERS = [
    bad("--seed -1", "--seed -1", "0 or more"),
    bad("--seed 18446744073709551616", "--seed", "4294967295"),
    bad("--data_seed -3", "--data_seed -3"),
    bad("--learning_rate nan", "--learning_rate nan", "finite"),
    bad("--learning_rate=-inf", "--learning_rate -inf", "finite"),
    bad("--learning_rate -1", "--learning_rate -1", "more than 0"),
    bad("--learning_rate 0", "--learning_rate 0", "more than 0"),
    bad("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0", "1 or more"),
    bad("--gradient_accumulation_steps -2", "--gradient_accumulation_steps -2", "1 or more"),
    bad("--per_device_train_batch_size 0", "--per_device_train_batch_size 0"),
    bad("--per_device_eval_batch_size -8", "--per_device_eval_batch_size -8"),
    bad("--label_smoothing_factor -0.1", "--label_smoothing_factor -0.1", "below 1"),
    bad("--label_smoothing_factor 1", "--label_smoothing_factor 1", "would not count"),
    bad("--label_smoothing_factor 1.5", "--label_smoothing_factor 1.5", "below 1"),
    bad("--label_smoothing_factor nan", "--label_smoothing_factor nan"),
    bad("--weight_decay -0.1", "--weight_decay -0.1"),
    bad("--adam_beta1 1", "--adam_beta1 1", "below 1"),
    bad("--adam_beta2 nan", "--adam_beta2 nan"),
    bad("--adam_epsilon 0", "--adam_epsilon 0", "more than 0"),
    bad("--max_grad_norm -1", "--max_grad_norm -1"),
    bad("--warmup_steps -1", "--warmup_steps -1"),
    bad("--warmup_steps 1.5", "--warmup_steps 1.5", "whole"),
    bad("--warmup_ratio 1.5", "--warmup_ratio 1.5", "below 1"),
    bad("--logging_steps -5", "--logging_steps -5"),
    bad("--save_steps 0", "--save_steps 0"),
    bad("--save_steps 2.5", "--save_steps 2.5", "whole"),
    bad("--eval_steps -1", "--eval_steps -1"),
    bad("--save_total_limit 0", "--save_total_limit 0", "leave it out"),
    bad("--dataloader_num_workers -1", "--dataloader_num_workers -1"),
    bad("--dataloader_num_workers 1000000", "--dataloader_num_workers 1000000"),
    bad("--preprocessing_num_workers 1000000", "--preprocessing_num_workers 1000000"),
    bad("--num_beams 1000000", "--num_beams 1000000"),
    bad("--ddp_timeout 99999999999999999", "--ddp_timeout"),
    bad("--pre_seq_len 1000000000", "--pre_seq_len 1000000000", "GiB"),
    bad("--max_source_length 1000000000000", "--max_source_length 1000000000000", "2048"),
    bad("--max_target_length 2049", "--max_target_length 2049", "2048"),
    bad("--max_source_length 99999999999999999999", "--max_source_length"),
]

STEPS = [
    bad("--max_steps 0", "--max_steps 0", "no step would be taken"),
    bad("--max_steps -5", "--max_steps -5"),
    bad("--max_steps -1 --num_train_epochs 0", "--num_train_epochs 0", "no step would be taken"),
    bad("--num_train_epochs -1", "--num_train_epochs -1"),
    bad("--num_train_epochs 1e300", "--num_train_epochs 1e+300"),
    bad("--dataloader_drop_last --per_device_train_batch_size 50", "--dataloader_drop_last", "4 training rows", "50"),
    bad(["--dataloader_drop_last", "--per_device_train_batch_size", "2", *WATCHED], "--dataloader_drop_last", "validation"),
]

OPTIMISERS = [
    bad("--optim adamw_bnb_8bit", "--optim adamw_bnb_8bit", "bitsandbytes"),
    bad("--optim paged_lion_8bit", "--optim paged_lion_8bit", "install"),
    bad("--optim schedule_free_adamw", "--optim schedule_free_adamw", "schedulefree"),
    bad("--optim galore_adamw", "--optim galore_adamw", "prefix"),
    bad("--optim apollo_adamw_layerwise", "--optim apollo_adamw_layerwise", "prefix"),
    bad("--optim adalomo", "--optim adalomo"),
    bad("--optim adamw_torch_4bit", "--optim adamw_torch_4bit", "torchao"),
    bad("--optim_args garbage", "--optim_args garbage", "NAME=VALUE"),
    bad("--optim_args lr=", "--optim_args lr=", "NAME=VALUE"),
    bad("--optim_args speed=3", "--optim_args speed=3", "no argument speed"),
    bad("--optim sgd --optim_args momentum=nan", "momentum", "finite"),
    bad("--optim sgd --optim_args momentum=-1", "--optim sgd", "momentum"),
    bad("--optim sgd --optim_args momentum=fast", "--optim sgd", "fast"),
    bad("--optim sgd --adam_beta1 0.5", "--adam_beta1 0.5", "sgd"),
    bad("--optim rmsprop --optim_args nesterov=true", "--optim_args nesterov=true", "rmsprop"),
]

SCHEDULES = [
    bad("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr", "min_lr"),
    bad("--lr_scheduler_type warmup_stable_decay", "--lr_scheduler_type warmup_stable_decay", "num_decay_steps"),
    bad("--lr_scheduler_type reduce_lr_on_plateau", "--lr_scheduler_type reduce_lr_on_plateau", "eval strategy"),
    bad("--lr_scheduler_type greedy", "--lr_scheduler_type greedy", "eval strategy"),
    bad("--lr_scheduler_type polynomial --lr_scheduler_kwargs {\"lr_end\":5}", "--lr_scheduler_type polynomial", "lr_end"),
    bad("--lr_scheduler_type cosine --lr_scheduler_kwargs {\"cycles\":5}", "--lr_scheduler_type cosine", "cycles"),
    bad("--lr_scheduler_type cosine --lr_scheduler_kwargs {\"num_cycles\":NaN}", "--lr_scheduler_kwargs", "finite"),
    bad("--lr_scheduler_type polynomial --lr_scheduler_kwargs {\"lr_end\":-5}", "polynomial", "a learning rate of -"),
    bad("--lr_scheduler_kwargs {oops", "--lr_scheduler_kwargs {oops", "JSON"),
    bad("--lr_scheduler_kwargs [1]", "--lr_scheduler_kwargs", "object"),
    bad("--lr_scheduler_kwargs missing.json", "--lr_scheduler_kwargs missing.json", "JSON"),
    bad("--lr_scheduler_type constant --lr_scheduler_kwargs {\"a\":1}", "--lr_scheduler_type constant", "no arguments"),
    bad("--lr_scheduler_type constant --warmup_steps 1", "--warmup_steps 1", "constant_with_warmup"),
    bad([*SCORED, "--lr_scheduler_type", "reduce_lr_on_plateau", "--metric_for_best_model", "bleu-4"], "mode", "max"),
]  # fmt: skip

EVALUATIONS = [
    bad([*WATCHED, "--metric_for_best_model", "eval_foo"], "--metric_for_best_model foo", "eval_loss"),
    bad([*WATCHED, "--metric_for_best_model", "eval_bleu-4"], "--metric_for_best_model bleu-4", "--predict_with_generate"),
    bad([*SCORED, "--metric_for_best_model", "eval_bleu"], "--metric_for_best_model bleu", "eval_bleu-4"),
    bad([*WATCHED, "--metric_for_best_model", "loss", "--greater_is_better", "true"], "--greater_is_better", "worst"),
    bad("--load_best_model_at_end", "--load_best_model_at_end"),
    bad("--load_best_model_at_end --save_strategy no", "--load_best_model_at_end", "--eval_strategy"),
    bad([*WATCHED, "--load_best_model_at_end", "--save_strategy", "epoch"], "--load_best_model_at_end", "match"),
    bad([*WATCHED, "--early_stopping_patience", "1", "--early_stopping_threshold", "nan"], "--early_stopping_threshold nan"),
    bad("--save_strategy best", "--save_strategy best", "--eval_strategy"),
    bad("--eval_on_start", "--eval_on_start", "--eval_strategy"),
    bad("--eval_strategy steps --eval_steps 1", "--validation_file", "--eval_strategy needs rows"),
    bad([*SCORED, "--eval_generate_samples", "0"], "--eval_generate_samples 0"),
]

OTHERS = [
    bad("--neftune_noise_alpha 5", "--neftune_noise_alpha 5"),
    bad("--push_to_hub", "--push_to_hub", "nothing is uploaded"),
    bad("--hub_model_id me/x", "--hub_model_id me/x"),
    bad("--push_to_hub_model_id me/x", "--hub_model_id me/x"),
    bad("--torch_compile", "--torch_compile", "leave it out"),
    bad("--torch_compile_backend eager", "--torch_compile_backend eager"),
    bad("--fp16", "--fp16", "--dtype bfloat16"),
    bad("--bf16 --quantization_bit 4", "--bf16", "--dtype bfloat16"),
    bad("--bf16 --dtype float16", "--bf16", "--dtype bfloat16"),
    bad("--fp16_full_eval", "--fp16_full_eval", "--dtype float16"),
    bad("--tf32 true", "--tf32"),
    bad("--use_liger_kernel", "--use_liger_kernel"),
    bad("--auto_find_batch_size", "--auto_find_batch_size"),
    bad("--generation_num_beams 4", "--generation_num_beams 4", "--num_beams"),
    bad("--generation_config x", "--generation_config x"),
    bad("--accelerator_config {\"split_batches\":true}", "--accelerator_config"),
    bad("--fsdp full_shard", "--fsdp full_shard", "torchrun"),
    bad("--debug underflow_overflow", "--debug underflow_overflow"),
    bad("--train_sampling_strategy longest", "--train_sampling_strategy longest", "group_by_length"),
    bad("--include_num_input_tokens_seen some", "--include_num_input_tokens_seen some"),
    bad("--log_level loud", "--log_level loud", "warning"),
    bad("--ddp_backend tcp", "--ddp_backend tcp", "gloo"),
    bad("--label_names x", "--label_names", "leave it out"),
    bad("--dataloader_persistent_workers", "--dataloader_persistent_workers", "--dataloader_num_workers"),
    bad("--dataloader_multiprocessing_context spawn", "--dataloader_multiprocessing_context", "--dataloader_num_workers"),
    bad("--dataloader_prefetch_factor 2", "--dataloader_prefetch_factor", "--dataloader_num_workers"),
    bad("--gradient_checkpointing --gradient_checkpointing_kwargs {\"reentrant\":true}", "reentrant", "use_reentrant"),
    bad("--gradient_checkpointing --gradient_checkpointing_kwargs {\"use_reentrant\":\"maybe\"}", "use_reentrant maybe"),
    bad("--gradient_checkpointing --gradient_checkpointing_kwargs {\"offload\":true}", "offload"),
    bad("--report_to mlflow", "--report_to mlflow", "install"),
    bad("--project x", "--project x", "trackio"),
    bad(["--train_file", ""], "--train_file ''", "unset shell variable"),
    bad(["--model_name_or_path", ""], "--model_name_or_path ''", "unset shell variable"),
    bad(["--output_dir", ""], "--output_dir ''", "unset shell variable"),
    bad(["--init_from", " "], "--init_from", "unset shell variable"),
    bad(["--resume_from_checkpoint", ""], "--resume_from_checkpoint ''", "unset shell variable"),
    bad(["--run_name", "a\x1b[2Jb"], "--run_name", "U+001B"),
    bad(["--output_dir", "x" * 300], "--output_dir", "255 bytes"),
    bad(["--output_dir", "~nosuchuser/x"], "--output_dir ~nosuchuser/x", "no home folder"),
]  # fmt: skip


@pytest.fixture
def nothing_loaded(tmp_path, monkeypatch, capfd):
    """Run a command line in a folder with rows.json: its one line on standard error. A model may not be loaded."""
    (tmp_path / "rows.json").write_text(GOOD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ptuning.checkpoint.load.build", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    before = everything_in(tmp_path)

    def run(argv):
        assert main(argv) == 2
        shown = capfd.readouterr()
        assert "Traceback" not in shown.out + shown.err
        assert shown.err.count("error: ") == 1
        assert everything_in(tmp_path) == before
        *_, message = shown.err.strip().splitlines()
        assert message.startswith("error: ")
        return message

    return run


@pytest.mark.parametrize(("flags", "words"), [*NUMBERS, *STEPS, *OPTIMISERS, *SCHEDULES, *EVALUATIONS, *OTHERS])
def test_a_setting_that_cannot_be_is_told_before_anything_is_loaded(nothing_loaded, flags, words):
    message = nothing_loaded([*RUN, *flags])
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


EVALUATE = ["evaluate", *RUN[1:3], "--test_file", "rows.json", *RUN[5:9], "--output_dir", "out", "--device", "cpu"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        bad("--per_device_eval_batch_size 0", "--per_device_eval_batch_size 0", "1 or more"),
        bad("--per_device_eval_batch_size -1", "--per_device_eval_batch_size -1"),
        bad("--per_device_eval_batch_size 0 --num_beams 2", "--per_device_eval_batch_size 0"),
        bad("--num_beams 0", "--num_beams 0"),
        bad("--num_beams -1", "--num_beams -1"),
        bad("--val_max_target_length 5000", "--val_max_target_length 5000", "2048"),
        bad("--seed -1 --sampling", "--seed -1"),
        bad("--dtype float32 --bf16_full_eval", "--dtype float32", "--bf16_full_eval"),
        bad("--do_eval --validation_file rows.json", "--do_eval", "--do_train"),
        bad("--max_predict_samples 0", "--max_predict_samples 0"),
    ],
)
def test_an_evaluation_that_cannot_be_is_told_before_anything_is_loaded(nothing_loaded, flags, words):
    message = nothing_loaded([*EVALUATE, *flags])
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "leave it out"),
        ("ACCELERATE_USE_FSDP", "true", "torchrun"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "ACCELERATE_MIXED_PRECISION=fp16: a CPU does no mixed precision"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "deepspeed"),
        ("WORLD_SIZE", "many", "many"),
        ("ACCELERATE_TORCH_DEVICE", "gpu0", "gpu0"),
    ],
)
def test_what_a_launcher_left_in_the_environment_is_held_to_the_same(nothing_loaded, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    assert words in nothing_loaded(RUN)


def test_a_settings_file_is_held_to_the_same(nothing_loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "a.json"
    wrong = {"learning_rate": "nan", "seed": -1, "output_dir": "", "lr_scheduler_kwargs": {"lr_end": "x"}}
    for name, value in wrong.items():
        path.write_text(json.dumps({"lr_scheduler_type": "polynomial", name: value}), encoding="utf-8")
        pairs = [pair for pair in zip(RUN[1::2], RUN[2::2], strict=True) if pair[0] != f"--{name}"]
        assert name in nothing_loaded(["train", str(path), *(word for pair in pairs for word in pair)])


def test_python_code_is_held_to_the_same():
    for kind, name, value in (
        (TuningArguments, "learning_rate", float("nan")), (TuningArguments, "per_device_eval_batch_size", 0),
        (TuningArguments, "label_smoothing_factor", 2), (TuningArguments, "push_to_hub", True),
        (DataArguments, "num_beams", -1), (DataArguments, "max_source_length", 10**30), (DataArguments, "encoding", "\x00"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"--{name} "):
            kind(**{name: value})


@pytest.mark.parametrize(("sizes", "message"), [
    ({"batch_size": 0}, "batch_size 0: must be 1 or more"),
    ({"batch_size": -1, "num_beams": 2}, "batch_size -1: must be 1 or more"),
    ({"batch_size": 1, "num_beams": 0}, "num_beams 0: allowed is 1 or more"),
    ({"batch_size": 1, "num_beams": 10**6}, "num_beams 1000000: allowed is 1 or more, up to"),
    ({"batch_size": 1, "seeds": [1]}, "0 prompts, 0 limits, 1 seeds"),
])  # fmt: skip
def test_functions_check_their_sizes_themselves(tiny, sizes, message):
    with pytest.raises(UserError, match=message):
        generate_answers(*tiny, [], [], preset=PRESETS["greedy"], **sizes)
    if "seeds" not in sizes and "num_beams" not in sizes:
        with pytest.raises(UserError, match=message):
            evaluate_rows(*tiny, [Row("q", "a", None, "r:1")], DataArguments(), **sizes)


def test_a_batch_larger_than_the_rows_takes_no_room_for_what_is_not_there(tiny):
    from ptuning.data.truncation import prompt_ids

    prompts = [prompt_ids(tiny[1], "你好")]
    answers = list(generate_answers(*tiny, prompts, [2], batch_size=10**12, preset=PRESETS["greedy"]))
    assert [len(answer.ids) for answer in answers] == [2]
    assert list(generate_answers(*tiny, [], [], batch_size=4, preset=PRESETS["greedy"])) == []


@pytest.fixture(scope="module")
def tiny(golden):
    """A model and its tokenizer."""
    from ptuning import load_model, load_tokenizer

    return load_model(golden / "model", device="cpu"), load_tokenizer(golden / "model")


WORKING = [
    "--optim sgd --optim_args momentum=0.9,nesterov=true",
    "--optim adafactor --lr_scheduler_type inverse_sqrt --warmup_steps 1",
    '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":0.001} --warmup_steps 0.5',
    '--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {"num_decay_steps":1}',
    "--train_sampling_strategy sequential --include_num_input_tokens_seen non_padding --torch_empty_cache_steps 1",
    "--dataloader_num_workers 1 --dataloader_persistent_workers --dataloader_prefetch_factor 2 --data_seed 3",
    '--gradient_checkpointing --gradient_checkpointing_kwargs {"use_reentrant":true,"every_n_layers":2}',
    "--full_determinism --skip_memory_metrics false --max_grad_norm 0 --save_only_model --ignore_data_skip",
    "--bf16 --weight_decay 0.1 --adam_beta1 0 --log_level error --logging_first_step --report_to tensorboard",
]


@pytest.mark.slow
@pytest.mark.parametrize("flags", WORKING)
def test_what_is_said_to_work_does(command, tmp_path, flags):
    """Settings of the table that no other test trains with."""
    from runs import log_of, train

    argv = command(tmp_path / "run", max_steps=2, save_steps=2, logging_steps=1, lr_scheduler_type=None)
    checkpoint = train([*argv, *flags.split()]).checkpoint
    losses = [entry["loss"] for entry in log_of(checkpoint) if "loss" in entry]
    assert len(losses) == 2
    assert all(1 < loss < 20 for loss in losses)


def test_evaluations_that_are_said_to_work_do(command, tmp_path, rows_file):
    from runs import log_of, train

    flags = (
        "--eval_on_start --eval_accumulation_steps 1 --eval_delay 1 --lr_scheduler_type reduce_lr_on_plateau "
        '--save_strategy best --metric_for_best_model loss --lr_scheduler_kwargs {"patience":0} --early_stopping_patience 5'
    )
    argv = command(
        tmp_path / "run", max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, validation_file=rows_file,
        save_steps=None,
    )  # fmt: skip
    log = log_of(train([*argv, *flags.split()]).checkpoint)
    assert sum("eval_loss" in entry for entry in log) >= 2
