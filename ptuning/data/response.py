"""Tidies a decoded reply the way ChatGLM-6B's published chat does."""

import re

_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_BESIDE_CJK = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")

# What a later token may still change at the end. First the half of a character, blanks (stripped at the end and before an
# English mark), and before them a half-width mark (full-width once a CJK character follows) or a quotation mark (a blank on
# either side goes, but not where an English mark takes the second one). Then the beginning of a contraction, before which a
# blank goes, and of the placeholder that becomes a year.
_BLANKS_AND_HALVES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufffd"
_BEGUN = re.compile(r"\s(?:n'?|'[vr]?)$|\[\[?[训练时间]{0,4}\]?$")
_REACH = 8  # characters, more than any of these has


def process_response(text: str) -> str:
    """``text`` stripped, with the year the model was trained in, and full-width punctuation beside CJK characters.

    The tokenizer's normaliser turns full-width punctuation into half-width; this puts it back where Chinese is
    written. A mark between two other characters stays as it is.
    """
    text = text.strip().replace("[[训练时间]]", "2023年")
    return _BESIDE_CJK.sub(lambda mark: _FULL_WIDTH[mark[0]], text)


def settled(text: str) -> str:
    """The part of an unfinished reply that no later token changes."""
    text = text.rstrip(_BLANKS_AND_HALVES)
    if text.endswith((*_FULL_WIDTH, "'")):
        text = text[:-1].rstrip()
    begun = _BEGUN.search(text, max(0, len(text) - _REACH))
    return text if begun is None else text[: begun.start()]
