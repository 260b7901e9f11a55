"""What the tensors of a prefix say about it: its length, its projection, the model it belongs to.

Legend: P prefix slots, L layers, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.core.errors import UserError
from ptuning.core.reading import listed

PREFIX_KEY = "transformer.prefix_encoder."
"""Where the published state dict keeps the prefix encoder."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that weights may be stored in where they are not quantised."""

_PLAIN = frozenset({"embedding.weight"})
_PROJECTED = _PLAIN | {f"trans.{part}.{kind}" for part in (0, 2) for kind in ("weight", "bias")}
_FAMILIES = {2 * 28 * 4096: "ChatGLM-6B", 28 * 2 * 2 * 128: "ChatGLM2-6B or ChatGLM3-6B"}


class PrefixTensors(Mapping[str, Tensor]):
    """The tensors of a prefix by the encoder's own names, copied out of their files as float32 at every access.

    Args:
        parts: the tensors of each file, by their names in it.
        own_names: the encoder's names by those.
    """

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], own_names: Mapping[str, str]) -> None:
        self._parts, self._own_names = parts, own_names
        self._places = {own_names[name]: (part, name) for part in parts for name in part if name in own_names}

    def stored(self, name: str) -> Tensor:
        """A tensor as its file has it."""
        part, stored_name = self._places[name]
        return part[stored_name]

    def __getitem__(self, name: str) -> Tensor:
        return self.stored(name).to(torch.float32, copy=True)

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:  # through the file, which lets go of what was read
            yield from (self._own_names[name] for name in part if name in self._own_names)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class PrefixShape:
    """The shape of a prefix, read off its tensors.

    Attributes:
        pre_seq_len: P.
        projection: whether the two-layer projection is there.
        width: 2·L·D, the numbers of one slot over all layers.
        hidden_size: D where a projection tells it, else None.
    """

    pre_seq_len: int
    projection: bool
    width: int
    hidden_size: int | None

    def check_model(self, config: Any, where: Path) -> None:
        """Refuse a prefix of another backbone; both are named.

        Args:
            config: the backbone's :class:`~ptuning.model.config.ChatGLMConfig`.
            where: the prefix's file.

        Raises:
            UserError: another size or family.
        """
        width = 2 * config.num_layers * config.hidden_size
        if self.width == width and self.hidden_size in (None, config.hidden_size):
            return
        hidden = "" if self.hidden_size is None else f" and hidden size {self.hidden_size}"
        raise UserError(
            f"{where} holds a prefix of {self.width} numbers a slot{hidden}{_family(self.width)}; this model has "
            f"{config.num_layers} layers of hidden size {config.hidden_size} and needs {width}{_family(width)}: give the "
            "base model that the prefix was trained on"
        )

    def check_settings(self, settings: Mapping[str, Any], where: Path, settings_file: Path) -> None:
        """Refuse settings of another run: a mixed folder, or a save that ended between its files.

        Args:
            settings: of the same folder; may be empty.
            where: the prefix's file; likewise ``settings_file``.

        Raises:
            UserError: both shapes are named.
        """
        own = {"pre_seq_len": self.pre_seq_len, "prefix_projection": self.projection}
        wrong = [f"{key} {settings[key]} there, {own[key]} here" for key in own if settings.get(key, own[key]) != own[key]]
        if wrong:
            raise UserError(
                f"{settings_file} and {where.name} are of different runs ({'; '.join(wrong)}): copy both files from one "
                "checkpoint"
            )

    def check_flags(self, where: Path, pre_seq_len: int | None = None, prefix_projection: bool | None = None) -> None:
        """Refuse flags that contradict the prefix; None asks nothing.

        Raises:
            UserError: both are named.
        """
        if pre_seq_len is not None and pre_seq_len != self.pre_seq_len:
            raise UserError(
                f"{where} has pre_seq_len={self.pre_seq_len}, you passed {pre_seq_len}: leave --pre_seq_len out, it is "
                "read off the file"
            )
        if prefix_projection is not None and bool(prefix_projection) != self.projection:
            raise UserError(
                f"{where} has {'a' if self.projection else 'no'} projection, you passed prefix_projection="
                f"{prefix_projection}: leave the flag out, it is read off the file"
            )


def read_shape(shapes: Mapping[str, tuple[int, ...]], where: Path) -> PrefixShape:
    """Read the shape of a prefix off its tensors' shapes.

    Args:
        shapes: by the encoder's own names (``embedding.weight``, …).
        where: their file, for messages.

    Raises:
        UserError: tensors that are missing, unknown, or do not fit together.
    """
    if set(shapes) not in (_PLAIN, _PROJECTED):
        names = listed(sorted(shapes)) or "none"
        raise UserError(
            f"{where} holds no usable prefix: tensors under {PREFIX_KEY} are {names}; needed is embedding.weight, with "
            "projection also trans.0 and trans.2. A whole model without a prefix goes to --model_name_or_path"
        )
    embedding, projection = shapes["embedding.weight"], set(shapes) == _PROJECTED
    slots, hidden = embedding if len(embedding) == 2 else (0, 0)
    width = next(iter(shapes["trans.2.weight"]), 0) if projection else hidden
    expected: dict[str, tuple[int, ...]] = {"embedding.weight": (slots, hidden)}
    if projection:
        expected |= {
            "trans.0.weight": (hidden, hidden), "trans.0.bias": (hidden,),
            "trans.2.weight": (width, hidden), "trans.2.bias": (width,),
        }
    wrong = [f"{name} {list(shapes[name])}" for name in sorted(expected) if tuple(shapes[name]) != expected[name]]
    if wrong or 0 in (slots, hidden, width):
        raise UserError(
            f"{where} holds a prefix whose tensors do not fit together: {', '.join(wrong) or 'it is empty'}; needed are "
            "embedding.weight [P, 2*layers*hidden], or with projection embedding.weight [P, hidden], trans.0.weight "
            "[hidden, hidden], trans.2.weight [2*layers*hidden, hidden] and their biases"
        )
    return PrefixShape(slots, projection, width, hidden if projection else None)


def refuse_not_float(dtypes: Mapping[str, torch.dtype], where: Path) -> None:
    """Refuse a prefix that is stored as anything but ordinary numbers: cast, it would be another one without a word.

    Args:
        dtypes: of its tensors, by name.
        where: their file, for the message.

    Raises:
        UserError: with the tensor's name and dtype.
    """
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise UserError(
                f"{where}: {name} is stored as {dtype}; a prefix is float16, bfloat16 or float32: export it again"
            )


def refuse_not_finite(state: Mapping[str, Tensor], where: Path) -> None:
    """Refuse a prefix with NaN or infinity: a training run that went wrong, which could only answer blanks.

    Args:
        state: tensors by name.
        where: their file, for the message.

    Raises:
        UserError: with the tensor's name.
    """
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{where} holds NaN or infinity in {', '.join(broken)}: its training run went wrong; take an earlier checkpoint"
        )


def _family(width: int) -> str:
    """What a prefix width implies about the model family, in brackets."""
    return f" ({_FAMILIES[width]})" if width in _FAMILIES else ""
