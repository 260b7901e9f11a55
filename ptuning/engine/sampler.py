"""From scores to the next token of every row, all rows at once, each by its own settings and its own random numbers.

Legend: A rows, V vocabulary, K likeliest tokens considered.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random, SystemRandom

import torch
from torch import Tensor

from ptuning.engine.request import Request
from ptuning.kernels.screening import MAX_LIKELIEST

BROKEN = -1
"""In place of a token where a row's scores are NaN or infinite."""
_FIRST_LOOK = 1024  # likeliest tokens among which top_p usually ends; sorting a whole vocabulary is slow


class RowSampler:
    """What the sampling of one row has to remember.

    Attributes:
        random: the request's own random numbers, one a token, whatever else is in the batch.
        seen: bool [V], tokens of prompt and answer; only with a repetition penalty.
        followers: what followed each run of n-1 tokens; only with ``no_repeat_ngram_size``.
    """

    def __init__(self, request: Request, vocabulary: int, device: torch.device) -> None:
        self.sampling = request.sampling
        self._prompt_ids, self._vocabulary, self._device = request.prompt_ids, vocabulary, device
        self._seed = SystemRandom().getrandbits(63) if self.sampling.seed is None else self.sampling.seed
        self.rewind(())

    def rewind(self, ids: Sequence[int]) -> None:
        """Return to the state after the tokens ``ids`` of the answer: a step that failed may have drawn more."""
        self.random = Random(self._seed)
        for _ in ids:
            self.random.random()
        self.seen: Tensor | None = None
        self.followers: dict[tuple[int, ...], set[int]] = {}
        self.recent: tuple[int, ...] = ()
        standing = (*self._prompt_ids, *ids)
        if self.sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(self._vocabulary, dtype=torch.bool, device=self._device)
            self.seen[torch.tensor(standing, device=self._device)] = True
        for token in standing if self.sampling.no_repeat_ngram_size else ():
            self.add(token)

    def add(self, token: int) -> None:
        """One more token stands in the row (host side; the rest is :meth:`Sampler.sample`'s)."""
        size = self.sampling.no_repeat_ngram_size
        if size:
            if len(self.recent) == size - 1:
                self.followers.setdefault(self.recent, set()).add(token)
            self.recent = (*self.recent, token)[-(size - 1) :] if size > 1 else ()

    def forbidden(self) -> set[int]:
        """Tokens that would repeat a run."""
        return self.followers.get(self.recent, set()) if self.sampling.no_repeat_ngram_size else set()


class Sampler:
    """The settings of a batch's rows as tensors; made again when rows come or go, not per token.

    Args:
        rows: in the order of the batch.
        device: of the scores.

    Attributes:
        max_likeliest: K, so many of the likeliest tokens are all that :meth:`sample_likeliest` needs; 0: the scores of
            all tokens.
    """

    def __init__(self, rows: Sequence[RowSampler], device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.penalised, self.penalties, self.seen = self._penalties()
        self.ngram = [number for number, row in enumerate(rows) if row.sampling.no_repeat_ngram_size]
        drawn = [number for number, row in enumerate(rows) if not row.sampling.greedy]
        with_top_k = [number for number in drawn if rows[number].sampling.top_k]
        without_top_k = [number for number in drawn if not rows[number].sampling.top_k]
        self.groups = [_Group(group, rows, device) for group in (with_top_k, without_top_k) if group]
        max_top_k = max((rows[number].sampling.top_k for number in with_top_k), default=1)
        all_scores = without_top_k or self.ngram or self.penalised is not None or max_top_k > MAX_LIKELIEST
        self.max_likeliest = 0 if all_scores else max_top_k

    def _penalties(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Rows with a repetition penalty: their numbers, penalties [r, 1], and tokens seen [r, V], shared with the rows."""
        penalised = [number for number, row in enumerate(self.rows) if row.seen is not None]
        if not penalised:
            return None, None, None
        seen = torch.stack([self.rows[number].seen for number in penalised])  # type: ignore[misc]
        for place, number in enumerate(penalised):
            self.rows[number].seen = seen[place]
        penalties = [[self.rows[number].sampling.repetition_penalty] for number in penalised]
        return torch.tensor(penalised, device=self.device), torch.tensor(penalties, device=self.device), seen

    def sample(self, logits: Tensor) -> Tensor:
        """The next token of every row, [A], on the device: nothing here waits for it, unless ``top_k`` is 0.

        Args:
            logits: [A, V]; not changed.
        """
        low, high = logits.amin(dim=-1), logits.amax(dim=-1)  # five times as fast as aminmax of a dimension on a CPU
        broken = ~(torch.isfinite(low) & torch.isfinite(high))
        scores = logits.float() if self.groups or self.penalised is not None else logits
        if self.penalised is not None and self.penalties is not None and self.seen is not None:
            some = scores[self.penalised]
            penalised = torch.where(some < 0, some * self.penalties, some / self.penalties)
            scores = scores.index_copy(0, self.penalised, torch.where(self.seen, penalised, some))
        scores = self._forbid(scores, logits)
        tokens = scores.argmax(dim=-1)
        for group in self.groups:
            tokens[group.numbers] = group.draw(scores[group.numbers])
        if self.penalised is not None and self.seen is not None:
            self.seen.scatter_(1, tokens[self.penalised, None], True)
        return tokens.masked_fill_(broken, BROKEN)

    def sample_likeliest(self, values: Tensor, tokens: Tensor) -> Tensor:
        """The next token of every row, [A], from its likeliest ones; where :attr:`max_likeliest` is not 0.

        Args:
            values: [A, K] float32, scores of the likeliest tokens, falling; NaN in a row that is broken.
            tokens: [A, K] whose they are.
        """
        next_tokens = tokens[:, 0].clone()
        for group in self.groups:
            next_tokens[group.numbers] = group.draw_likeliest(values[group.numbers], tokens[group.numbers])
        return next_tokens.masked_fill_(~torch.isfinite(values[:, 0]), BROKEN)

    def _forbid(self, scores: Tensor, logits: Tensor) -> Tensor:
        """Scores without the tokens that would repeat a run."""
        pairs = [(number, token) for number in self.ngram for token in self.rows[number].forbidden()]
        if not pairs:
            return scores
        if scores is logits:
            scores = scores.clone()
        where = torch.tensor(pairs, device=self.device)
        scores[where[:, 0], where[:, 1]] = -torch.inf
        return scores


class _Group:
    """Rows that sample, all with ``top_k`` or all without."""

    def __init__(self, group: Sequence[int], rows: Sequence[RowSampler], device: torch.device) -> None:
        self.rows = [rows[number] for number in group]
        settings = [row.sampling for row in self.rows]
        self.numbers = torch.tensor(group, device=device)
        self.temperature = torch.tensor([[s.temperature] for s in settings], device=device)
        self.top_p = torch.tensor([[s.top_p] for s in settings], device=device)
        self.max_top_k = max(s.top_k for s in settings)
        self.top_k = torch.tensor([[s.top_k] for s in settings], device=device)
        self.same_top_k = len({s.top_k for s in settings}) == 1

    def draw(self, scores: Tensor) -> Tensor:
        """One token of every row [A, V] float32, by its next random number."""
        vocabulary = scores.shape[-1]
        if self.max_top_k:
            return self.draw_likeliest(*scores.topk(min(self.max_top_k, vocabulary), dim=-1))
        drawn, scores = self._random(), self._cooled(scores, scores.amax(dim=-1, keepdim=True))
        total = scores.logsumexp(dim=-1, keepdim=True)
        likeliest = scores.topk(min(_FIRST_LOOK, vocabulary), dim=-1)
        shares = (likeliest.values - total).exp()
        if bool((shares.sum(dim=-1, keepdim=True) < self.top_p).any()) and vocabulary > _FIRST_LOOK:
            ordered = scores.sort(dim=-1, descending=True)
            return _draw((ordered.values - total).exp(), ordered.indices, self.top_p, drawn)
        return _draw(shares, likeliest.indices, self.top_p, drawn)

    def draw_likeliest(self, values: Tensor, tokens: Tensor) -> Tensor:
        """The same from the scores [A, K] of the likeliest tokens [A, K], falling; for rows with ``top_k``."""
        kept = self._cooled(values, values[:, :1])
        if not self.same_top_k:
            kept = kept.masked_fill(torch.arange(kept.shape[1], device=kept.device) >= self.top_k, -torch.inf)
        return _draw(torch.softmax(kept, dim=-1), tokens, self.top_p, self._random())

    def _random(self) -> Tensor:
        """The next random number of every row, [A, 1]."""
        return torch.tensor([[row.random.random()] for row in self.rows], device=self.temperature.device)

    def _cooled(self, scores: Tensor, top: Tensor) -> Tensor:
        """Scores over temperature; from the top down to 0 first: then no temperature, however small, overflows."""
        return (scores - top) / self.temperature


def _draw(shares: Tensor, tokens: Tensor, top_p: Tensor, drawn: Tensor) -> Tensor:
    """Tokens by random numbers.

    Args:
        shares: [A, K] probabilities, falling.
        tokens: [A, K] whose they are.
        top_p: [A, 1]; tokens count until the share before them reaches it, the first always does.
        drawn: [A, 1], from 0 to 1.

    Returns:
        [A].
    """
    reached = shares.cumsum(dim=-1)
    kept = (reached - shares) < top_p
    kept[:, 0] = True
    number = kept.sum(dim=-1, keepdim=True)
    mark = drawn * reached.gather(1, number - 1)
    place = torch.minimum((reached <= mark).sum(dim=-1, keepdim=True), number - 1)
    return tokens.gather(1, place)[:, 0]
