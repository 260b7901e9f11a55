"""Old flags: each is translated or set aside, and said once."""

import logging

import pytest

from ptuning.core.errors import UserError
from ptuning.settings.legacy_flags import LEGACY_FLAGS, legacy_for, translate


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("warmup_ratio", "0.1", ("warmup_steps", "0.1")),
        ("evaluation_strategy", "steps", ("eval_strategy", "steps")),
        ("no_cuda", "True", ("use_cpu", "True")),
        ("no_cuda", "False", ("use_cpu", "False")),
        ("adafactor", "True", ("optim", "adafactor")),
        ("adafactor", "False", None),
        ("load_in_8bit", "True", ("quantization_bit", "8")),
        ("use_auth_token", "True", None),
        ("use_auth_token", "hf_abc", ("token", "hf_abc")),
        ("use_auth_token", "False", None),
        ("use_mps_device", "True", None),
        ("trust_remote_code", "True", None),
    ],
)
def test_translation(name, raw, expected):
    assert translate(name, raw, LEGACY_FLAGS[name]) == expected


def test_a_data_set_of_the_hub_is_refused_with_the_way_out():
    with pytest.raises(UserError, match="--train_file"):
        translate("dataset_name", "adgen", LEGACY_FLAGS["dataset_name"])


def test_an_old_name_stays_itself_where_its_successor_does_not_exist_yet():
    assert "group_by_length" not in legacy_for({"group_by_length": None})
    assert "group_by_length" in legacy_for({"group_by_length": None, "train_sampling_strategy": None})
    assert "warmup_ratio" in legacy_for({"warmup_ratio": None, "warmup_steps": None})


def test_every_old_flag_is_told_about_once(caplog):
    from ptuning.edges.run_arguments import parse_arguments

    base = ["--model_name_or_path", "m", "--output_dir", "o", "--train_file", "t.json"]
    columns = ["--prompt_column", "p", "--response_column", "r"]
    with caplog.at_level(logging.WARNING, logger="ptuning"):
        parse_arguments([*base, *columns, "--fp16_backend", "amp", "--warmup_ratio", "0.1", "--gradient_checkpointing"])
    assert [record.getMessage() for record in caplog.records] == [
        "--fp16_backend amp: no effect: torch's own mixed precision is used",
        "--warmup_ratio 0.1: now --warmup_steps 0.1",
    ]
