"""GPTQ-class calibration of a checkpoint on disk, layer by layer, in the memory of one layer.

The inputs of a layer come from the layers before it as they are after rounding; within a layer every linear sees the
linears before it rounded, too. A finished layer lies in a file of its own, so a stopped run resumes after it.

Legend: D hidden, I inner size (4D), T tokens of all calibration rows, padding of their batches included.

Memory, in bytes, float32 everywhere: hidden states 4TD; one layer 4(4D^2 + 2DI); Hessian of the widest linear and its
factor 12 I^2; while rounding 6 * 4 * 4096 * I; and the activations of one batch of rows, about 4 * 14D a token.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ptuning.checkpoint.file_list import LIST_FILE, add_to_file_list, check_listed, read_file_list
from ptuning.checkpoint.weight_files import read_tensors
from ptuning.core.atomic import remove_tree, replace_when_whole, writing
from ptuning.core.errors import UserError
from ptuning.core.progress import OpenProgress, silent
from ptuning.core.reading import guarded, parse_json, read_json
from ptuning.model.attention import DenseAttention
from ptuning.model.layers import run_layers
from ptuning.model.quantization import dequantize_weight
from ptuning.quantize.folder import QuantizationJob, QuantizedFolder, empty_model, quantize_checkpoint
from ptuning.quantize.gptq import Calibrator, round_embedding

logger = logging.getLogger(__name__)

ALGORITHM = 1
"""Goes up when the results of this file change, so that nothing half-finished is mixed with something else."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How the rounding is chosen.

    Attributes:
        damping: see :class:`~ptuning.quantize.gptq.Calibrator`.
        act_order: likewise.
        batch_size: calibration rows at a time.
    """

    damping: float = 0.01
    act_order: bool = True
    batch_size: int = 8


@dataclass
class _Batch:
    """Some rows on their way through the layers. hidden [B, T, D] lies on the CPU between two layers."""

    ids: Tensor
    real: Tensor
    hidden: Tensor


class _InputSeen(Exception):  # noqa: N818  # no error: it ends a forward pass once the input is known
    """Raised when the linear in question has received its input."""


def calibrate_checkpoint(
    job: QuantizationJob,
    rows: Sequence[Sequence[int]],
    settings: CalibrationSettings | None = None,
    progress: OpenProgress = silent,
) -> QuantizedFolder:
    """Write the target of a job, every weight rounded for the inputs that the calibration rows give it.

    Deterministic: the same source, rows, settings, device and torch give the same bits, in one go or in several.

    Args:
        job: from :func:`~ptuning.quantize.folder.plan_quantization`.
        rows: ids, each with a mask token and ``<sop>``; see :func:`~ptuning.data.calibration_rows.calibration_ids`.
        settings: None: the defaults.
        progress: opens a progress display.

    Raises:
        UserError: rows that do not fit the model, a damaged weight.
    """
    settings = settings or CalibrationSettings()
    _check(job, rows, settings)
    work = _Workshop(job, rows, settings)
    work.open()
    count = len(work.names.linears) * job.config.num_layers + 2 * job.embeddings
    with closing(progress("calibrating", count, unit="weight")) as display, torch.no_grad():
        work.run(display.advance)
    done = quantize_checkpoint(job, tensors=work.tensors(), extra_files={"calibration.json": work.report()})
    remove_tree(work.folder)
    return done


def _check(job: QuantizationJob, rows: Sequence[Sequence[int]], settings: CalibrationSettings) -> None:
    if not 0 < settings.damping <= 1:
        raise UserError(f"--damping {settings.damping}: allowed is more than 0, up to 1")
    if settings.batch_size < 1:
        raise UserError(f"--calibration_batch_size {settings.batch_size}: must be 1 or more")
    if not rows:
        raise UserError("calibration needs rows; none were given")
    highest = max(max(row) for row in rows)
    if highest >= job.config.vocab_size:
        raise UserError(f"a calibration row holds id {highest}; the model has {job.config.vocab_size} rows of embeddings")


class _Workshop:
    """The folder in which finished layers wait, and the walk through the layers."""

    def __init__(self, job: QuantizationJob, rows: Sequence[Sequence[int]], settings: CalibrationSettings) -> None:
        self.job, self.rows, self.settings = job, rows, settings
        self.folder = job.target.with_name(f".{job.target.name}.calibration")
        self.backbone = empty_model(job.config, 0, False).transformer  # on the meta device
        self.names = self.backbone.family.names

    # ---- what is on disk -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the folder, or take over one that was left by a run of the same source, rows and settings."""
        note, manifest = self.folder / "manifest.json", self._manifest()
        try:
            earlier = read_json(note)
        except UserError:
            earlier = None
        if earlier == manifest:
            self._drop_damaged()
            ready = len(list(self.folder.glob("*.safetensors")))
            logger.info("continuing in %s: %d parts are there", self.folder, ready)
            return
        if self.folder.exists():
            logger.info("starting from scratch: %s is of another source, other rows or other settings", self.folder)
            remove_tree(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True)
        with replace_when_whole(note) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")

    def _drop_damaged(self) -> None:
        """Remove finished layers that are not as they were written; they are rounded again, to the same bits."""
        for part in sorted(self.folder.glob("*.safetensors")):
            try:
                listed = read_file_list(self.folder)
                check_listed(part)
                if listed is None or part.name in listed:
                    continue
                reason = f"{part} is not on the list beside it"
            except UserError as error:
                reason = str(error)
            logger.warning("%s: rounded again", reason)
            remove_tree(part)
        if not list(self.folder.glob("*.safetensors")):
            remove_tree(self.folder / LIST_FILE)

    def _manifest(self) -> dict[str, Any]:
        """Everything that decides the result."""
        job = self.job
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in job.files.paths]
        ids = hashlib.sha256(json.dumps([list(row) for row in self.rows]).encode()).hexdigest()
        return {
            "algorithm": ALGORITHM,
            "source": str(job.source.resolve()),
            "files": [list(file) for file in files],
            "bits": job.bits,
            "embeddings": job.embeddings,
            "device": job.device.type,
            "rows": ids,
            **asdict(self.settings),
        }

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, tensors: dict[str, Tensor], errors: dict[str, list[float]]) -> None:
        with replace_when_whole(self._part(name)) as temporary:
            on_cpu = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
            save_file(on_cpu, temporary, metadata={"errors": json.dumps(errors)})
        add_to_file_list(self._part(name))

    def _reading(self, part: Path) -> AbstractContextManager[None]:
        return guarded(part, "part of a calibration", f"delete {self.folder} and give the same command again")

    def _rounded(self, part: Path, name: str) -> tuple[Tensor, Tensor]:
        """A weight of a finished part, mapped: packed, and its scale.

        Raises:
            UserError: the part is damaged.
        """
        with self._reading(part), safe_open(part, framework="pt") as file:
            packed, scale = file.get_tensor(name), file.get_tensor(f"{name}_scale")
            rows, columns = self.job.facts[name].shape
            shapes = (rows, columns * self.job.bits // 8), (rows,)
            if (tuple(packed.shape), tuple(scale.shape)) != shapes or packed.dtype != torch.int8:
                raise ValueError(f"{name} is of another shape")
            return packed, scale

    def report(self) -> str:
        """JSON: settings and, for every weight, the relative output error of nearest and of calibrated rounding."""
        errors: dict[str, list[float]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with self._reading(path), safe_open(path, framework="pt") as part:
                errors |= parse_json(part.metadata()["errors"])
        values = {
            "method": "gptq",
            "bits": self.job.bits,
            **asdict(self.settings),
            "calibration_rows": len(self.rows),
            "calibration_tokens": sum(len(row) for row in self.rows),
            "relative_output_error": {"columns": ["nearest", "calibrated"], **errors},
        }
        return json.dumps(values, indent=2) + "\n"

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The result in the order of the source's files."""
        for name, tensor in self.job.files.tensors():
            if name not in self.job.quantised:
                yield name, tensor.clone()
                continue
            packed, scale = self._rounded(self._part(self._part_of(name)), name)
            yield name, packed.clone()
            yield f"{name}_scale", scale.clone()

    # ---- the walk --------------------------------------------------------------------------------------------------

    def run(self, show: Callable[[int], None]) -> None:
        """Round the embedding (where asked), every layer, and the head (where asked)."""
        job = self.job
        batches = list(self._batches())
        self._embed(batches, show)
        for index in range(job.config.num_layers):
            part = self._part(f"layer-{index:03}")
            finished = part.exists()
            block = self._block(index, part if finished else None)
            if finished:
                show(len(self.names.linears))
            else:
                self._round_layer(index, block, batches, show)
            for batch in batches:
                batch.hidden = self._forward(block, batch).cpu()
        if job.embeddings:
            self._round_head(batches)
            show(1)

    def _batches(self) -> Iterator[_Batch]:
        """Rows of similar length together, padded on the right."""
        rows = sorted(map(list, self.rows), key=len)
        pad = int(self.job.config.pad_token_id)
        for start in range(0, len(rows), self.settings.batch_size):
            some = rows[start : start + self.settings.batch_size]
            longest = len(some[-1])
            ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in some])
            real = torch.arange(longest) < torch.tensor([len(row) for row in some])[:, None]
            yield _Batch(ids, real, torch.empty(0))

    def _embed(self, batches: list[_Batch], show: Callable[[int], None]) -> None:
        """Look up the first hidden states; only the rows that occur become floats."""
        part, name = self._part("embedding"), self.names.embedding
        weight = self._tensor(name)
        if self.job.embeddings and not part.exists():
            with self._naming(name):
                packed, scale = round_embedding(weight, self.job.bits)
            self._write("embedding", {name: packed, f"{name}_scale": scale}, {})
        if self.job.embeddings:
            packed, scale = self._rounded(part, name)
            show(1)
        for batch in batches:
            flat = batch.ids.flatten()
            if self.job.embeddings:
                rows = dequantize_weight(packed[flat], scale[flat], self.job.bits)
            else:
                rows = weight[flat].float()
            batch.hidden = rows.view(*batch.ids.shape, -1)

    def _tensor(self, name: str) -> Tensor:
        """One tensor of the source, mapped."""
        for path in self.job.files.paths:
            for tensor_name, tensor in read_tensors(path, name):
                if tensor_name == name:
                    return tensor
        raise UserError(f"{self.job.source} lacks {name}")  # cannot be: the plan has checked the names

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Tell which weight it was."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.job.source}: {name}: {error}") from error

    def _block(self, index: int, finished: Path | None) -> nn.Module:
        """One layer in float32: the source's, or with the weights that its finished part stands for."""
        block = copy.deepcopy(self.backbone.layers[index])
        prefix = f"{self.names.layers}{index}."
        state = {}
        for path in self.job.files.paths:
            for name, tensor in read_tensors(path, prefix):
                ready = finished is not None and name in self.job.quantised
                if not ready and not name.endswith(self.names.ignored):
                    state[name.removeprefix(prefix)] = tensor.to(self.job.device, torch.float32, copy=True)
        if finished is not None:
            for linear in self.names.linears:
                packed, scale = self._rounded(finished, f"{prefix}{linear}.weight")
                state[f"{linear}.weight"] = dequantize_weight(packed, scale, self.job.bits).to(self.job.device)
        block.load_state_dict(state, assign=True)
        return block.eval()

    def _round_layer(self, index: int, block: nn.Module, batches: list[_Batch], show: Callable[[int], None]) -> None:
        """Round the four linears of a block, one after the other, and put its part on disk."""
        tensors, errors = {}, {}
        for linear in self.names.linears:
            name, module = f"{self.names.layers}{index}.{linear}.weight", block.get_submodule(linear)
            with self._naming(name):
                calibrator = self._calibrator(block, module, batches)
                result = calibrator.round(module.weight, self.job.bits)  # type: ignore[arg-type]
            dense = dequantize_weight(result.packed, result.scale, self.job.bits)
            module.weight = nn.Parameter(dense, requires_grad=False)
            tensors[name], tensors[f"{name}_scale"] = result.packed, result.scale
            errors[name] = [result.nearest_error, result.error]
            show(1)
        self._write(f"layer-{index:03}", tensors, errors)

    def _calibrator(self, block: nn.Module, linear: nn.Module, batches: list[_Batch]) -> Calibrator:
        """Run the rows up to one linear and sum up what it is given."""
        size = int(linear.in_features)  # type: ignore[arg-type]
        hessian = torch.zeros(size, size, device=self.job.device)
        current: list[Tensor] = []

        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0][current[0]].float()
            hessian.addmm_(seen.T, seen)
            raise _InputSeen

        handle = linear.register_forward_pre_hook(watch)
        try:
            for batch in batches:
                current[:] = [batch.real.to(self.job.device)]
                try:
                    self._forward(block, batch)
                except _InputSeen:
                    continue
        finally:
            handle.remove()
        return Calibrator(hessian, damping=self.settings.damping, act_order=self.settings.act_order)

    def _forward(self, block: nn.Module, batch: _Batch) -> Tensor:
        """The output of one layer for a batch, [B, T, D]."""
        device = self.job.device
        ids = batch.ids.to(device)
        real = None if bool(batch.real.all()) else batch.real.to(device)
        positions, mask = self.backbone.position_ids(ids, real), self.backbone.mask(ids, real)
        return run_layers((block,), batch.hidden.to(device), self.backbone.context(positions, DenseAttention(), mask))

    def _round_head(self, batches: list[_Batch]) -> None:
        """Round the head for the hidden states that reach it."""
        if self._part("head").exists():
            return
        config, device, head = self.job.config, self.job.device, self.names.head
        norm = copy.deepcopy(self.backbone.get_submodule("final_layernorm"))
        state = {name: self._tensor(f"{self.names.final_norm}{name}") for name in norm.state_dict()}
        norm.load_state_dict({name: tensor.to(device, torch.float32) for name, tensor in state.items()}, assign=True)
        hessian = torch.zeros(config.hidden_size, config.hidden_size, device=device)
        for batch in batches:
            seen = norm(batch.hidden[batch.real].to(device))
            hessian.addmm_(seen.T, seen)
        calibrator = Calibrator(hessian, damping=self.settings.damping, act_order=self.settings.act_order)
        weight = self._tensor(head)
        with self._naming(head):
            result = calibrator.round(weight.to(device), self.job.bits)
        errors = {head: [result.nearest_error, result.error]}
        self._write("head", {head: result.packed, f"{head}_scale": result.scale}, errors)

    def _part_of(self, name: str) -> str:
        """Which part on disk holds a quantised weight."""
        if name in (self.names.embedding, self.names.head):
            return "embedding" if name == self.names.embedding else "head"
        return f"layer-{int(name.removeprefix(self.names.layers).partition('.')[0]):03}"
