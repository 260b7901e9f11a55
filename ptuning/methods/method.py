"""What a tuning method is to everybody else: trainer, checkpoints, evaluation, report, memory formulas and front ends ask
these two classes, and never which method it is.

A :class:`TuningMethod` acts on models: it attaches what is trained, finds it again, and says what a checkpoint holds of it.
An :class:`Adapter` is a checkpoint of a method as it was read, ready to be attached to a model of its sizes. Both are free
of files: what lies in a folder is read through :class:`CheckpointFiles` and written from :class:`AdapterFiles`, by
:mod:`ptuning.checkpoint.adapter`.

**How a tuned model answers.** A row of the engine carries key values of its own, or None for the model as it is. An adapter
that gives :meth:`Adapter.key_values` (a prefix) therefore never touches the model: any number of them answer side by side,
and the base model too. An adapter whose ``key_values`` is None changes the model itself: it is attached, its rows carry
None, and it answers alone, without the base model or other adapters beside it.

To add one: a module here with both classes, a line in :mod:`ptuning.methods.registry`, its name in
:data:`ptuning.core.choices.MethodName`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ptuning.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ptuning.model.answering import PrefixedModel
    from ptuning.model.config import ChatGLMConfig
    from ptuning.model.prefix_encoder import PrefixKeyValues
    from ptuning.model.sizes import ModelSizes
    from ptuning.settings.arguments import ModelArguments
    from ptuning.settings.training_arguments import TuningArguments


@dataclass(frozen=True)
class Words:
    """How a method is named in messages, logs, tables and reports.

    Attributes:
        noun: what is trained, in a word or two: ``prefix``.
        saved: what a log says is saved.
        loaded: what a log says is loaded.
        files: the files of a checkpoint, for the message that there are none.
        nothing_to_train: the error where a model has none of it.
        article: of the noun.
        labels: what one is called in a list, by language (``en``, ``zh``), with ``{slots}`` and ``{layers}`` where it helps;
            ``short_labels`` likewise, for a narrow list.
    """

    noun: str
    saved: str
    loaded: str
    files: str
    nothing_to_train: str
    article: str = "a"
    labels: Mapping[str, str] = field(default_factory=dict)
    short_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def one(self) -> str:
        """The noun with its article."""
        return f"{self.article} {self.noun}"

    def label(self, language: str, slots: int, layers: int) -> str:
        """What one is called in a list."""
        return self.labels.get(language, self.noun).format(slots=slots, layers=layers)

    def short_label(self, language: str, slots: int) -> str:
        """Likewise, in a narrow list."""
        return self.short_labels.get(language, self.noun).format(slots=slots)


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of a method.

    Attributes:
        default: where none is given.
        low, high: ends of the usual range; a warning names what lies outside.
        shown: the range in a hint.
        note: what the warning adds.
    """

    default: float
    low: float
    high: float
    shown: str
    note: str = ""


@dataclass(frozen=True)
class TuningCost:
    """What a method adds to a backbone, as the memory formulas ask for it.

    Attributes:
        noun: of the method; a part of an estimate has this name.
        trained: m, numbers trained, in float32.
        slots: P, positions in front of every row; 0 for none.
        states: n, numbers in the keys and values of these.
        projected: whether the states come out of a network, which holds them in float32 as well.
        text: one line of ``ptuning info``, without the numbers trained.
        missing: the error where there is nothing to train.
    """

    noun: str
    trained: int
    slots: int = 0
    states: int = 0
    projected: bool = False
    text: str = ""
    missing: str = ""


class CheckpointFiles(Protocol):
    """A checkpoint folder, or one weight file that was named, as a method reads it. Names are those of files in the folder;
    whatever is damaged, cut short or no regular file raises :class:`UserError`."""

    folder: Path
    named: str | None
    """The one file that was named in place of its folder."""

    def has(self, name: str) -> bool:
        """Whether there is a regular file of that name."""

    def is_file(self, name: str) -> bool:
        """As :meth:`has`, but a folder or a pipe of that name counts as absent instead of raising."""

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, which must be there."""

    def tensor_names(self, name: str) -> Sequence[str]:
        """The tensors of a weight file, from its header alone."""

    def tensors(self, name: str, starting_with: str = "") -> Mapping[str, Tensor]:
        """The tensors of a weight file that agrees with the list of files beside it, by their names in it. They are mapped:
        a tensor is read when it is used, even if the file has been replaced by then."""

    def model_weights(self) -> Sequence[str]:
        """The weight files of a whole model; empty where there are none."""

    def warn_of_changes(self, name: str) -> None:
        """Warn where a JSON file that was read differs from the list of files beside it, and may."""


@dataclass(frozen=True)
class AdapterFiles:
    """What goes into a checkpoint folder, by file name.

    Attributes:
        tensors: weight files; the ending decides the form (``.safetensors``, or ``.bin`` as PyTorch writes it).
        values: JSON files.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter(ABC):
    """A checkpoint of a method, read.

    Attributes:
        tensors: by the method's own names, on the CPU; they may be read from their files whenever they are asked for.
        settings: what the checkpoint says of itself (base model, fingerprint, prompt settings); may be empty.
        path: the file that the tensors came from.
    """

    tensors: Mapping[str, Tensor]
    settings: dict[str, Any]
    path: Path

    @property
    def slots(self) -> int:
        """P, positions in front of every row."""
        return 0

    @property
    @abstractmethod
    def method(self) -> TuningMethod:
        """Whose checkpoint it is."""

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """Keywords of :func:`ptuning.data.preprocess.prompt_ids` that it was trained with."""
        return {
            "source_prefix": self.settings.get("source_prefix") or "",
            "legacy": bool(self.settings.get("history")) and bool(self.settings.get("legacy_first_round")),
        }

    def hold_against(self, flags: Mapping[str, Any]) -> None:
        """Refuse settings that contradict the checkpoint; None asks nothing.

        Raises:
            UserError: with the flag and what the checkpoint holds. Unless a method knows better, any flag.
        """
        for name, value in flags.items():
            if value is not None:
                one = self.method.words.one
                raise UserError(f"--{name} {value}: {self.path} holds {one}, which has no {name}; leave it out")

    @abstractmethod
    def check_model(self, config: ChatGLMConfig) -> None:
        """Refuse a model of other sizes, by its configuration alone.

        Raises:
            UserError: both are named.
        """

    @abstractmethod
    def attach(self, model: PrefixedModel) -> None:
        """Put it on a model, in place of an earlier one of the same method. The model's own numbers can be had back:
        :meth:`TuningMethod.disabled`, :meth:`TuningMethod.detach`.

        Raises:
            UserError: see :meth:`check_model`.
        """

    @abstractmethod
    def load_into(self, model: PrefixedModel) -> None:
        """Copy its tensors into those that a model of a running training has attached: these stay the same objects.

        Raises:
            UserError: other shapes than this run trains.
        """

    def key_values(self, model: PrefixedModel) -> PrefixKeyValues | None:
        """Keys and values that a row of the engine reads, per layer [1, N, P, H]; None where the model itself must change
        (see the head of this file)."""
        return None

    @abstractmethod
    def description(self, config: ChatGLMConfig) -> str:
        """Its shape in a few words, for logs."""

    @abstractmethod
    def cost(self, sizes: ModelSizes) -> TuningCost:
        """What it adds to a backbone."""


class TuningMethod(ABC):
    """One way to tune a model.

    Attributes:
        name: as in :data:`ptuning.core.choices.MethodName`.
        words: how it is named to users.
        learning_rates: default and usual range.
        marker_files: a folder with one of these is taken for a checkpoint rather than the output folder of a run.
        model_settings: settings of the model that are this method's; ``training_settings`` likewise, of the run. They decide
            how a run comes out.
        unsuitable_optimisers: parts of an optimiser's name, and why it does not suit.
        suitable_optimisers: what to take instead.
    """

    name: ClassVar[str]
    words: ClassVar[Words]
    learning_rates: ClassVar[LearningRates]
    marker_files: ClassVar[tuple[str, ...]]
    model_settings: ClassVar[tuple[str, ...]] = ()
    training_settings: ClassVar[tuple[str, ...]] = ()
    unsuitable_optimisers: ClassVar[Mapping[str, str]] = {}
    suitable_optimisers: ClassVar[str] = "adamw_torch and adafactor"

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def recognises(self, files: CheckpointFiles) -> bool:
        """Whether a folder has anything that :meth:`read` could read; a whole model's files may be among it."""
        return any(files.has(name) for name in self.marker_files)

    def is_checkpoint(self, files: CheckpointFiles) -> bool:
        """Whether a folder is a checkpoint of this method rather than a whole model (cheap: names, at most one header)."""
        return self.recognises(files) and not files.model_weights()

    @abstractmethod
    def read(self, files: CheckpointFiles) -> Adapter:
        """Read a checkpoint.

        Raises:
            UserError: damaged files, or tensors and settings that do not fit together.
        """

    @abstractmethod
    def files(
        self, model: PrefixedModel, settings: Mapping[str, Any], training: TuningArguments | None = None
    ) -> AdapterFiles:
        """What a checkpoint of the model's tuned part holds.

        Args:
            model: with the method attached.
            settings: base model, fingerprint and prompt settings of the run; they go into a JSON file.
            training: settings of the run, which may choose a form.
        """

    # ---- models ------------------------------------------------------------------------------------------------------

    def check_settings(self, model: ModelArguments) -> None:  # noqa: B027  # most methods need nothing
        """Refuse a training run whose settings do not say what is to be trained.

        Raises:
            UserError: with the flag that is missing.
        """

    @abstractmethod
    def attach_new(self, model: PrefixedModel, settings: ModelArguments) -> None:
        """Put what will be trained on a loaded model, freshly initialised; nothing else of it stays trainable."""

    def begin_training(self, model: PrefixedModel, training: TuningArguments) -> None:  # noqa: B027  # likewise
        """Apply settings of the run to the attached parameters."""

    @abstractmethod
    def is_active(self, model: PrefixedModel) -> bool:
        """Whether the model answers with something of this method now: attached, and not disabled."""

    @abstractmethod
    def disabled(self, model: PrefixedModel) -> AbstractContextManager[None]:
        """Within this context the model answers as the base model, bit for bit, with the base model's prompts."""

    @abstractmethod
    def detach(self, model: PrefixedModel) -> None:
        """Make the model the base model again."""

    def trained_parameters(self, model: PrefixedModel) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    @abstractmethod
    def state(self, model: PrefixedModel) -> Mapping[str, Tensor]:
        """The tensors that make the tuned model differ from the base model, by the method's own names."""

    @abstractmethod
    def cost(self, model: PrefixedModel) -> TuningCost:
        """What is attached to a model adds to it."""

    @abstractmethod
    def planned_cost(self, settings: ModelArguments, config: ChatGLMConfig) -> TuningCost:
        """What a new one would add, by flags and ``config.json``."""
