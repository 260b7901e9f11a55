"""Evaluation: what is predicted, written and scored, and that neither batch nor padding changes an answer."""

import dataclasses
import json

import pytest
import torch

from ptuning import load_model, load_tokenizer
from ptuning.data.rows import Row
from ptuning.data.truncation import prompt_ids
from ptuning.engine.generation import PRESETS, generate_answers
from ptuning.evaluation.metrics.scoring import score
from ptuning.evaluation.predictions import evaluate_rows
from ptuning.settings.arguments import DataArguments


@pytest.fixture(scope="module", params=[None, "prefix", "prefix_projection"])
def model(request, golden):
    checkpoint = golden / f"checkpoint-{request.param}" if request.param else None
    return load_model(golden / "model", device="cpu", ptuning_checkpoint=checkpoint)


@pytest.fixture(scope="module")
def tokenizer(golden):
    return load_tokenizer(golden / "model")


@pytest.fixture(scope="module")
def rows(golden_cases):
    return [
        Row(row["prompt"], row["response"], row["history"], f"rows:{n}") for n, row in enumerate(golden_cases["train_rows"])
    ]


@pytest.fixture
def data():
    return DataArguments(max_source_length=64, max_target_length=24)


def test_batch_of_eight_equals_batch_of_one(model, tokenizer, rows, data):
    alone = evaluate_rows(model, tokenizer, rows, data, batch_size=1)
    together = evaluate_rows(model, tokenizer, rows, data, batch_size=8)
    assert alone.predictions == together.predictions
    assert alone.metrics["bleu-4"] == together.metrics["bleu-4"]


def test_predictions_are_what_the_chat_answers(model, tokenizer, rows, data):
    predictions = evaluate_rows(model, tokenizer, rows, data, batch_size=4).predictions
    for row, prediction in zip(rows, predictions, strict=True):
        response, _ = model.chat(tokenizer, row.prompt, row.history, do_sample=False, max_new_tokens=24)
        assert response.rstrip("\ufffd") == prediction


def test_the_limit_counts_new_tokens_only(model, tokenizer):
    """A prompt as long as the limit still gets a whole answer."""
    prompts = [prompt_ids(tokenizer, text) for text in ("你好" * 30, "你好")]
    found = generate_answers(model, tokenizer, prompts, [9, 4], batch_size=2, preset=PRESETS["greedy"])
    answers = {answer.index: answer for answer in found}
    for index, limit in enumerate((9, 4)):
        assert len(answers[index].ids) == limit or answers[index].finished


def test_the_published_limit_is_the_same_in_every_batch(tokenizer, model, rows):
    """max_source_length + max_target_length + 1 counts a row's own prompt, not its padding."""
    data = DataArguments(max_source_length=32, max_target_length=8, generation="published", truncation="published")
    limit = {"max_source_length": 32, "truncation": "published"}
    prompts = [prompt_ids(tokenizer, row.prompt, row.history, **limit) for row in rows]
    result = evaluate_rows(model, tokenizer, rows, data, batch_size=4)
    for prompt, prediction in zip(prompts, result.predictions, strict=True):
        assert len(tokenizer.encode_text(prediction)) <= 32 + 8 + 1 - len(prompt) + 8


def test_sampling_is_repeatable_with_its_seed(model, tokenizer, rows, data):
    data = dataclasses.replace(data, generation="published")
    first, again, other = (evaluate_rows(model, tokenizer, rows, data, batch_size=4, seed=seed) for seed in (1, 1, 2))
    assert first.predictions == again.predictions
    assert first.predictions != other.predictions


def test_sampling_does_not_depend_on_the_batch(model, tokenizer, rows, data):
    data = dataclasses.replace(data, generation="published")
    alone, some, all_of_them = (evaluate_rows(model, tokenizer, rows, data, batch_size=size, seed=5) for size in (1, 3, 64))
    assert alone.predictions == some.predictions == all_of_them.predictions
    assert len(set(alone.predictions)) > len(rows) // 2


def test_scores_are_those_of_the_written_file(model, tokenizer, rows, data, tmp_path):
    result = evaluate_rows(model, tokenizer, rows, data, batch_size=4, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()]
    assert [set(line) for line in lines] == [{"labels", "predict"}] * len(rows)
    expected = score([line["predict"] for line in lines], [line["labels"] for line in lines])
    assert expected.items() <= result.metrics.items()
    assert not any("[gMASK]" in line["labels"] or "<sop>" in line["labels"] for line in lines)


def test_an_ending_model_gives_empty_answers_that_count(golden, tokenizer, rows, data):
    """A head that always says <eop>: every answer is empty, every score 0, and nothing crashes."""
    model = load_model(golden / "model", device="cpu")
    with torch.no_grad():
        model.transformer.final_layernorm.weight.zero_()
        model.transformer.final_layernorm.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.eos_token_id] = 1.0
    result = evaluate_rows(model, tokenizer, rows, data, batch_size=4)
    assert result.predictions == [""] * len(rows)
    assert result.metrics["empty_predictions"] == len(rows)
    assert result.metrics["bleu-4"] == 0
    assert result.metrics["unfinished_predictions"] == 0
