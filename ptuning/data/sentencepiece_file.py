"""Reads a SentencePiece file with checks, and derives the variant that never turns text into control pieces.

Only the outer shell of the file matters here: a ``ModelProto`` is a row of length-delimited fields, field 1 being one
piece (string, score, type), field 2 the trainer settings and field 3 the normaliser. That little is read directly, so
that the protobuf package is not needed.
"""

from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import sentencepiece

from ptuning.core.errors import UserError
from ptuning.core.reading import guarded, is_regular, read_bytes

LFS_HEAD = b"version https://git-lfs.github.com/spec/"
USER_DEFINED, UNUSED = 4, 5  # SentencePiece's piece types: always matched in text, never matched in text
MAX_VOCABULARY = 64 * 2**20
"""Bytes that a SentencePiece file may have; the published one has 2.7 million."""

_PIECE_FIELD, _TRAINER_FIELD = 1, 2  # fields of ModelProto
_TEXT_FIELD, _TYPE_FIELD = 1, 3  # fields of one piece
_MAX_SHIFT = 63  # a number has 64 bits at most
_FIXED_SIZES = {1: 8, 5: 4}  # wire types 64-bit and 32-bit


def load_processor(path: str | Path | None) -> sentencepiece.SentencePieceProcessor:
    """Load the SentencePiece file at ``path``.

    Raises :class:`UserError` naming the file and the cure when it is missing, empty, a Git LFS pointer, cut short or
    no SentencePiece file at all.
    """
    if path is None or not is_regular(path):
        where = "the tokenizer folder" if path is None else str(path)
        raise UserError(
            f"{where}: no SentencePiece file there; a ChatGLM-6B folder holds ice_text.model: download it there"
        )
    with guarded(path, "SentencePiece file", "check its permissions, or download it again"):
        data = read_bytes(path, MAX_VOCABULARY)
    return make_processor(data, path)


def make_processor(data: bytes, path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """The processor of a SentencePiece file that was read; ``path`` and errors as for :func:`load_processor`."""
    if data.startswith(LFS_HEAD):
        raise UserError(
            f"{path}: this is a Git LFS pointer ({len(data)} bytes), not the vocabulary itself; run `git lfs install` "
            "and `git lfs pull` in that folder, or download the file again"
        )
    processor = sentencepiece.SentencePieceProcessor()
    try:
        with guarded(path):
            # A file cut between two fields still parses, but its trainer settings, which come after the pieces, are gone.
            complete = any(field == _TRAINER_FIELD for field, *_ in _fields(data))
            loaded = complete and processor.load_from_serialized_proto(data)
    except UserError:
        loaded = False
    if not loaded:
        raise UserError(
            f"{path}: this is no complete SentencePiece file ({len(data)} bytes; the published ice_text.model has "
            "about 2.7 million); it was probably cut short: download it again and compare its size"
        )
    return processor


def literal_processor(
    processor: sentencepiece.SentencePieceProcessor, renamed: Mapping[int, str], silenced: Set[int]
) -> sentencepiece.SentencePieceProcessor:
    """A processor with the same ids that matches other strings for some user-defined pieces.

    ``renamed`` maps a piece id to the string that now stands for it; the ids of ``silenced`` match no text at all.
    Pieces of other types keep string and type, so ordinary text is cut exactly as before.
    """
    changed = bytearray()
    index = 0
    data = processor.serialized_model_proto()
    for field, start, body, end in _fields(data):
        if field != _PIECE_FIELD:
            changed += data[start:end]
            continue
        if index in renamed or index in silenced:
            piece = _rewrite_piece(data[body:end], renamed.get(index), silence=index in silenced)
            changed += _varint(_PIECE_FIELD << 3 | 2) + _varint(len(piece)) + piece
        else:
            changed += data[start:end]
        index += 1
    result = sentencepiece.SentencePieceProcessor()
    result.load_from_serialized_proto(bytes(changed))
    return result


def _rewrite_piece(piece: bytes, text: str | None, silence: bool) -> bytes:
    """One piece message with another string, or with type UNUSED where it was USER_DEFINED."""
    result = bytearray()
    for field, start, body, end in _fields(piece):
        if field == _TEXT_FIELD and text is not None:
            encoded = text.encode()
            result += _varint(_TEXT_FIELD << 3 | 2) + _varint(len(encoded)) + encoded
        elif field == _TYPE_FIELD and silence and piece[body:end] == bytes([USER_DEFINED]):
            result += _varint(_TYPE_FIELD << 3) + bytes([UNUSED])
        else:
            result += piece[start:end]
    return bytes(result)


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start, start of its content, end) of every field; ValueError or IndexError for broken data."""
    position = 0
    while position < len(data):
        start = position
        key, position = _read_varint(data, position)
        body = position
        wire = key & 7
        if wire == 0:
            _, position = _read_varint(data, position)
        elif wire == 2:
            size, body = _read_varint(data, position)
            position = body + size
        elif wire in _FIXED_SIZES:
            position += _FIXED_SIZES[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if position > len(data):
            raise ValueError("field reaches past the end")
        yield key >> 3, start, body, position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if shift > _MAX_SHIFT:
            raise ValueError("a number without end")
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
