"""The figures published with ChatGLM-6B for P-Tuning v2 on ADGEN, for runs with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptuning.core.errors import UserError
from ptuning.core.reading import expanded, read_json

if TYPE_CHECKING:
    from ptuning.settings.training_arguments import Arguments

ADGEN = {"bleu-4": 8.10, "rouge-1": 31.12, "rouge-2": 7.11, "rouge-l": 24.97, "train_loss": 3.74}
"""From the table in the published P-Tuning README: INT4, 3000 steps of 16 rows, learning rate 2e-2."""

_SAME_TRAINING = {"learning_rate": 2e-2, "max_steps": 3000}
_SAME_DATA = {"max_source_length": 64, "max_target_length": 64}


def published_figures(arguments: Arguments, rows: Sequence[Any]) -> dict[str, Any]:
    """The published figures where a run can be held against them, else an empty mapping.

    That is: the 6B model in INT4, a prefix of 128 tokens without projection, 3000 steps of 16 rows at 2e-2, lengths 64 and
    64, and test rows of ADGEN's form, all of them. ``note`` says what still differs.
    """
    model, data, training = arguments
    checks = [
        *(getattr(training, name) == value for name, value in _SAME_TRAINING.items()),
        *(getattr(data, name) == value for name, value in _SAME_DATA.items()),
        training.per_device_train_batch_size * training.gradient_accumulation_steps * max(1, training.world_size) == 16,
        not arguments.checkpoints,
        model.pre_seq_len == 128 and not model.prefix_projection,
        _is_6b_int4(arguments),
        data.max_predict_samples is None and bool(rows) and all(row.prompt.startswith("类型#") for row in rows),
    ]
    if not all(checks):
        return {}
    sampled = data.generation == "published"
    note = "" if sampled else "the published evaluation samples (--generation published), this one takes the likeliest token"
    return {"source": "ChatGLM-6B, P-Tuning v2 on ADGEN", "scores": dict(ADGEN), "note": note}


def _is_6b_int4(arguments: Arguments) -> bool:
    """By the base model's ``config.json`` where it is a folder, else by its name on the hub."""
    name = arguments.model.model_name_or_path or ""
    try:
        config = read_json(expanded(name) / "config.json")
    except UserError:
        config = {"hidden_size": 4096, "num_layers": 28} if name.lower().startswith("thudm/chatglm-6b") else {}
        config["quantization_bit"] = 4 if name.lower().endswith("int4") else 0
    bits = config.get("quantization_bit") or arguments.model.quantization_bit
    return (config.get("hidden_size"), config.get("num_layers"), bits) == (4096, 28, 4)
