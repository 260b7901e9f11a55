"""Bytes of a row file as text: UTF-8 by default, and a guess for the user where it is something else."""

import codecs
import logging
from pathlib import Path

from ptuning.core.characters import check_encoding
from ptuning.core.errors import UserError
from ptuning.core.reading import guarded, open_regular

logger = logging.getLogger(__name__)

_MARKS = {  # byte order marks, the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_CANDIDATES = ("GBK", "GB18030", "BIG5")
# Frequent characters, simplified and traditional: text decoded in the wrong encoding holds next to none of them.
_FREQUENT = frozenset(
    "的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你您好对對生能而子那得于於着著下自之年"
    "过過发發后後作里裡用道行所然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進小部其些主样樣"
    "理心本前开開但因只从從想实實日意无無力与與长長把机機第公此已工情明性知全三二又关關点點正业業外将將两兩高间間由问問很"
    "最重并並物手应應向头頭文体體美相见見被什等产產或新己身果加月话話合回特信表化给給世位次度门門常先通东東声聲提及比"
    "解水名真论論处處走各入几幾口认認条條平系气氣题題活更别別打女变變总總何电電数數安少报報才结結反受目太量再感做接场場件"
    "计計市直金指许許区區保至形空展书書非白却卻光放强強色路记記品告类類求张張该該万萬取觉覺清今切让讓识識带帶衣裙"
    "，。、：；！？「」（）《》“”"
)


_CHUNK = 16 * 2**20
_HEAD = 4096  # bytes that tell what a file is


def read_row_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file of rows; see :func:`decode_text`.

    It is read no further than to the first NUL byte: the rest of a download that was truncated may be a hole of gigabytes.
    """
    with guarded(path, "text file", "check its permissions and the disk"), open_regular(path) as file:
        data = bytearray(file.read(_HEAD))
        wide = _is_wide(encoding) or _wide_encoding(data) is not None
        while chunk := file.read(_CHUNK):
            data += chunk
            if b"\0" in chunk and (not wide or chunk.count(b"\0") == len(chunk)):
                break
        return decode_text(path, data, encoding)


def decode_text(path: Path, data: bytes | bytearray, encoding: str | None = None) -> str:
    """The text of ``data``, which was read from ``path``: UTF-8 with or without a byte order mark, or ``encoding``.

    A file that is plainly UTF-8 is read as such even where ``encoding`` names another one, with a warning: files of one
    run may differ. Raises :class:`UserError` with the line of the first wrong byte and the likely encoding, or with the
    place of a NUL byte, which no text has.
    """
    wide, guessed_wide = _is_wide(encoding), _wide_encoding(data[:_HEAD]) is not None
    if not wide and not guessed_wide and b"\0" in data:
        raise _nul(path, data[: data.index(b"\0")])
    utf8 = None if wide or guessed_wide else _decoded(data, "utf-8-sig")
    if utf8 is not None:
        if encoding is not None and not utf8.isascii() and codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
            logger.warning("%s is UTF-8: it is read as such, without --encoding %s", path, encoding)
        return utf8
    if encoding is None:
        raise _not_utf8(path, data)
    try:
        text = data.decode(encoding)
        if "\0" in text:
            raise _nul(path, text[: text.index("\0")].encode("utf-8", "replace"))
        return text
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        guess = guess_encoding(data)
        raise UserError(
            f"{path}:{_line(data, start)}: not {encoding} (byte 0x{data[start]:02x}; looks like {guess}); "
            f"give --encoding {guess.lower()}, or save the file as UTF-8 and leave --encoding out"
        ) from None


def guess_encoding(data: bytes | bytearray) -> str:
    """The likely encoding of bytes that are not UTF-8, in a form that Python and ``iconv`` both know."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    if wide := _wide_encoding(data[:_HEAD]):
        return wide
    texts = {name: text for name in _CANDIDATES if (text := _decoded(data, name)) is not None}
    return max(texts, key=lambda name: _familiarity(texts[name]), default="LATIN1")


def _is_wide(encoding: str | None) -> bool:
    """Whether an encoding has NUL bytes in its texts."""
    return encoding is not None and codecs.lookup(check_encoding(encoding)).name.startswith(("utf-16", "utf-32"))


def _wide_encoding(head: bytes | bytearray) -> str | None:
    """UTF-16 or UTF-32 by a file's first bytes; None where a NUL byte is a mistake, or there is none.

    In UTF-16 every ASCII character has one, on the same side of each pair. Text that is UTF-8 but for a NUL here and there
    is damaged UTF-8.
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    if b"\0" * 4 in head:  # no text of UTF-16 or UTF-32 has so many in a row, a hole has
        return None
    nuls = head.count(b"\0")
    second = head[1::2].count(b"\0")
    one_side = second in (0, nuls)
    is_utf8 = _decoded(head[:-3], "utf-8-sig") is not None  # the last character may be cut
    if nuls == 0 or (nuls * 5 < len(head) and (is_utf8 or not one_side)):
        return None
    return "UTF-16LE" if 2 * second > nuls else "UTF-16BE"


def _nul(path: Path, before: bytes | bytearray) -> UserError:
    """The mistake of a NUL byte after these bytes."""
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    return UserError(
        f"{path}:{_line(before, len(before))}:{column}: a NUL byte (0x00), which no text holds; the file is damaged there, "
        "or was truncated while it was copied or downloaded: fetch it again, or take the byte out"
    )


def _not_utf8(path: Path, data: bytes | bytearray) -> UserError:
    try:
        data.decode("utf-8-sig")
        start = data.index(b"\0")
    except UnicodeDecodeError as error:
        start = error.start
    line_start = data.rfind(b"\n", 0, start) + 1
    line_end = data.find(b"\n", start)
    wrong = data[line_start : len(data) if line_end < 0 else line_end]
    others = _decoded(data[:line_start] + data[line_start + len(wrong) :], "utf-8-sig")
    place = f"{path}:{_line(data, start)}"
    if others is not None and not others.isascii() and b"\0" not in data:
        return UserError(
            f"{place}: invalid UTF-8 (byte 0x{data[start]:02x}; this line looks like {guess_encoding(wrong)}, the others "
            "are UTF-8); write this line again"
        )
    guess = guess_encoding(data)
    if guess == "LATIN1" and guess_encoding(wrong) != "LATIN1":
        guess = guess_encoding(wrong)
    return UserError(
        f"{place}: invalid UTF-8 (byte 0x{data[start]:02x}; looks like {guess}); give --encoding {guess.lower()}, or "
        f"save the file as UTF-8, for example: iconv -f {guess} -t UTF-8 {path.name} > utf8-{path.name}"
    )


def _decoded(data: bytes | bytearray, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeError:
        return None


def _familiarity(text: str) -> float:
    """Share of frequent characters among those that are not ASCII."""
    foreign = [character for character in text if not character.isascii()]
    return sum(character in _FREQUENT for character in foreign) / max(len(foreign), 1)


def _line(data: bytes | bytearray, position: int) -> int:
    return data.count(b"\n", 0, position) + 1
