"""The figures published with ChatGLM-6B for P-Tuning v2 on ADGEN, for runs with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptuning.settings.arguments import ModelArguments
    from ptuning.settings.training_arguments import Arguments

ADGEN = {"bleu-4": 8.10, "rouge-1": 31.12, "rouge-2": 7.11, "rouge-l": 24.97, "train_loss": 3.74}
"""From the table in the published P-Tuning README: INT4, 3000 steps of 16 rows, learning rate 2e-2."""

_SAME_TRAINING = {"learning_rate": 2e-2, "max_steps": 3000}
_SAME_DATA = {"max_source_length": 64, "max_target_length": 64}


def published_figures(arguments: Arguments, rows: Sequence[Any], config: Any = None) -> dict[str, Any]:
    """The published figures where a run can be held against them, else an empty mapping.

    That is: the 6B model in INT4, a prefix of 128 tokens without projection, 3000 steps of 16 rows at 2e-2, lengths 64 and
    64, and test rows of ADGEN's form, all of them. ``note`` says what still differs.

    Args:
        arguments: of the run.
        rows: the test rows.
        config: of the base model, where it was opened; else its name on the hub tells what it is.
    """
    model, data, training = arguments
    checks = [
        *(getattr(training, name) == value for name, value in _SAME_TRAINING.items()),
        *(getattr(data, name) == value for name, value in _SAME_DATA.items()),
        training.per_device_train_batch_size * training.gradient_accumulation_steps * max(1, training.world_size) == 16,
        not arguments.checkpoints,
        model.pre_seq_len == 128 and not model.prefix_projection,
        _is_6b_int4(arguments.model, config),
        data.max_predict_samples is None and bool(rows) and all(row.prompt.startswith("类型#") for row in rows),
    ]
    if not all(checks):
        return {}
    sampled = data.generation == "published"
    note = "" if sampled else "the published evaluation samples (--generation published), this one takes the likeliest token"
    return {"source": "ChatGLM-6B, P-Tuning v2 on ADGEN", "scores": dict(ADGEN), "note": note}


def _is_6b_int4(model: ModelArguments, config: Any) -> bool:
    name = (model.model_name_or_path or "").lower()
    if config is None:
        return name.startswith("thudm/chatglm-6b") and (name.endswith("int4") or model.quantization_bit == 4)
    bits = config.quantization_bit or model.quantization_bit
    return (config.hidden_size, config.num_layers, bits) == (4096, 28, 4)
