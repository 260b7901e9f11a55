"""What a text is made of: whether a reader would see anything of it, halves of characters, encodings; values in messages."""

import math
import unicodedata
from typing import Any

from ptuning.core.errors import UserError

# Letters, signs and marks that draw nothing: fillers, variation selectors, joiners; U+2581 is SentencePiece's own blank, and
# U+FFFD stands where a character was lost. The tokenizer drops most of them.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u2581\u2800\u3164\uffa0\ufffc\ufffd"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xFDD0, 0xFDF0), *range(0xE0100, 0xE01F0))))
# Control characters, format characters (zero-width ones, byte order marks), halves of characters, and all kinds of spaces.
_INVISIBLE_KINDS = frozenset(("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"))


_LONGEST_SHOWN = 60


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: a reply of such characters would teach a model to say nothing."""
    return not any(
        character not in _INVISIBLE and unicodedata.category(character) not in _INVISIBLE_KINDS for character in text
    )


def whole_characters(text: str) -> str:
    """The text with both halves of a character (a surrogate pair) as one, and a half that stands alone as U+FFFD.

    JSON can hold halves, and nothing that is written as UTF-8 can.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, without characters that act on a terminal, and not too long."""
    if isinstance(value, int) and abs(value) > 10**_LONGEST_SHOWN:
        return f"(a number of about {int(value.bit_length() * math.log10(2)) + 1} digits)"
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    short = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:_LONGEST_SHOWN])
    return short if len(text) <= _LONGEST_SHOWN else f"{short}… ({len(text)} characters)"


def check_encoding(name: str) -> str:
    """``name`` itself, where Python knows a text encoding of that name.

    Raises :class:`UserError` where it does not.
    """
    try:
        "a".encode(name)
    except (LookupError, ValueError):
        usual = "usual are utf-8, gbk, gb18030, big5 and utf-16"
        raise UserError(f"--encoding {shown(name)}: no such encoding; {usual}") from None
    return name
