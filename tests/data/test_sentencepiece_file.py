"""A vocabulary file that cannot be used is named, with what to do; the literal variant keeps ids and text."""

from pathlib import Path

import pytest
import sentencepiece

from ptuning.core.errors import UserError
from ptuning.data.sentencepiece_file import literal_processor, load_processor
from ptuning.data.tokenizer import ChatGLMTokenizer

VOCABULARY = Path(__file__).parents[1] / "golden" / "chatglm-tiny" / "model" / "ice_text.model"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:5e974d9a69c242ce014c\nsize 2706249\n"


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "ice_text.model"
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match=r"ice_text\.model: this is a Git LFS pointer .*git lfs pull"):
        ChatGLMTokenizer.from_pretrained(tmp_path)


def piece_boundaries() -> list[int]:
    """Offsets of the file where one piece ends and another begins."""
    data = VOCABULARY.read_bytes()
    offsets, position = [], 0
    while data[position] == 0x0A:
        position += 2 + data[position + 1]
        offsets.append(position)
    return offsets


@pytest.mark.parametrize("size", [1, 100, 9999, 200_000, 253_374, piece_boundaries()[500], piece_boundaries()[-1]])
def test_file_cut_short(tmp_path, size):
    path = tmp_path / "ice_text.model"
    path.write_bytes(VOCABULARY.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"ice_text\.model: .*{size} bytes.*download it again"):
        load_processor(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff" * 40, b"\x0a" + b"\xff" * 8 + b"\x01"])
def test_no_sentencepiece_file(tmp_path, content):
    path = tmp_path / "ice_text.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no complete SentencePiece file"):
        load_processor(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.model: no SentencePiece file there"):
        load_processor(tmp_path / "absent.model")
    with pytest.raises(UserError, match="the tokenizer folder: no SentencePiece file"):
        load_processor(None)


def test_vocabulary_of_another_model(tmp_path):
    path = tmp_path / "ice_text.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 20), model_writer=file, vocab_size=14, minloglevel=2
        )
    with pytest.raises(UserError, match=r"not the vocabulary of ChatGLM-6B, it has no piece <sop>, <eop>"):
        ChatGLMTokenizer(path)


def test_literal_processor_renames_and_silences():
    processor = load_processor(VOCABULARY)
    literal = literal_processor(processor, {4: "\ufdd0newline" * 30}, {89})
    assert processor.encode("a<n><sop>") == [467, 4, 89]
    assert 4 not in literal.encode("a<n><sop>")
    assert 89 not in literal.encode("a<n><sop>")
    assert literal.encode("a" + "\ufdd0newline" * 30) == [467, 4]
    assert literal.get_piece_size() == processor.get_piece_size()
    assert [literal.id_to_piece(i) for i in range(5, 700)] == [processor.id_to_piece(i) for i in range(5, 700)]
