"""Rows to ids: the one place where prompts become ids, and training examples get their labels.

A training example is ``prompt [gMASK] <sop> reply <eop>``; its labels are -100 up to and including ``[gMASK]``, then
the ids from ``<sop>`` on (the model shifts them by one). Nothing is padded here: the collators do that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptuning.blocks.tokenizer import ChatGLMTokenizer
from ptuning.plain.errors import UserError
from ptuning.plain.prompts import build_prompt
from ptuning.tuned.rows import Row

IGNORE_INDEX = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Example:
    """One training example: ``input_ids`` and ``labels`` of equal length, and the ``file:line`` it came from."""

    input_ids: list[int]
    labels: list[int]
    source: str


def prompt_ids(
    tokenizer: ChatGLMTokenizer,
    query: str,
    history: Sequence[Sequence[str]] | None = None,
    *,
    max_source_length: int | None = None,
    source_prefix: str = "",
    legacy: bool = False,
) -> list[int]:
    """Ids of the prompt for ``query`` after ``history``, ending in ``[gMASK] <sop>``.

    Training, evaluation and chat all come here. The text of the prompt is user text: control strings in it stay text,
    so that exactly one ``[gMASK]`` stands in the ids, followed by the only ``<sop>``. ``max_source_length`` (None: no
    limit) counts as in the published trainer: at most ``max_source_length - 1`` ids of text are kept, the first ones.
    """
    text = source_prefix + build_prompt(query, history, legacy=legacy)
    ids = tokenizer.encode_text(text)
    if max_source_length is not None:
        ids = ids[: _room("max_source_length", max_source_length, 1)]
    return tokenizer.build_inputs_with_special_tokens(ids)


def reply_ids(tokenizer: ChatGLMTokenizer, reply: str, *, max_target_length: int) -> list[int]:
    """Ids of a reply and ``<eop>``: at most ``max_target_length - 2`` ids of text, as in the published trainer."""
    ids = tokenizer.encode_text(reply)
    return [*ids[: _room("max_target_length", max_target_length, 2)], tokenizer.eos_token_id]


def training_example(
    tokenizer: ChatGLMTokenizer,
    row: Row,
    *,
    max_source_length: int,
    max_target_length: int,
    source_prefix: str = "",
    legacy: bool = False,
) -> Example:
    """The training example of ``row``: at most ``max_source_length + max_target_length`` ids.

    ``legacy=True`` wraps the first round of rows with a history column as the published trainer did (see
    :func:`ptuning.plain.prompts.build_prompt`). Raises :class:`UserError` for a row without a reply.
    """
    if row.response is None:
        raise UserError(f"{row.source}: this row has no reply to train on; name its column with --response_column")
    prompt = prompt_ids(
        tokenizer,
        row.prompt,
        row.history,
        max_source_length=max_source_length,
        source_prefix=source_prefix,
        legacy=legacy,
    )
    reply = reply_ids(tokenizer, row.response, max_target_length=max_target_length)
    ids = prompt + reply
    start = len(prompt) - 1  # where <sop> stands
    return Example(input_ids=ids, labels=[IGNORE_INDEX] * start + ids[start:], source=row.source)


def _room(flag: str, length: int, reserved: int) -> int:
    """How many ids of text fit in ``length`` when ``reserved`` of them are kept for special tokens."""
    if length < reserved:
        raise UserError(f"--{flag} is {length}; allowed: {reserved} or more (it counts special tokens too)")
    return length - reserved
