"""Which answers a report shows: the best, the worst, and some drawn at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ptuning.evaluation.answers import ScoredAnswer
from ptuning.evaluation.metrics.registry import row_metrics
from ptuning.evaluation.run_result import ScoredModel

BEST, WORST, RANDOM = 3, 3, 4
"""How many samples of each kind are shown."""


def chosen_samples(model: ScoredModel | None, base: ScoredModel | None) -> dict[str, list[dict[str, Any]]]:
    """Best, worst and random answers of a model on the test rows by kind, each row once; ``base``: whose answers stand
    beside them."""
    if model is None or model.task is None:
        return {}
    answers = model.task.answers
    others = base.task.answers if base is not None and base.task is not None else None
    # Ties by place, so that the same answers give the same page.
    ranked = sorted(answers, key=lambda answer: (-_quality(answer), answer.index))
    best = _varied(ranked, BEST)
    worst = _varied([answer for answer in reversed(ranked) if answer not in best], WORST)
    rest = [answer for answer in answers if answer not in best and answer not in worst]
    drawn = random.Random(0).sample(rest, min(RANDOM, len(rest)))
    return {
        kind: [_sample(answer, None if others is None else others[answer.index]) for answer in chosen]
        for kind, chosen in (("best", best), ("worst", worst), ("random", sorted(drawn, key=lambda a: a.index)))
        if chosen
    }


def _varied(ranked: Sequence[ScoredAnswer], count: int) -> list[ScoredAnswer]:
    """The first answers of a ranking, the same text once: of twenty blank ones a reader wants to see one."""
    varied: dict[str, ScoredAnswer] = {}
    for answer in ranked:
        if len(varied) < count:
            varied.setdefault(answer.answer.strip(), answer)
    return list(varied.values())


def _quality(answer: ScoredAnswer) -> float:
    """The mean of its scores; those of which less is better count against it."""
    signs = {metric.name: 1 if metric.higher_is_better else -1 for metric in row_metrics()}
    return sum(signs.get(name, 1) * value for name, value in answer.scores.items()) / max(1, len(answer.scores))


def _sample(answer: ScoredAnswer, base: ScoredAnswer | None) -> dict[str, Any]:
    return {
        "source": answer.source,
        "prompt": answer.prompt,
        "history": answer.history,
        "reference": answer.reference,
        "answer": answer.answer,
        "base": None if base is None else base.answer,
        "finish_reason": answer.finish_reason,
        "scores": {metric.name: answer.scores[metric.name] for metric in row_metrics() if metric.name in answer.scores},
    }
