"""Ids to text while they come: whole characters that no later token changes, stop texts found, and no work that grows.

What :func:`ptuning.data.response.process_response` and the tokenizer's clean-up make of a reply depends on a few
characters at a time. So the text is made from a window of the newest tokens only, which begins in text that was given out
already. Every door goes through here: the engine, ``model.chat`` and ``model.stream_chat``, and the evaluation.
"""

from __future__ import annotations

from typing import Any

from ptuning.data.response import process_response, settled

_WINDOW = 48  # tokens, before a shorter window is looked for
_KEPT = (16, 24, 32, 48, 64)  # tokens that may be left of it
_REACH = 12  # characters; the longest thing that is rewritten, [[训练时间]], has 8
_LARGE = 128  # tokens; a window that cannot be shortened (a thousand newlines) is no longer decoded at every token


def reply_text(tokenizer: Any, ids: list[int]) -> str:
    """A whole reply as a chat shows it; half a character at its end, where it was truncated, is left out."""
    return process_response(tokenizer.decode(ids).rstrip("\ufffd"))


class TextStream:
    """The growing text of one reply.

    Args:
        tokenizer: of the model.
        stop: texts before whose first occurrence the reply ends.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] | list[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = [_StopText(text) for text in stop]
        self.ids: list[int] = []
        self.shown = 0  # characters of the window's text that were given out
        self.read = 0  # characters of it that the stop texts were compared with
        self.stopped = False
        self.next_look = 0
        self.next_cut = _WINDOW

    def add(self, token: int) -> str:
        """One more id; what may now be shown, perhaps nothing. After a stop text nothing comes any more."""
        self.ids.append(token)
        count = len(self.ids)
        if count > _LARGE:
            if count < self.next_look:
                return ""
            self.next_look = count + count // 16
        whole = process_response(self.tokenizer.decode(self.ids))
        text = settled(whole)
        piece = self._show(text, len(text) - self._held(text))
        if count >= self.next_cut and not self.stopped:
            self._cut(whole)
            self.next_cut = len(self.ids) + max(_WINDOW // 3, len(self.ids) // 4, _WINDOW - len(self.ids))
        return piece

    def end(self) -> str:
        """The rest, when no more ids come."""
        text = reply_text(self.tokenizer, self.ids)
        return self._show(text, len(text))

    def _show(self, text: str, until: int) -> str:
        """The part of the window's text up to a place that was not shown yet, or up to a stop text."""
        if self.stopped:
            return ""
        # What may be the beginning of a stop text is never shown, so none begins before what was.
        first_stop = min((place for stop in self.stops if (place := text.find(stop.text, self.shown)) >= 0), default=-1)
        if first_stop >= 0:
            self.stopped = True
            until = first_stop
        piece = text[self.shown : max(until, self.shown)]
        self.shown += len(piece)
        return piece

    def _held(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop text."""
        new, self.read = text[self.read :], len(text)
        return max((stop.compare(new) for stop in self.stops), default=0)

    def _cut(self, whole: str) -> None:
        """Let go of the window's first tokens, if the text of the others is the end of the window's text as it is: then it
        stays so, because what comes changes only the last characters.

        Args:
            whole: the window's text with what is not settled yet.
        """
        for kept in _KEPT:
            if kept >= len(self.ids):
                return
            ids = self.ids[-kept:]
            rest = process_response(self.tokenizer.decode(ids))
            gone = len(whole) - len(rest)
            if len(rest) >= _REACH and gone <= self.shown and whole.endswith(rest):
                self.ids, self.next_look = ids, 0
                self.shown -= gone
                self.read -= gone
                return


class _StopText:
    """One stop text, and how much of it the reply ends in: a step a character, however long it is (Knuth, Morris, Pratt)."""

    def __init__(self, text: str) -> None:
        self.text, self.matched = text, 0
        self.fallback = [0] * len(text)  # after n + 1 characters: how many of them are a beginning of the text again
        for place in range(1, len(text)):
            self.fallback[place] = self._step(self.fallback[place - 1], text[place])

    def compare(self, new: str) -> int:
        """Read on; how many characters at the end are a beginning of the stop text."""
        for character in new:
            self.matched = self._step(self.matched, character)
        return self.matched

    def _step(self, matched: int, character: str) -> int:
        while matched and (matched == len(self.text) or self.text[matched] != character):
            matched = self.fallback[matched - 1]
        return matched + (self.text[matched] == character)
