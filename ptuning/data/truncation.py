"""Where a prompt that is too long is truncated, in training, evaluation and chat.

Rows (``max_source_length``) are truncated by :func:`fit_prompt`, questions of a conversation by :func:`fitting_prompt_ids`:
both let whole rounds go, the oldest first. What remains too long then loses ids in a row and is refused in a conversation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ptuning.core.choices import Truncation
from ptuning.core.errors import QuestionTooLongError, UserError
from ptuning.data.protocols import Tokenizer

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
    room = full if max_source_length is None else text_room("max_source_length", max_source_length, SOURCE_SPECIALS)
    dropped = cut = 0
    if full > room:
        if truncation == "smart" and history:
            rounds = len(history)
            likely = _newest_within(history, room, room)
            kept, ids = _newest_that_fit(lambda kept: text_ids(rounds - kept), room, likely, rounds - 1)
            dropped = rounds - kept
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

    def newest(kept: int) -> list[int]:
        shown = rounds[len(rounds) - kept :] if history is not None else None
        return prompt_ids(tokenizer, query, shown, source_prefix=source_prefix, legacy=legacy)

    max_rounds = _newest_within(rounds, characters, limit)
    likely = _newest_within(rounds, limit, limit)
    kept, ids = _newest_that_fit(newest, limit - free, likely, max_rounds)
    if len(ids) >= limit:
        raise _too_long(str(len(ids)), len(ids), limit, bool(rounds))
    return ids, len(rounds) - kept


def _newest_that_fit(
    prompt_of: Callable[[int], list[int]], room: int, likely: int, max_rounds: int
) -> tuple[int, list[int]]:
    """How many of the newest rounds can stay, and the ids of the prompt with them; none where not even one fits.

    A prompt becomes shorter with every round that goes. So from the likely number on, more and more rounds are tried until
    one is too many, and then the interval is halved.

    Args:
        prompt_of: the ids of the prompt with so many of the newest rounds.
        room: how many ids it may have.
        likely: the number that is tried first.
        max_rounds: the largest number that may fit.
    """
    kept, too_many, tried = 0, max_rounds + 1, likely
    ids = None
    while kept + 1 < too_many:
        tried = min(max(tried, kept + 1), too_many - 1)
        longer = prompt_of(tried)
        if len(longer) <= room:
            kept, ids, tried = tried, longer, 2 * tried if too_many > max_rounds else (tried + too_many) // 2
        else:
            too_many, tried = tried, (kept + tried) // 2
    return kept, prompt_of(0) if ids is None else ids


def _newest_within(rounds: Sequence[Sequence[str]], characters: int, max_rounds: int) -> int:
    """How many of the newest rounds have together at most so many characters; at most ``max_rounds``."""
    for count, entry in enumerate(reversed(rounds)):
        characters -= sum(len(text) for text in entry if isinstance(text, str))  # what is no text is refused later
        if characters < 0 or count == max_rounds:
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


def text_room(flag: str, length: int, reserved: int) -> int:
    """How many ids of text fit in ``length`` when ``reserved`` of them are kept for special tokens."""
    if length < reserved:
        raise UserError(f"--{flag} is {length}; allowed: {reserved} or more (it counts special tokens too)")
    return length - reserved
