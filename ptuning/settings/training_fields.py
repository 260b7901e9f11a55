"""Every field of transformers' training arguments: whether it works here, what values it may have, and why it does not.

A run trains a prefix with a frozen model; much of what transformers offers is for other ways of training. A setting that
would be taken and do nothing, or that would change model or loss unnoticed, is refused with a reason wherever it
differs from its default. A field that none of these tables knows (of a newer transformers) is refused likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ptuning.settings.arguments import MAX_PROCESSES
from ptuning.settings.setting_limits import Limits

_SEED = Limits(min=0, max=2**32 - 1)
_SHARE = Limits(min=0, below=1)
_ONE = Limits(min=1)
_POSITIVE = Limits(above=0)
_NOT_NEGATIVE = Limits(min=0)

LIMITS: Mapping[str, Limits] = MappingProxyType(
    {
        "per_device_train_batch_size": _ONE,
        "per_device_eval_batch_size": _ONE,
        "gradient_accumulation_steps": _ONE,
        "num_train_epochs": Limits(min=0, max=10**9),
        "max_steps": Limits(min=-1, max=10**12),
        "learning_rate": _POSITIVE,
        "warmup_steps": Limits(min=0, max=10**12),
        "weight_decay": _NOT_NEGATIVE,
        "adam_beta1": _SHARE,
        "adam_beta2": _SHARE,
        "adam_epsilon": _POSITIVE,
        "max_grad_norm": Limits(min=0, why=" (0: gradients are not clipped)"),
        "label_smoothing_factor": Limits(min=0, below=1, why=" (at 1 the replies would not count at all)"),
        "torch_empty_cache_steps": _ONE,
        "logging_steps": _POSITIVE,
        "eval_steps": _POSITIVE,
        "save_steps": _POSITIVE,
        "eval_delay": _NOT_NEGATIVE,
        "eval_accumulation_steps": _ONE,
        "save_total_limit": Limits(min=1, why=" (leave it out to keep all checkpoints)"),
        "seed": _SEED,
        "data_seed": _SEED,
        "dataloader_num_workers": Limits(min=0, max=MAX_PROCESSES),
        "dataloader_prefetch_factor": Limits(min=1, max=1000),
        "ddp_bucket_cap_mb": _ONE,
        "ddp_timeout": Limits(min=1, max=10**9, why=" seconds"),
        "local_rank": Limits(min=-1, max=10**6),
        "prefix_dropout": Limits(min=0, below=1, why=" (published: 0.1)"),
        "eval_generate_samples": _ONE,
        "early_stopping_patience": _ONE,
        "early_stopping_threshold": _NOT_NEGATIVE,
    }
)
"""Ranges of numbers."""

_LOG_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
        "include_num_input_tokens_seen": ("no", "all", "non_padding", "True", "False"),
        "log_level": _LOG_LEVELS,
        "log_level_replica": _LOG_LEVELS,
        "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
        "ddp_backend": ("gloo", "nccl", "mpi", "ccl", "hccl", "cncl", "mccl", "xccl"),
    }
)
"""Texts of which transformers takes any, and does something else with an unknown one, or fails late."""

_HUB = "nothing is uploaded: the folder of a checkpoint is all there is to share (hf upload NAME FOLDER)"
_SHARDED = "only the prefix is trained and the model is frozen: there is nothing to shard; more GPUs: torchrun"
_ANSWERS = "answers are made and scored outside transformers' trainer: see --predict_with_generate"
_COMPILED = "the model is not compiled: its kernels are; leave it out"
_ORDER = "the order of the rows decides a run, and a resumed one must equal one without a stop"
_STOPS = "Ctrl-C and SIGTERM save a checkpoint by themselves"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "optim_target_modules": "a prefix has no linear layers that such optimisers (GaLore, APOLLO) would shrink",
        "torch_compile": _COMPILED,
        "torch_compile_backend": _COMPILED,
        "torch_compile_mode": _COMPILED,
        "use_liger_kernel": "Liger's kernels replace those of other models",
        "liger_kernel_config": "Liger's kernels replace those of other models",
        "use_cache": "training takes no cache, and answers always do",
        "neftune_noise_alpha": "the frozen model's embeddings get no noise: --prefix_dropout is what keeps a prefix from "
        "learning by heart",
        "auto_find_batch_size": "a run that starts over with another batch size is another run: when memory runs out, the "
        "message says what to lower; gradient checkpointing comes on by itself",
        "eval_do_concat_batches": _ANSWERS,
        "eval_use_gather_object": _ANSWERS,
        "include_for_metrics": _ANSWERS,
        "batch_eval_metrics": _ANSWERS,
        "generation_max_length": "the limit of answers is --val_max_target_length",
        "generation_num_beams": "beams are --num_beams",
        "generation_config": "answers are drawn as --generation, --num_beams and --val_max_target_length say",
        "sortish_sampler": "use --train_sampling_strategy group_by_length",
        "length_column_name": "lengths are counted, not read from a column",
        "enable_jit_checkpoint": _STOPS,
        "push_to_hub": _HUB,
        "hub_token": _HUB,
        "hub_private_repo": _HUB,
        "hub_model_id": _HUB,
        "hub_strategy": _HUB,
        "hub_always_push": _HUB,
        "hub_revision": _HUB,
        "accelerator_config": _ORDER,
        "dataloader_in_order": _ORDER,
        "ddp_static_graph": "it does not go with --gradient_accumulation_steps, and every step uses the whole prefix anyway",
        "parallelism_config": _SHARDED,
        "fsdp": _SHARDED,
        "fsdp_config": _SHARDED,
        "deepspeed": _SHARDED,
        "debug": "losses and gradients that are not numbers end a run by themselves, and their rows are named",
    }
)
"""Why a field is refused where it differs from its default, and what to do instead."""

FORCED: Mapping[str, object] = MappingProxyType(
    {
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,  # answers are generated and scored by ptuning.evaluation.predictions
        "logging_nan_inf_filter": False,  # it would show the mean of earlier losses, or 0.0, in place of NaN
        "restore_callback_states_from_checkpoint": True,  # early stopping counts on
    }
)
"""Fields with one right value for a frozen model with a prefix, whatever the installed transformers' default is."""

WORKS = frozenset(
    {
        "output_dir", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "average_tokens_across_devices",
        "bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "activation_checkpointing",
        "activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs", "logging_strategy",
        "logging_first_step", "log_on_each_node", "disable_tqdm", "report_to", "run_name", "eval_strategy", "eval_on_start",
        "save_only_model", "save_strategy", "save_on_each_node", "load_best_model_at_end", "metric_for_best_model",
        "greater_is_better", "ignore_data_skip", "full_determinism", "use_cpu", "dataloader_drop_last",
        "dataloader_pin_memory", "dataloader_persistent_workers", "ddp_find_unused_parameters", "ddp_broadcast_buffers",
        "skip_memory_metrics", "do_train", "do_eval", "do_predict", "resume_from_checkpoint",
        "predict_with_generate", "overwrite_output_dir", "prefix_format", "init_from", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id",
        # of older releases of transformers 5
        "group_by_length", "warmup_ratio", "logging_dir", "no_cuda",
    }
)  # fmt: skip
"""Further fields that do here what their help says; combinations: see :mod:`ptuning.training.settings_checks`."""

KNOWN = frozenset({*LIMITS, *CHOICES, *REFUSED, *FORCED, *WORKS})
