"""What a file of rows is like before training: lengths, truncation, duplicates, and what the model will see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ptuning.data.example_store import PackedExamples
from ptuning.data.examples import tokenised, what_became_of_replies
from ptuning.data.preprocess import Example
from ptuning.data.rows import Row, Rows
from ptuning.data.run_rows import prepare_rows, prepare_training_rows
from ptuning.data.settings import ExampleSettings
from ptuning.data.tokenizer import ChatGLMTokenizer

PERCENTILES = (50, 90, 95, 99)
LONGEST_SEQUENCE = 2048  # what ChatGLM-6B was trained with
_STEP = 8  # suggested limits are multiples of it
_ENOUGH = 99  # percentile that suggested limits cover
_NEARLY_ALL = 1.25  # where the longest row is no longer than this times that percentile, they cover it as well


@dataclass(frozen=True)
class Sample:
    """An example as the model sees it: ``context`` without loss, then ``learnt``, the part that bears the loss."""

    source: str
    context: str
    learnt: str
    context_tokens: int
    learnt_tokens: int
    remark: str


@dataclass(frozen=True)
class Duplicates:
    """Rows that stand in a file more than once.

    Attributes:
        rows: rows that repeat an earlier one (prompt and reply).
        prompts: prompts that stand there with different replies.
        first: the first repetition, "place = earlier place"; "" for none.
    """

    rows: int
    prompts: int
    first: str


@dataclass(frozen=True)
class Overlap:
    """Test rows that also are training rows.

    Attributes:
        file: the test file.
        rows: how many rows it has.
        same_prompt: test rows whose prompt (with its history) is trained on.
        same_row: those whose reply is trained on as well.
        first: the first of them, "place = training place"; "" for none.
    """

    file: str
    rows: int
    same_prompt: int
    same_row: int
    first: str


@dataclass(frozen=True)
class Inspection:
    """Everything about a file of rows. Lengths are in tokens, counted as the limits count them.

    Attributes:
        rows: the rows as training would get them.
        prompt_lengths: percentile ("p50", …, "longest") → the ``max_source_length`` that so many prompts fit in.
        reply_lengths: the same for ``max_target_length``.
        cut: rows that lose "earlier rounds", part of the "prompt", part of the "reply" at the current limits.
        suggested: setting → a limit at which (nearly) nothing is truncated.
        samples: some examples.
    """

    rows: Rows
    prompt_lengths: dict[str, int]
    reply_lengths: dict[str, int]
    cut: dict[str, int]
    suggested: dict[str, int]
    duplicates: Duplicates
    overlap: Overlap | None
    samples: list[Sample]


def inspect_file(tokenizer: ChatGLMTokenizer, data: ExampleSettings, samples: int = 3, seed: int = 42) -> Inspection:
    """Look at ``data.train_file``, and at ``data.test_file`` beside it where one is given.

    Args:
        tokenizer: whose tokens are counted.
        data: file, form, limits.
        samples: how many examples are shown.
        seed: of the rows mixed in.

    Raises:
        UserError: whatever reading the rows for training finds wrong.
    """
    rows = prepare_training_rows(data, seed)
    test = prepare_rows(data.test_file, data, None) if data.test_file else None
    examples = tokenised(tokenizer, rows, data, data.train_file or "")
    a = examples.arrays
    sources, targets = _lengths(a["full_source"]), _lengths(a["full_target"])
    cut = {
        "earlier rounds": int((a["dropped_rounds"] > 0).sum()),
        "prompt": int(a["cut_prompt"].sum()),
        "reply": int((a["full_target"] > data.max_target_length).sum()),
    }
    reply = _limit(targets)
    prompt = _limit(sources)
    if prompt + reply > LONGEST_SEQUENCE:
        reply = min(reply, LONGEST_SEQUENCE // 2)
        prompt = min(prompt, LONGEST_SEQUENCE - reply)
    return Inspection(
        rows=rows,
        prompt_lengths=sources,
        reply_lengths=targets,
        cut=cut,
        suggested={"max_source_length": prompt, "max_target_length": reply},
        duplicates=_duplicates(rows),
        overlap=None if test is None else _overlap(rows, test, data.test_file or ""),
        samples=[_sample(tokenizer, example, data) for example in _telling(examples, data, samples)],
    )


def _lengths(lengths: np.ndarray) -> dict[str, int]:
    values = np.percentile(lengths, PERCENTILES, method="higher")
    return {f"p{p}": int(value) for p, value in zip(PERCENTILES, values, strict=True)} | {"longest": int(lengths.max())}


def _limit(lengths: dict[str, int]) -> int:
    enough, longest = lengths[f"p{_ENOUGH}"], lengths["longest"]
    limit = longest if longest <= _NEARLY_ALL * enough else enough
    return -(-limit // _STEP) * _STEP


def _telling(examples: PackedExamples, data: ExampleSettings, count: int) -> list[Example]:
    """Examples worth showing: the first, the first of each that was truncated, then others spread over the file."""
    a = examples.arrays
    cuts = (a["dropped_rounds"] > 0, a["cut_prompt"], a["full_target"] > data.max_target_length)
    places = [0, *(int(np.argmax(hit)) for hit in cuts if hit.any())]
    places += [number * len(examples) // max(count, 1) for number in range(count)]
    return [examples[index] for index in list(dict.fromkeys(places))[:count]]


def _sample(tokenizer: ChatGLMTokenizer, example: Example, data: ExampleSettings) -> Sample:
    start = sum(label < 0 for label in example.labels)
    remarks = []
    if example.dropped_rounds:
        remarks.append(f"{example.dropped_rounds} oldest rounds left out")
    if example.cut_prompt:
        remarks.append(f"prompt of {example.full_source} truncated to {data.max_source_length}")
    if example.full_target > data.max_target_length:
        remarks.append(f"reply of {example.full_target} {what_became_of_replies(data)}")
    context, learnt = example.input_ids[:start], example.input_ids[start:]
    return Sample(
        example.source,
        str(tokenizer.decode(context)),
        str(tokenizer.decode(learnt)),
        len(context),
        len(learnt),
        "; ".join(remarks),
    )


def _key(row: Row) -> tuple[str, ...]:
    """What makes two prompts the same: their texts, apart from white space."""
    texts = [row.system, *(text for pair in row.history or [] for text in pair), row.prompt]
    return tuple(" ".join(text.split()) for text in texts)


def _reply(row: Row) -> str:
    return " ".join((row.response or "").split())


def _places(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, str]]:
    """Prompt → reply → where that stands first."""
    places: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        places.setdefault(_key(row), {}).setdefault(_reply(row), row.source)
    return places


def _duplicates(rows: Rows) -> Duplicates:
    places = _places(rows)
    counts = Counter((_key(row), _reply(row)) for row in rows)
    first = next((f"{row.source} = {at}" for row in rows if (at := places[_key(row)][_reply(row)]) != row.source), "")
    return Duplicates(counts.total() - len(counts), sum(len(replies) > 1 for replies in places.values()), first)


def _overlap(train: Rows, test: Rows, file: str) -> Overlap:
    places = _places(train)
    shared = [row for row in test if _key(row) in places]
    same = sum(_reply(row) in places[_key(row)] for row in shared)
    first = f"{shared[0].source} = {next(iter(places[_key(shared[0])].values()))}" if shared else ""
    return Overlap(file, len(test), len(shared), same, first)
