"""What a text is made of: whether a reader would see anything of it, and halves of characters."""

import unicodedata

# Letters, signs and marks that draw nothing: fillers, variation selectors, joiners; U+2581 is SentencePiece's own blank, and
# U+FFFD stands where a character was lost. The tokenizer drops most of them.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u2581\u2800\u3164\uffa0\ufffc\ufffd"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xFDD0, 0xFDF0), *range(0xE0100, 0xE01F0))))
# Control characters, format characters (zero-width ones, byte order marks), halves of characters, and all kinds of spaces.
_INVISIBLE_KINDS = frozenset(("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"))


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
