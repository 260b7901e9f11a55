"""Tidies a decoded reply the way ChatGLM-6B's published chat does."""

import re

_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_BESIDE_CJK = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")

# What a later token may still change: a half-width mark (full-width once a CJK character follows), blanks (stripped at
# the end and before an English mark or a contraction), the beginning of the placeholder that becomes a year, and the
# half of a character.
_UNSETTLED = re.compile(r"[,!:;?\s\ufffd]+$|\s(?:n'?|'[vr]?)$|\[\[?[训练时间]*\]?$")


def process_response(text: str) -> str:
    """``text`` stripped, with the year the model was trained in, and full-width punctuation beside CJK characters.

    The tokenizer's normaliser turns full-width punctuation into half-width; this puts it back where Chinese is
    written. A mark between two other characters stays as it is.
    """
    text = text.strip().replace("[[训练时间]]", "2023年")
    return _BESIDE_CJK.sub(lambda mark: _FULL_WIDTH[mark[0]], text)


def settled(text: str) -> str:
    """The part of an unfinished reply that no later token changes."""
    while match := _UNSETTLED.search(text):
        text = text[: match.start()]
    return text
