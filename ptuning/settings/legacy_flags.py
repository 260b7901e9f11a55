"""Flags of older scripts: what became of each of them.

The published ChatGLM-6B scripts were written for transformers 4.27; transformers 5 no longer knows some of their flags
(its MIGRATION_GUIDE_V5), and others never had a meaning for ChatGLM-6B. All of them are accepted: translated where a
successor exists, set aside with a reason where none is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptuning.core.characters import shown
from ptuning.core.errors import UserError


@dataclass(frozen=True)
class Legacy:
    """The fate of one old flag.

    Args:
        target: the setting that took its place, or None where nothing did.
        value: what to set when the flag was switched on (None: the flag's own value).
        note: said once, in the log.
        quiet: the old spelling is as good as the new one, so nothing is said.
        refuse: the flag asks for something that cannot be done in silence; the note says what to do.
        keep: hand the flag's value on under its own name, for the command to act upon.
    """

    target: str | None = None
    value: str | None = None
    note: str = ""
    quiet: bool = False
    refuse: bool = False
    keep: bool = False


_NO_EFFECT = {
    "deepspeed": "only the prefix is trained, and its optimiser state is small enough for every device",
    "use_mps_device": "Apple's GPU is taken by itself where there is one (--device chooses)",
    "fp16_backend": "torch's own mixed precision is used",
    "half_precision_backend": "torch's own mixed precision is used",
    "fp16_opt_level": "torch's own mixed precision is used",
    "include_tokens_per_second": "the speed is always shown",
    "use_legacy_prediction_loop": "there is one prediction loop",
    "save_safetensors": "prefixes are always written as safetensors",
    "include_inputs_for_metrics": "the metrics never need the inputs",
    "sharded_ddp": "only the prefix is trained, there is nothing to shard",
    "fsdp_min_num_params": "only the prefix is trained, there is nothing to shard",
    "fsdp_transformer_layer_cls_to_wrap": "only the prefix is trained, there is nothing to shard",
    "past_index": "transformers no longer has it",
    "jit_mode_eval": "transformers no longer has it",
    "use_ipex": "transformers no longer has it",
    "ray_scope": "transformers no longer has it",
    "mp_parameters": "transformers no longer has it",
    "tpu_num_cores": "transformers no longer has it",
    "tpu_metrics_debug": "transformers no longer has it",
    "torchdynamo": "the model is not compiled: its kernels are",
    "dispatch_batches": "every process reads its own rows",
    "split_batches": "--per_device_train_batch_size is what one device gets",
    "use_fast_tokenizer": "ChatGLM-6B has one tokenizer",
    "resize_position_embeddings": "ChatGLM-6B has rotary positions",
    "config_name": "the configuration is read from the model's folder",
    "lang": "ChatGLM-6B needs no language name",
    "forced_bos_token": "ChatGLM-6B starts every reply with <sop>",
    "dataset_config_name": "rows are read from files",
    "trust_remote_code": "no code from a model's folder is ever run",
}

_SUCCESSORS = {
    "warmup_ratio": Legacy("warmup_steps"),
    "evaluation_strategy": Legacy("eval_strategy"),
    "no_cuda": Legacy("use_cpu"),
    "per_gpu_train_batch_size": Legacy("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Legacy("per_device_eval_batch_size"),
    "adafactor": Legacy("optim", value="adafactor"),
    "xpu_backend": Legacy("ddp_backend"),
    "push_to_hub_model_id": Legacy("hub_model_id"),
    "push_to_hub_token": Legacy("hub_token"),
    "group_by_length": Legacy("train_sampling_strategy", value="group_by_length"),
    "load_in_4bit": Legacy("quantization_bit", value="4"),
    "load_in_8bit": Legacy("quantization_bit", value="8"),
    "use_auth_token": Legacy("token"),
    "gradient_checkpointing": Legacy("activation_checkpointing", quiet=True),
    "gradient_checkpointing_kwargs": Legacy("activation_checkpointing_kwargs", quiet=True),
    "logging_dir": Legacy(note="taken as the environment variable TENSORBOARD_LOGGING_DIR", keep=True),
    "dataset_name": Legacy(
        refuse=True, note="rows are read from files: save the data set as .json and name it with --train_file"
    ),
}

LEGACY_FLAGS: Mapping[str, Legacy] = {
    **{name: Legacy(note=f"no effect: {reason}") for name, reason in _NO_EFFECT.items()},
    **_SUCCESSORS,
}
"""Every old flag by its name without dashes."""


def legacy_for(settings: Mapping[str, Any]) -> dict[str, Legacy]:
    """Return the old flags that have to be translated, given the settings that exist by name.

    A flag whose successor this version of transformers does not have yet is left alone: then the old name is itself
    still a setting. The same holds for one that a command keeps under its old name.
    """
    return {
        name: legacy
        for name, legacy in LEGACY_FLAGS.items()
        if (legacy.target is None and (name not in settings or name in ("deepspeed", "logging_dir")))
        or legacy.target in settings
    }


def translate(name: str, raw: str, legacy: Legacy) -> tuple[str, str] | None:
    """Turn an old flag and its text into (setting, text), or None where it has no effect.

    Raises:
        UserError: the flag asks for something that is not done here.
    """
    if legacy.refuse:
        raise UserError(f"--{name} {shown(raw)}: {legacy.note}")
    off = raw.lower() in ("false", "no", "0")
    if legacy.target is None:
        return (name, raw) if legacy.keep else None
    if legacy.value is not None:
        return None if off else (legacy.target, legacy.value)
    if name == "warmup_ratio" and not _is_share(raw):
        raise UserError(f"--warmup_ratio {shown(raw)}: allowed is 0 or more, below 1; a number of steps is --warmup_steps")
    if legacy.target == "token":
        # --use_auth_token alone meant "use the stored login", which is what happens without any token.
        return None if off or raw.lower() == "true" else ("token", raw)
    return legacy.target, raw


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) < 1
    except ValueError:
        return False


def notice(name: str, raw: str, legacy: Legacy, result: tuple[str, str] | None) -> str | None:
    """The one line to log for an old flag, or None where there is nothing to say."""
    if legacy.quiet:
        return None
    if legacy.note:
        return f"--{name} {shown(raw)}: {legacy.note}"
    if name == "use_auth_token":
        return f"--{name}: now --token" if result else f"--{name} {raw}: the stored login is used by itself"
    return f"--{name} {raw}: now --{result[0]} {result[1]}" if result else f"--{name} {raw}: no effect"
