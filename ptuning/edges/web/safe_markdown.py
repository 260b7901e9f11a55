"""A model's answer as markdown that can show text, code and formulas, and nothing else.

An answer is whatever somebody made the model say. The browser's side cleans what it renders as well; here nothing that
could load or run anything leaves the server in the first place.
"""

from __future__ import annotations

import functools
import re
import string

_FENCE = re.compile(r"(?:[>\-*+ ]|\d{1,9}[.)])*(`{3,}|~{3,})(.*)")
_TICKS = re.compile(r"`+")
_DIAGRAM = re.compile(r"(?:(?<=```)|(?<=~~~))(?=mermaid)", re.IGNORECASE)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_PUNCTUATION = str.maketrans({character: f"&#{ord(character)};" for character in string.punctuation})


@functools.lru_cache(maxsize=2048)
def safe_markdown(text: str) -> str:
    """The text with HTML as characters that are read, not as HTML, and pictures as their source.

    Code (between fences, between backticks) stays as it is: a renderer takes it literally. Where this function and a
    renderer disagree about what is code, the renderer's own cleaning is still there.

    Args:
        text: of an answer, finished or not.
    """
    lines: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in _DIAGRAM.sub(" ", text).split("\n"):  # a diagram would be drawn by a program: it is shown as its source
        found = _FENCE.fullmatch(line)
        marks, rest = (found[1], found[2]) if found else ("", "")
        if fence:
            lines.append(line)
            if marks.startswith(fence) and not rest.strip():
                fence = ""
        elif marks and not (marks[0] == "`" and "`" in rest):
            lines += [*_prose(prose), _plain(line)]
            prose, fence = [], marks
        else:
            prose.append(line)
    return "\n".join([*lines, *_prose(prose)])


def _prose(lines: list[str]) -> list[str]:
    """Lines outside of fences; a code span may go over several of them, but not over a blank one."""
    made: list[str] = []
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
            continue
        made += [_escaped("\n".join(paragraph)), line] if paragraph else [line]
        paragraph = []
    return [*made, _escaped("\n".join(paragraph))] if paragraph else made


def _escaped(text: str) -> str:
    """A paragraph with everything outside of its code spans escaped."""
    made, position = [], 0
    while (opening := _TICKS.search(text, position)) is not None:
        made.append(_plain(text[position : opening.start()]))
        ending = next((one for one in _TICKS.finditer(text, opening.end()) if one[0] == opening[0]), None)
        position = opening.end() if ending is None else ending.end()
        made.append(text[opening.start() : position])
    return "".join([*made, _plain(text[position:])])


def _plain(text: str) -> str:
    """Only what would become a tag, an entity or a picture is changed, so that text which is copied is the model's own."""
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", text)).replace("![", "!\\[")


def literal(text: str) -> str:
    """A text that shows as it was typed, whatever it would mean as markdown."""
    lines = (line.translate(_PUNCTUATION) for line in text.split("\n"))
    return "\n".join(re.sub(r"^[ \t]+", lambda found: "&nbsp;" * len(found[0].expandtabs(4)), line) for line in lines)
