"""The types of ASGI, and the one operation on them that several middlewares need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
"""A scope or an event: ``{"type": "http.request", ...}``."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def replay_body(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns the whole body first, and afterwards whatever the client still does.

    Args:
        body: already read, or written in place of the one that was read.
        receive: of the request.
    """
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_replayed() -> Message:
        return messages.pop() if messages else await receive()

    return receive_replayed
