"""Rows to training examples: prompt (see :mod:`ptuning.data.truncation`), reply and labels.

A training example is ``prompt [gMASK] <sop> reply <eop>``; its labels are -100 up to and including ``[gMASK]``, then
the ids from ``<sop>`` on (the model shifts them by one). Nothing is padded here: the collators do that.
"""

from dataclasses import dataclass

from ptuning.core.choices import Truncation
from ptuning.core.errors import UserError
from ptuning.data.protocols import Tokenizer
from ptuning.data.rows import Row
from ptuning.data.truncation import SOURCE_SPECIALS, TARGET_SPECIALS, fit_prompt, text_room

IGNORE_INDEX = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Example:
    """One training example: ``input_ids`` and ``labels`` of equal length, and the ``file:line`` it came from.

    Attributes:
        full_source: the ``max_source_length`` at which nothing of the prompt would be lost.
        full_target: the same for ``max_target_length`` and the reply.
        dropped_rounds: how many of the oldest rounds were left out.
        cut_prompt: whether something of the question (or of the text before it) was cut.
    """

    input_ids: list[int]
    labels: list[int]
    source: str
    full_source: int = 0
    full_target: int = 0
    dropped_rounds: int = 0
    cut_prompt: bool = False


def reply_ids(tokenizer: Tokenizer, reply: str, *, max_target_length: int) -> list[int]:
    """Ids of a reply and ``<eop>``: at most ``max_target_length - 2`` ids of text, as in the published trainer."""
    ids = tokenizer.encode_text(reply)
    return [*ids[: text_room("max_target_length", max_target_length, TARGET_SPECIALS)], tokenizer.eos_token_id]


def training_example(
    tokenizer: Tokenizer,
    row: Row,
    *,
    max_source_length: int,
    max_target_length: int,
    source_prefix: str = "",
    legacy: bool = False,
    truncation: Truncation = "smart",
    close_cut_replies: bool = False,
) -> Example:
    """The training example of ``row``: at most ``max_source_length + max_target_length`` ids.

    ``legacy=True`` wraps the first round of rows with a history column as the published trainer did (see
    :func:`ptuning.data.prompts.build_prompt`). A reply that had to be cut gets no ``<eop>``, so that stopping in the
    middle is not learnt; ``close_cut_replies=True`` gives it one, as published. Raises :class:`UserError` for a row
    without a reply.
    """
    if row.response is None:
        raise UserError(f"{row.source}: this row has no reply to train on; name its column with --response_column")
    prompt = fit_prompt(
        tokenizer,
        row.prompt,
        row.history,
        max_source_length=max_source_length,
        source_prefix=source_prefix,
        legacy=legacy,
        system=row.system,
        truncation=truncation,
    )
    text = tokenizer.encode_text(row.response)
    kept = text[: text_room("max_target_length", max_target_length, TARGET_SPECIALS)]
    closed = close_cut_replies or len(kept) == len(text)
    ids = [*prompt.ids, *kept, *([tokenizer.eos_token_id] if closed else [])]
    start = len(prompt.ids) - 1  # where <sop> stands
    return Example(
        input_ids=ids,
        labels=[IGNORE_INDEX] * start + ids[start:],
        source=row.source,
        full_source=prompt.full_length + SOURCE_SPECIALS,
        full_target=len(text) + TARGET_SPECIALS,
        dropped_rounds=prompt.dropped_rounds,
        cut_prompt=prompt.cut > 0,
    )
