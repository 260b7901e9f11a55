"""How an answer is drawn and where it ends: one value, made at the door from what a user gave, and passed on unchanged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from ptuning.core.errors import UserError
from ptuning.settings.answer_limits import SAMPLING, checked, checked_stops, shown


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one answer; the defaults are those of the published chat. Bad values raise :class:`UserError`.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is sampled from.
        top_k: only so many of the likeliest tokens are sampled from; 0: all of them.
        repetition_penalty: above 1, tokens that stand in prompt or answer already cost more.
        no_repeat_ngram_size: no run of so many tokens comes twice in prompt and answer; 0: no rule.
        seed: of this request alone; None draws one.
        max_length: limit of prompt and answer together; None: what the context has room for.
        max_new_tokens: limit of the answer alone; None: what is left.
        stop: the answer ends before the first of these texts.
    """

    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be followed, with the range, and what would make every token of the batch slow."""
        for name in (*SAMPLING, "max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None or name not in ("seed", "max_length", "max_new_tokens"):
                object.__setattr__(self, name, checked(name, value))
        object.__setattr__(self, "stop", checked_stops(self.stop))

    @classmethod
    def from_settings(cls, *, do_sample: bool = True, **settings: Any) -> Self:
        """What somebody set where sampling has a switch of its own.

        Args:
            do_sample: False answers greedily, as temperature 0 does.
            settings: by the names of the attributes.

        Raises:
            UserError: a value out of range, with the range.
        """
        params = cls(**settings)
        if not isinstance(do_sample, bool):
            raise UserError(f"do_sample {shown(do_sample)} was given; allowed are True and False")
        return params if do_sample else replace(params, temperature=0.0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at temperature 0."""
        return self.temperature == 0

    def context_limit(self, context: int) -> int:
        """Most tokens of prompt and answer together.

        Args:
            context: so many the model can hold.
        """
        return context if self.max_length is None else min(self.max_length, context)

    def answer_limit(self, prompt_tokens: int, context: int) -> int:
        """Most tokens of the answer to a prompt of so many tokens; ``context`` as in :meth:`context_limit`."""
        room = self.context_limit(context) - prompt_tokens
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)


GREEDY = SamplingParams(temperature=0.0)
