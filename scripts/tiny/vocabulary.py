"""Trains ice_text.model, the SentencePiece file of tiny-chatglm, on the pretraining texts.

It follows the published file: unigram, NFKC, a dummy blank first, byte fallback, <unk> <s> </s> <pad> as 0 to 3, then
the newline, tab and blank-run pieces, the mask pieces and <sop> <eop> as user-defined pieces.

Run: python -m scripts.tiny.vocabulary [folder]   (default: ptuning/assets/tiny-chatglm)
"""

import io
import sys
from itertools import islice
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from ptuning.evaluation.metrics.words import word_tokenizer
from scripts.tiny.corpus import samples
from scripts.tiny.world import CLAUSES, KINDS, VOICES

VOCABULARY_SIZE = 1664
TEXTS = 10000
LONGEST_PIECE = 4
MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


def blanks(count: int) -> str:
    """The piece that stands for a run of `count` blanks."""
    return f"<|blank_{count}|>"


def mark_whitespace(text: str) -> str:
    """Newline, tab and runs of 80 to 2 blanks as their pieces, as the published tokenizer does before encoding."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for count in range(80, 1, -1):
        text = text.replace(" " * count, blanks(count))
    return text


def words_of_texts() -> list[str]:
    """The words of the pretraining texts, each to be taken as a sentence.

    So the pieces are words or parts of words, and not runs of the clauses that these texts repeat so often.
    """
    words = word_tokenizer()
    for word in (*KINDS, *CLAUSES, *(value for values in CLAUSES.values() for value in values), *VOICES):
        words.add_word(word, 10**6)
    texts: list[str] = []
    for sample in islice(samples("vocabulary"), TEXTS):
        if sample.task in ("copy", "numbers"):
            texts += sample.context  # characters alone: their neighbours are drawn at random
            continue
        parts = f"{sample.context}\n{sample.target}".replace("[MASK]", "\n").split("\n")
        texts += [word for part in parts for word in words.cut(part, HMM=False) if not word.isspace()]
    return texts


def train_vocabulary() -> bytes:
    """The serialised SentencePiece model; the same bytes for the same sentencepiece version."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words_of_texts()),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY_SIZE,
        character_coverage=1.0,
        max_sentencepiece_length=LONGEST_PIECE,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=3,
        required_chars="▁",
        add_dummy_prefix=False,  # for training: every "sentence" is a word, and words start within a text
        num_threads=1,
        shuffle_input_sentence=False,
        user_defined_symbols=["<n>", "<|tab|>", *(blanks(count) for count in range(80, 1, -1)), *MASKS],
        minloglevel=2,
    )
    trained = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]
    trained.normalizer_spec.add_dummy_prefix = True
    return trained.SerializeToString(deterministic=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "ptuning/assets/tiny-chatglm")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ice_text.model").write_bytes(train_vocabulary())
