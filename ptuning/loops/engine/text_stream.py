"""Ids to text while they come: whole characters that no later token changes, stop texts found, and no work that grows.

What :func:`ptuning.plain.response.process_response` and the tokenizer's clean-up make of a reply depends on a few
characters at a time. So the text is made from a window of the newest tokens only; what lies before is cut off where
nothing reaches across.
"""

from __future__ import annotations

from typing import Any

from ptuning.plain.response import process_response, settled

_WINDOW = 48  # tokens, before a cut is looked for
_REACH = 10  # characters; the longest thing that is rewritten, [[训练时间]], has 8


def reply_text(tokenizer: Any, ids: list[int]) -> str:
    """A whole reply as a chat shows it; half a character at its end, where it was cut, is left out."""
    return process_response(tokenizer.decode(ids).rstrip("\ufffd"))


class TextStream:
    """The growing text of one reply.

    Args:
        tokenizer: of the model.
        stop: texts before whose first occurrence the reply ends.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.shown = 0  # characters of the window's text that were given out
        self.before = ""  # the end of what was cut off: a stop text may begin there
        self.stopped = False
        self.next_cut = _WINDOW

    def add(self, token: int) -> str:
        """One more id; what may now be shown, perhaps nothing. After a stop text nothing comes any more."""
        self.ids.append(token)
        text = settled(process_response(self.tokenizer.decode(self.ids)))
        piece = self._show(text, self._held(text))
        if len(self.ids) >= self.next_cut and not self.stopped:
            self._cut()
            self.next_cut = max(_WINDOW, len(self.ids) + _WINDOW // 3)
        return piece

    def end(self) -> str:
        """The rest, when no more ids come."""
        text = reply_text(self.tokenizer, self.ids)
        return self._show(text, len(text))

    def _show(self, text: str, until: int) -> str:
        """The part of the window's text up to a place that was not shown yet, or up to a stop text."""
        if self.stopped:
            return ""
        if self.stop:
            whole = self.before + text
            found = min((place for place in map(whole.find, self.stop) if place >= 0), default=-1)
            if found >= 0:
                self.stopped = True
                until = found - len(self.before)
        piece = text[self.shown : max(until, self.shown)]
        self.shown += len(piece)
        return piece

    def _held(self, text: str) -> int:
        """How far the text is sure not to be the beginning of a stop text."""
        held = 0
        for stop in self.stop:
            whole = (self.before + text)[-len(stop) + 1 :] if len(stop) > 1 else ""
            held = max(held, *(size for size in range(len(whole) + 1) if stop.startswith(whole[len(whole) - size :])))
        return len(text) - held

    def _cut(self) -> None:
        """Shorten the window at a place that nothing reaches across, if there is one."""
        for place in range(len(self.ids) - 8, len(self.ids) - 32, -1):
            left, right = self.tokenizer.decode(self.ids[:place]), self.tokenizer.decode(self.ids[place:])
            near = left[-_REACH:] + right[:_REACH]
            if not (left and right and left[-1].isalnum() and right[0].isalnum()) or any(c in near for c in "[]'\ufffd"):
                continue
            gone = process_response(left)
            if left + right != self.tokenizer.decode(self.ids) or len(gone) > self.shown:
                continue
            longest = max(map(len, self.stop), default=0)
            self.before = (self.before + gone)[len(self.before) + len(gone) - max(longest - 1, 0) :]
            self.shown -= len(gone)
            self.ids = self.ids[place:]
            return
