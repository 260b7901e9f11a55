"""A model's answer as markdown that can show text, code and formulas, and nothing else.

An answer may be anything that a user made the model say. The browser sanitizes what it renders, too; here nothing that could
load or run anything leaves the server in the first place.
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
    """Escape HTML so that it is shown as text, and pictures so that their source is shown.

    Code (in fences and between backticks) stays as it is, because renderers take it literally. Where this function and a
    renderer disagree about what is code, the renderer's own sanitizer still protects the page.

    Args:
        text: of an answer, finished or not.
    """
    lines: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in _DIAGRAM.sub(" ", text).split("\n"):  # a diagram would be drawn by a program; its source is shown instead
        match = _FENCE.fullmatch(line)
        marks, rest = (match[1], match[2]) if match else ("", "")
        if fence:
            lines.append(line)
            if marks.startswith(fence) and not rest.strip():
                fence = ""
        elif marks and not (marks[0] == "`" and "`" in rest):
            lines += [*_escape_prose(prose), _escape(line)]
            prose, fence = [], marks
        else:
            prose.append(line)
    return "\n".join([*lines, *_escape_prose(prose)])


def _escape_prose(lines: list[str]) -> list[str]:
    """Lines outside fences, escaped by paragraphs: a code span may extend over several lines, but not over a blank one."""
    escaped: list[str] = []
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
            continue
        escaped += [_escape_paragraph("\n".join(paragraph)), line] if paragraph else [line]
        paragraph = []
    return [*escaped, _escape_paragraph("\n".join(paragraph))] if paragraph else escaped


def _escape_paragraph(text: str) -> str:
    """A paragraph with everything outside its code spans escaped."""
    parts, position = [], 0
    while (opening := _TICKS.search(text, position)) is not None:
        parts.append(_escape(text[position : opening.start()]))
        closing = next((ticks for ticks in _TICKS.finditer(text, opening.end()) if ticks[0] == opening[0]), None)
        position = opening.end() if closing is None else closing.end()
        parts.append(text[opening.start() : position])
    return "".join([*parts, _escape(text[position:])])


def _escape(text: str) -> str:
    """Escape only what would become a tag, an entity or a picture, so that copied text is what the model wrote."""
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", text)).replace("![", "!\\[")


def literal(text: str) -> str:
    """A text that is shown as it was typed, whatever it would mean as markdown."""
    lines = (line.translate(_PUNCTUATION) for line in text.split("\n"))
    return "\n".join(re.sub(r"^[ \t]+", lambda blanks: "&nbsp;" * len(blanks[0].expandtabs(4)), line) for line in lines)
