"""Rows to ids: the one place where prompts become ids, and training examples get their labels.

A training example is ``prompt [gMASK] <sop> reply <eop>``; its labels are -100 up to and including ``[gMASK]``, then
the ids from ``<sop>`` on (the model shifts them by one). Nothing is padded here: the collators do that.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ptuning.core.errors import QuestionTooLongError, UserError
from ptuning.data.protocols import Tokenizer
from ptuning.data.rows import Row
from ptuning.settings.arguments import Truncation

IGNORE_INDEX = -100  # the label that PyTorch's cross entropy leaves out
SOURCE_SPECIALS, TARGET_SPECIALS = 1, 2  # how many ids the published limits count beside those of the text


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt, and what had to go.

    Attributes:
        ids: text, ``[gMASK] <sop>``.
        full_length: ids of the whole text, without ``[gMASK] <sop>``.
        dropped_rounds: how many of the oldest rounds were left out.
        cut: how many ids of the text that was left were cut.
    """

    ids: list[int]
    full_length: int
    dropped_rounds: int = 0
    cut: int = 0


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


def fit_prompt(
    tokenizer: Tokenizer,
    query: str,
    history: Sequence[Sequence[str]] | None = None,
    *,
    max_source_length: int | None = None,
    source_prefix: str = "",
    legacy: bool = False,
    system: str = "",
    truncation: Truncation = "smart",
) -> Prompt:
    """The prompt for ``query`` after ``history`` within ``max_source_length`` (None: no limit).

    Training, evaluation and chat all come here. The text of the prompt is user text: control strings in it stay text,
    so that exactly one ``[gMASK]`` stands in the ids, followed by the only ``<sop>``. The limit counts as in the
    published trainer: at most ``max_source_length - 1`` ids of text are kept. ``truncation``:

    - "smart": the oldest rounds go first. What is still too long loses ids in the middle: before the question where
      that is enough, else in the middle of the question. Its end and the cue ``答：`` stay, and so does the form with a
      cue where all rounds went.
    - "published": the first ids are kept, whatever they are.
    """

    def text_ids(first_round: int) -> list[int]:
        rounds = history if history is None else history[first_round:]
        wrap = legacy or first_round > 0
        return tokenizer.prompt_form.encode(
            tokenizer, query, rounds, source_prefix=source_prefix, legacy=wrap, system=system
        )

    ids = text_ids(0)
    full = len(ids)
    room = full if max_source_length is None else _room("max_source_length", max_source_length, SOURCE_SPECIALS)
    dropped = cut = 0
    if full > room:
        if truncation == "smart" and history:
            most = len(history)
            dropped = min(most, 1 + bisect_left(range(1, most + 1), True, key=lambda n: len(text_ids(n)) <= room))
            ids = text_ids(dropped)
        cut = max(0, len(ids) - room)
    if cut:
        wrapped = bool(history) or (legacy and history is not None)
        head = room if truncation == "published" else _head(tokenizer, query, room, wrapped)
        ids = ids[:head] + ids[head + cut :]
    return Prompt(tokenizer.build_inputs_with_special_tokens(ids), full, dropped, cut)


def _head(tokenizer: Tokenizer, query: str, room: int, wrapped: bool) -> int:
    """How many of ``room`` ids are kept from the front of a prompt that ends in ``query``; the others come from its end."""
    form = tokenizer.prompt_form
    ending = form.ending(tokenizer, query, wrapped)
    if ending <= room:
        return room - ending  # the question is whole, and what comes before it is cut
    return max(0, room - form.ending(tokenizer, "", wrapped)) // 2


def prompt_ids(
    tokenizer: Tokenizer,
    query: str,
    history: Sequence[Sequence[str]] | None = None,
    *,
    max_source_length: int | None = None,
    source_prefix: str = "",
    legacy: bool = False,
    system: str = "",
    truncation: Truncation = "smart",
) -> list[int]:
    """Ids of the prompt for ``query`` after ``history``, ending in ``[gMASK] <sop>``; see :func:`fit_prompt`."""
    return fit_prompt(
        tokenizer,
        query,
        history,
        max_source_length=max_source_length,
        source_prefix=source_prefix,
        legacy=legacy,
        system=system,
        truncation=truncation,
    ).ids


def fitting_prompt_ids(
    tokenizer: Tokenizer,
    query: str,
    history: Sequence[Sequence[str]] | None = None,
    *,
    limit: int,
    room: int | None = None,
    source_prefix: str = "",
    legacy: bool = False,
) -> tuple[list[int], int]:
    """Ids of the prompt, without the oldest rounds of a history that is too long; every front end comes here.

    The rule: whole rounds go, the oldest first, until the prompt leaves ``room`` tokens of ``limit`` free for the answer;
    the question itself is never cut. Where even that alone leaves less than ``room``, the answer has what is left.

    The work is bounded by ``limit``, however long question and history are: what has more characters than ``limit`` tokens
    can stand for (:attr:`~ptuning.data.protocols.Tokenizer.max_characters`) is never made into ids.

    Args:
        tokenizer: of the model.
        query: what the user says.
        history: earlier (query, response) pairs, oldest first.
        limit: of prompt and answer together, in tokens.
        room: tokens to be left free; None: a quarter of the limit. At most half of the limit is kept free.
        source_prefix: as in :func:`prompt_ids`; likewise ``legacy``.

    Returns:
        the ids, and how many rounds were left out.

    Raises:
        QuestionTooLongError: the question alone leaves no room for an answer.
    """
    rounds = list(history or [])
    free = min(limit // 4 if room is None else room, limit // 2)
    characters = limit * tokenizer.max_characters
    if len(query) > characters:
        raise _too_long(f"more than {limit}", -(-len(query) // tokenizer.max_characters), limit, bool(rounds))

    def made(kept: int) -> list[int]:
        newest = rounds[len(rounds) - kept :] if history is not None else None
        return prompt_ids(tokenizer, query, newest, source_prefix=source_prefix, legacy=legacy)

    # The length falls with every round that goes: from about as many as fit, more and more, then the interval is halved.
    most = _newest_within(rounds, characters, limit)
    kept, too_many = 0, most + 1
    tried = _newest_within(rounds, limit, limit)
    ids = None
    while kept + 1 < too_many:
        tried = min(max(tried, kept + 1), too_many - 1)
        longer = made(tried)
        if len(longer) + free <= limit:
            kept, ids, tried = tried, longer, 2 * tried if too_many > most else (tried + too_many) // 2
        else:
            too_many, tried = tried, (kept + tried) // 2
    ids, dropped = made(0) if ids is None else ids, len(rounds) - kept
    if len(ids) >= limit:
        raise _too_long(str(len(ids)), len(ids), limit, bool(rounds))
    return ids, dropped


def _newest_within(rounds: Sequence[Sequence[str]], characters: int, most: int) -> int:
    """How many of the newest rounds have together no more characters than that; at most ``most``, as each takes a token."""
    for count, entry in enumerate(reversed(rounds)):
        characters -= sum(len(text) for text in entry if isinstance(text, str))  # what is no text is refused later
        if characters < 0 or count == most:
            return count
    return len(rounds)


def _too_long(shown: str, tokens: int, limit: int, has_history: bool) -> QuestionTooLongError:
    without = " without its history" if has_history else ""
    return QuestionTooLongError(
        f"the question{without} has {shown} tokens, and prompt and answer together may have {limit}: shorten it"
        " (or raise max_length where it is below the model's own limit)",
        tokens,
        limit,
    )


def reply_ids(tokenizer: Tokenizer, reply: str, *, max_target_length: int) -> list[int]:
    """Ids of a reply and ``<eop>``: at most ``max_target_length - 2`` ids of text, as in the published trainer."""
    ids = tokenizer.encode_text(reply)
    return [*ids[: _room("max_target_length", max_target_length, TARGET_SPECIALS)], tokenizer.eos_token_id]


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
    kept = text[: _room("max_target_length", max_target_length, TARGET_SPECIALS)]
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


def _room(flag: str, length: int, reserved: int) -> int:
    """How many ids of text fit in ``length`` when ``reserved`` of them are kept for special tokens."""
    if length < reserved:
        raise UserError(f"--{flag} is {length}; allowed: {reserved} or more (it counts special tokens too)")
    return length - reserved
