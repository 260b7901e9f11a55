"""Small real runs of the training command, shared by the tests of training: rows, settings, what a folder holds."""

import json

from safetensors.torch import load_file


def write_rows(path, golden_cases):
    """The golden training rows as ADGEN rows."""
    rows = [{"content": row["prompt"], "summary": row["response"]} for row in golden_cases["train_rows"]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def small_run(model, rows_file, output_dir, **settings):
    """The flags of a run of twelve steps with the published names; a setting of None leaves its flag out."""
    values = {
        "do_train": True,
        "model_name_or_path": model,
        "train_file": rows_file,
        "prompt_column": "content",
        "response_column": "summary",
        "output_dir": output_dir,
        "pre_seq_len": 5,
        "max_source_length": 24,
        "max_target_length": 32,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 12,
        "logging_steps": 10,
        "save_steps": 5,
        "learning_rate": "2e-2",
        "disable_tqdm": True,
        "device": "cpu",
        **settings,
    }
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def train(argv):
    """Run the command in this process."""
    from ptuning.edges.run_arguments import parse_arguments
    from ptuning.edges.tuning import run_tuning

    return run_tuning(parse_arguments(argv, task="train"))


def prefix_of(folder):
    """The tensors of a checkpoint."""
    return load_file(folder / "prefix_encoder.safetensors")


def log_of(folder):
    """The log of a checkpoint, without what a clock wrote."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in entry.items() if "runtime" not in key and "second" not in key} for entry in history
    ]
