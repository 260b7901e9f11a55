"""Batches: sides, lengths, labels and masks."""

from pathlib import Path

import pytest
import torch

from ptuning.core.errors import UserError
from ptuning.data.collator import PromptCollator, TrainingCollator
from ptuning.data.preprocess import Example
from ptuning.data.tokenizer import ChatGLMTokenizer

TOKENIZER = ChatGLMTokenizer.from_pretrained(Path(__file__).parents[1] / "golden" / "chatglm-tiny" / "model")
EXAMPLES = [
    Example([353, 465, 86, 89, 90], [-100, -100, -100, 89, 90], "x:1"),
    Example([353, 86, 89], [-100, -100, 89], "x:2"),
]


def test_training_rows_are_padded_on_the_right_to_the_longest():
    batch = TrainingCollator(TOKENIZER)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[353, 465, 86, 89, 90], [353, 86, 89, 3, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 89, 90], [-100, -100, 89, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_rows_of_a_dataset_collate_alike():
    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in EXAMPLES]
    ours, theirs = TrainingCollator(TOKENIZER)(EXAMPLES), TrainingCollator(TOKENIZER)(rows)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_padding_to_a_fixed_length():
    batch = TrainingCollator(TOKENIZER, pad_to=7)(EXAMPLES)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, 7)
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]
    with pytest.raises(UserError, match="a row has 5 ids, more than pad_to 4"):
        TrainingCollator(TOKENIZER, pad_to=4)(EXAMPLES)


def test_labels_of_padding_as_ids():
    batch = TrainingCollator(TOKENIZER, pad_to=6, ignore_index=TOKENIZER.pad_token_id)(EXAMPLES)
    assert batch["labels"].tolist() == [[-100, -100, -100, 89, 90, 3], [-100, -100, 89, 3, 3, 3]]
    assert batch["attention_mask"].all(), "padding that is learnt is real"


def test_prompts_are_padded_on_the_left():
    batch = PromptCollator(TOKENIZER)([[353, 465, 86, 89], [86, 89]])
    assert batch["input_ids"].tolist() == [[353, 465, 86, 89], [3, 3, 86, 89]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert PromptCollator(TOKENIZER, pad_to=6)([[86, 89]])["input_ids"].tolist() == [[3, 3, 3, 3, 86, 89]]


def test_prompts_pad_as_the_tokenizer_pads():
    texts = ["你好", "这件衬衫", "a\nb"]
    ours = PromptCollator(TOKENIZER)([TOKENIZER(text)["input_ids"] for text in texts])
    theirs = TOKENIZER(texts, padding=True, return_tensors="pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in ("input_ids", "attention_mask"))
