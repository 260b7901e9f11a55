"""Values that a user can choose among, written once: settings, messages and the code that acts on them import these."""

from typing import Any, Literal, get_args

FAMILIES = ("chatglm",)
"""Generations of models that run here; ``model/families`` has what each is."""

Truncation = Literal["smart", "published"]
"""What goes where a prompt is too long; see the setting of this name."""

TruncatedReplies = Literal["open", "drop", "closed"]
"""What becomes of a training row whose reply is too long; see ``--truncated_replies``."""

LossOn = Literal["last", "all"]
"""Which replies of a dialogue are learnt."""

RowFormat = Literal["auto", "columns", "alpaca", "sharegpt", "messages"]
"""Forms of rows; auto finds it by the keys."""

FORMATS_WITH_COLUMNS_OF_THEIR_OWN: tuple[RowFormat, ...] = ("alpaca", "sharegpt", "messages")
"""Forms of rows whose columns nobody names."""

GenerationName = Literal["greedy", "published"]
"""How replies are drawn in an evaluation; what each stands for: :data:`ptuning.engine.generation.PRESETS`."""

DtypeName = Literal["float32", "float16", "bfloat16"]
"""Number formats of frozen weights."""

DtypeChoice = Literal["auto", "float32", "float16", "bfloat16"]
"""The same, or what suits the device."""

KernelName = Literal["auto", "reference", "cpu", "native", "triton", "cpm"]
"""Kernels of quantised linears; which one auto takes: :mod:`ptuning.kernels.dispatch`."""

PackedBits = Literal[4, 8]
"""Bits of a quantised weight."""

QuantizationBits = Literal[0, 4, 8]
"""The same, or 0 for none."""

WeightForm = Literal["safetensors", "bin"]
"""Formats of weight files."""

RoundingMethod = Literal["rtn", "gptq"]
"""Ways to round weights: to the nearest step, or calibrated on rows."""

PrefixForm = Literal["ptuning", "published", "both"]
"""Forms of a prefix in a checkpoint."""

MethodName = Literal["prefix"]
"""Tuning methods; the objects with these names are in :data:`ptuning.methods.registry.METHODS`."""

DEFAULT_METHOD: MethodName = "prefix"
"""How a run tunes that does not say."""


def values_of(choice: Any) -> tuple[Any, ...]:
    """The values of one of these, in their order."""
    return get_args(choice)


def allowed(choice: Any) -> str:
    """The same as the end of a message: ``4 and 8``, ``float32, float16 and bfloat16``."""
    *others, last = map(str, values_of(choice))
    return f"{', '.join(others)} and {last}" if others else last
