"""The embedded default model's data: committed rows, their generator, the pretraining texts, the asset folder."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from scripts.tiny import corpus, rows, world

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "ptuning" / "assets" / "tiny-chatglm"
FILES = [f"adgen-tiny/{split}.json" for split in rows.ADGEN_ROWS] + [
    f"dialogue-tiny/{s}.json" for s in rows.DIALOGUE_ROWS
]
SAMPLES = 20000


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "data" / name).read_text(encoding="utf-8").splitlines()]


def adgen_combinations(split: str) -> list[frozenset[str]]:
    return [frozenset(row["content"].split("*")) for row in read(f"adgen-tiny/{split}.json")]


@pytest.fixture(scope="module")
def texts() -> list[corpus.Sample]:
    return list(islice(corpus.samples(), SAMPLES))


def test_generator_reproduces_committed_rows(tmp_path):
    rows.write_all(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes(), name


def test_row_counts():
    assert len(read("adgen-tiny/train.json")) >= 2000
    assert len(read("adgen-tiny/dev.json")) == 200
    assert len(read("adgen-tiny/test.json")) == 200
    assert len(read("dialogue-tiny/train.json")) >= 300
    assert len(read("dialogue-tiny/dev.json")) >= 50


def test_adgen_form():
    for split in rows.ADGEN_ROWS:
        for row in read(f"adgen-tiny/{split}.json"):
            assert set(row) == {"content", "summary"}
            assert re.fullmatch(r"类型#[^#*]+(\*[^#*]+#[^#*]+)+", row["content"])
            assert 25 <= len(row["summary"]) <= 65


def test_no_attribute_combination_in_two_splits():
    train, dev, test = (set(adgen_combinations(split)) for split in ("train", "dev", "test"))
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert len(test) == 200


def test_dialogues_have_zero_to_three_rounds_of_history():
    train = read("dialogue-tiny/train.json")
    assert {len(row["history"]) for row in train} == {0, 1, 2, 3}
    for row in train:
        assert set(row) == {"prompt", "response", "history"}
        assert all(len(turn) == 2 for turn in row["history"])


def test_dialogue_prompt_alone_does_not_tell_the_reply():
    replies: dict[str, set[str]] = {}
    for row in read("dialogue-tiny/train.json"):
        if row["history"]:
            replies.setdefault(row["prompt"], set()).add(row["response"])
    asked_often = [found for found in replies.values() if len(found) > 1]
    assert len(asked_often) > 50


def test_dialogue_splits_do_not_share_a_dialogue():
    train, dev = (
        {json.dumps([row["history"], row["prompt"]]) for row in read(f"dialogue-tiny/{s}.json")}
        for s in ("train", "dev")
    )
    assert not train & dev


def test_corpus_is_reproducible(texts):
    assert list(islice(corpus.samples(), 500)) == texts[:500]
    assert list(islice(corpus.samples("other"), 500)) != texts[:500]


def test_corpus_never_shows_the_task_form(texts):
    for sample in texts:
        whole = sample.context + sample.target
        assert not ("#" in whole and "*" in whole), whole
        assert not re.search("(类型|" + "|".join(world.CLAUSES) + ")[#*]", whole), whole


def test_corpus_never_shows_a_reply_of_the_dialogue_rows(texts):
    for sample in texts:
        whole = sample.context + sample.target
        assert not re.search("记下啦|改好啦|查到啦|下单啦", whole), whole


def test_corpus_shows_no_summary_and_no_held_out_combination(texts):
    summaries = {row["summary"] for split in rows.ADGEN_ROWS for row in read(f"adgen-tiny/{split}.json")}
    assert not summaries & {sample.target for sample in texts}
    names = {
        clause: (name, value)
        for name, values in world.CLAUSES.items()
        for value, said in values.items()
        for clause in said
    }
    for sample in texts:
        if sample.task in ("describe", "rewrite"):
            opening, *clauses = sample.target.rstrip("。").split("，")
            kind = next(kind for kind in world.KINDS if kind in opening)
            item = world.Item(kind, tuple(names[clause] for clause in clauses if clause in names))
            assert world.bucket(item) is world.Bucket.OPEN


def test_corpus_is_broad(texts):
    shares = {task: sum(sample.task == task for sample in texts) / SAMPLES for task in {s.task for s in texts}}
    assert len(shares) >= 10
    assert max(shares.values()) < 0.5


def test_every_value_has_three_different_clauses():
    said = [clause for values in world.CLAUSES.values() for clauses in values.values() for clause in clauses]
    assert len(said) == len(set(said))


def test_asset_folder_holds_the_published_layout():
    assert {path.name for path in ASSETS.iterdir()} == {
        "config.json",
        "ice_text.model",
        "model.safetensors",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 12 * 2**20


def test_asset_weights_are_finite_float16_and_complete():
    import torch
    from safetensors.torch import load_file

    config = json.loads((ASSETS / "config.json").read_text(encoding="utf-8"))
    weights = load_file(ASSETS / "model.safetensors")
    assert len(weights) == 4 + 12 * config["num_layers"]
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float16, name
        assert torch.isfinite(tensor).all(), name


def test_vocabulary_has_the_published_conventions():
    from sentencepiece import sentencepiece_model_pb2

    ours, theirs = (
        sentencepiece_model_pb2.ModelProto.FromString((folder / "ice_text.model").read_bytes())
        for folder in (ASSETS, ROOT / "tests" / "golden" / "chatglm-tiny" / "model")
    )
    special = 93 + 256  # <unk> <s> </s> <pad>, 89 user-defined pieces, 256 bytes
    assert [(p.piece, p.type) for p in ours.pieces[:special]] == [(p.piece, p.type) for p in theirs.pieces[:special]]
    for field in ("name", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces", "precompiled_charsmap"):
        assert getattr(ours.normalizer_spec, field) == getattr(theirs.normalizer_spec, field), field


@pytest.mark.slow
def test_vocabulary_is_reproducible():
    from scripts.tiny import vocabulary

    assert vocabulary.train_vocabulary() == (ASSETS / "ice_text.model").read_bytes()
