"""Answers that are given before a request's body was read, so that an ordinary client gets to see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Response

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
"""So much of a body that nobody wants is read on: most clients look for an answer only when they have sent everything, and
a connection that is closed on them before shows them an error of the network instead."""


async def respond_early(
    response: Response, scope: Message, receive: Receive, send: Send, *, begun: bool = False, whole: bool = False
) -> None:
    """Answer, then read on and forget what the client still sends, to a bound, and close the connection.

    How long that may take is the connection's own time limit (:mod:`ptuning.edges.http.connections`).

    Args:
        response: small, and whole.
        scope: of the request; likewise ``receive`` and ``send``.
        begun: some of the body was asked for already.
        whole: all of it was.
    """
    headers = dict(scope["headers"])
    has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b" 0") != b""
    if whole or not has_body:
        await response(scope, receive, send)  # type: ignore[arg-type]
        return
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if begun or b"expect" not in headers:  # who waits to be asked for a body sends none
        await _discard(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    size = 0
    while size <= MAX_DISCARDED_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return
