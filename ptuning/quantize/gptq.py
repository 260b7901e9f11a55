"""Rounding a weight for the inputs it will see, in the published format (one float16 scale per row).

Legend: O output rows, I input columns, T calibration tokens.

Source of the idea: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (Frantar et al.
2022), in the equivalent form of "QuIP" (Chee et al. 2023, their LDLQ). What is minimised over the rounded Q is

    tr((W - Q) H (W - Q)^T),  H = X X^T,

the squared error of the layer's outputs on the inputs X [I, T]. With H = (U + 1) D (U + 1)^T, U strictly upper triangular
and D diagonal, the columns are rounded one after the other, each to what makes good for the errors before it:

    q_j = round(w_j + sum over i < j of (w_i - q_i) U_ij).

The error of a row is then the sum of D_j (rounding error of column j)^2. It takes one Cholesky factor and no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.core.errors import UserError
from ptuning.model.quantization import dequantize_weight, pack_int4, quantize_weight

COLUMNS = 128
"""Columns that are rounded before their errors are passed on to the later ones in one product."""

ROWS = 4096
"""Rows that are rounded at a time; rows do not know each other, so this bounds memory and changes nothing."""

SHRINKS = tuple(1.0 - 0.02 * step for step in range(31))
"""Scales tried against the plain rounding error weighted by D, as shares of max|w| / limit."""

NEIGHBOURS = (0.88, 0.94, 1.0, 1.06, 1.12)
"""Scales tried by rounding for real, as shares of the best one of those."""


@dataclass(frozen=True)
class CalibratedWeight:
    """A rounded weight and how good it is.

    Attributes:
        packed: int8, [O, I] (INT8) or [O, I/2] (INT4).
        scale: float16 [O].
        error: tr((W - Q) H (W - Q)^T) over tr(W H W^T), H without damping: squared error of the outputs, relative.
        nearest_error: the same for rounding to the nearest step.
    """

    packed: Tensor
    scale: Tensor
    error: float
    nearest_error: float


class Calibrator:
    """What the inputs of one linear say about rounding its weight.

    Memory: H, its factor and one more matrix of that size while they are made: 3 * 4 * I^2 bytes.

    Args:
        hessian: float32 [I, I], the sum of x x^T over the calibration tokens; it is used up.
        damping: added to the diagonal of H, as a share of its mean; keeps errors of rare inputs in bounds.
        act_order: round the columns of the largest inputs first; with one scale per row the order leaves no trace.

    Raises:
        UserError: inputs with NaN or infinity.
    """

    def __init__(self, hessian: Tensor, *, damping: float = 0.01, act_order: bool = True) -> None:
        diagonal = hessian.diagonal()
        if not torch.isfinite(diagonal).all():
            raise UserError("the calibration inputs hold NaN or infinity: the checkpoint is damaged, or its float type is")
        mean = float(diagonal.mean())
        added = damping * mean if mean > 0 else 1.0
        diagonal.add_(added)
        identity = torch.arange(len(hessian), device=hessian.device)
        self.order = diagonal.argsort(descending=True, stable=True) if act_order else identity
        self.hessian = hessian[self.order][:, self.order] if act_order else hessian
        self.factor, self.weights, more = _unit_upper_factor(self.hessian)
        self.added = added + more

    def round(self, weight: Tensor, bits: int) -> CalibratedWeight:
        """Round a weight [O, I] to 4 or 8 bits."""
        parts = [self._round_rows(rows, bits) for rows in weight.detach().split(ROWS)]
        packed, scale = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        errors, nearest, norms = (sum(float(part[i]) for part in parts) for i in (2, 3, 4))
        return CalibratedWeight(packed, scale, errors / max(norms, 1e-30), nearest / max(norms, 1e-30))

    def _round_rows(self, weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Packed weight, scale, and the squared errors of these rows: ours, the nearest step's, and their norm."""
        limit = 2 ** (bits - 1) - 1
        packed, nearest_scale = quantize_weight(weight, bits)  # refuses what is not finite
        rows = weight.float()[:, self.order]
        nearest = dequantize_weight(packed, nearest_scale, bits)[:, self.order]
        start = best_shrink(rows, nearest_scale, limit, self.weights)
        best = torch.zeros_like(rows)
        scale, lowest = start, torch.full_like(start, torch.inf)
        for share in NEIGHBOURS:
            tried = _storable(start * share)
            values, error = _round_columns(rows, self.factor, self.weights, tried, limit)
            better = error < lowest
            lowest, scale = torch.where(better, error, lowest), torch.where(better, tried, scale)
            best[better] = values[better]
        scale = self._refit(rows, best, scale)
        chosen = best * scale[:, None]
        # Where nothing was won (a row of zeros, say) the nearest step stands.
        ours, theirs = self._errors(rows - chosen), self._errors(rows - nearest)
        keep = (ours <= theirs) & (scale > 0)
        quantised = torch.empty_like(best)
        quantised[:, self.order] = best
        quantised = quantised.to(torch.int8)
        if bits == 4:
            quantised = pack_int4(quantised)
        packed = torch.where(keep[:, None], quantised, packed)
        half = torch.where(keep, scale, nearest_scale.float()).to(torch.float16)
        difference = torch.where(keep[:, None], rows - chosen, rows - nearest)
        ours, theirs, norm = (self._without_damping(each) for each in (difference, rows - nearest, rows))
        return packed, half, ours, theirs, norm

    def _refit(self, rows: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """The scale that suits the rounded values best, in closed form; the old one where float16 undoes the gain."""
        product = values @ self.hessian
        norm = (values * product).sum(1)
        fitted = _storable(torch.where(norm > 0, (rows * product).sum(1) / norm.clamp_min(1e-30), scale))
        better = self._errors(rows - values * fitted[:, None]) < self._errors(rows - values * scale[:, None])
        return torch.where(better, fitted, scale)

    def _errors(self, difference: Tensor) -> Tensor:
        return ((difference @ self.hessian) * difference).sum(1)

    def _without_damping(self, difference: Tensor) -> Tensor:
        """Squared error of the outputs on the calibration tokens themselves, a scalar."""
        return (self._errors(difference) - self.added * difference.square().sum(1)).sum().clamp_min(0)


def best_shrink(rows: Tensor, scale: Tensor, limit: int, weights: Tensor) -> Tensor:
    """The scale [O] with the least rounding error, the errors of the columns weighted.

    Args:
        rows: float32 [O, I].
        scale: float16 [O], of rounding to the nearest step.
        limit: largest value, 7 or 127.
        weights: [I].
    """
    best, lowest = scale.float(), torch.full((len(rows),), torch.inf, device=rows.device)
    for share in SHRINKS:
        tried = _storable(scale.float() * share)
        difference = rows - _nearest(rows, tried[:, None], limit) * tried[:, None]
        error = difference.square_() @ weights
        better = error < lowest
        lowest, best = torch.where(better, error, lowest), torch.where(better, tried, best)
    return best


def round_embedding(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round rows that are looked up, not multiplied: each gets the scale with the least squared error.

    Args:
        weight: [V, D].
        bits: 4 or 8.

    Returns:
        packed and scale, as :func:`~ptuning.model.quantization.quantize_weight`.
    """
    limit, parts = 2 ** (bits - 1) - 1, []
    for rows in weight.detach().split(ROWS):
        _, scale = quantize_weight(rows, bits)
        values = rows.float()
        scale = best_shrink(values, scale, limit, values.new_ones(values.shape[1]))
        rounded = _nearest(values, scale[:, None], limit).to(torch.int8)
        parts.append((pack_int4(rounded) if bits == 4 else rounded, scale.to(torch.float16)))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _unit_upper_factor(hessian: Tensor) -> tuple[Tensor, Tensor, float]:
    """U + 1 and D of H = (U + 1) D (U + 1)^T, and the damping that was added until float32 found H positive."""
    step, added = float(hessian.diagonal().mean()) * 0.01, 0.0
    for attempt in range(8):
        # The Cholesky factor of the flipped matrix, flipped back, is the upper one that starts at the last column.
        lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
        if not bool(failed):
            upper = lower.flip(0, 1)
            diagonal = upper.diagonal().clone()
            return upper.div_(diagonal), diagonal.square(), added
        hessian.diagonal().add_(step * 4**attempt)
        added += step * 4**attempt
    raise UserError("the calibration inputs cannot be used: their Hessian stays singular; take more or longer rows")


def _round_columns(
    rows: Tensor, factor: Tensor, weights: Tensor, scale: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Round column by column: values [O, I] in float32 and the error [O] of every row."""
    columns = rows.shape[1]
    errors, values = torch.zeros_like(rows), torch.zeros_like(rows)
    total = torch.zeros_like(scale)
    for start in range(0, columns, COLUMNS):
        end = min(start + COLUMNS, columns)
        aim = rows[:, start:end] + errors[:, :start] @ factor[:start, start:end]
        for column in range(start, end):
            target = aim[:, column - start]
            if column > start:
                target = target + errors[:, start:column] @ factor[start:column, column]
            value = _nearest(target, scale, limit)
            values[:, column] = value
            rounded = value * scale
            errors[:, column] = rows[:, column] - rounded
            total += weights[column] * (target - rounded).square()
    return values, total


def _nearest(values: Tensor, scale: Tensor, limit: int) -> Tensor:
    steps = values / scale.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(scale > 0, steps, 0.0).round().clamp(-limit - 1, limit)


def _storable(scale: Tensor) -> Tensor:
    """A scale as float16 keeps it, in float32."""
    return scale.to(torch.float16).float()
