"""Responses that are sent before the body of a request was read, in a way that ordinary clients get to see."""

from __future__ import annotations

from fastapi import Response

from ptuning.edges.http.middleware.asgi import Message, Receive, Send

MAX_DISCARDED_BYTES = 64 * 1024 * 1024
"""How much of a rejected body is read and thrown away. Most clients look for a response only after sending everything; were
the connection closed before that, they would report a network error instead of our message."""


async def respond_early(
    response: Response,
    scope: Message,
    receive: Receive,
    send: Send,
    *,
    body_started: bool = False,
    body_complete: bool = False,
) -> None:
    """Send a response, discard what the client still sends, up to a bound, and close the connection.

    The connection's own time limit bounds how long this may take (:mod:`ptuning.edges.http.connections`).

    Args:
        response: small and complete.
        scope: of the request, like ``receive`` and ``send``.
        body_started: part of the body has been received already.
        body_complete: all of it has.
    """
    headers = dict(scope["headers"])
    has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b" 0") != b""
    if body_complete or not has_body:
        await response(scope, receive, send)  # type: ignore[arg-type]
        return
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if body_started or b"expect" not in headers:  # a client that waits for "100 Continue" sends no body
        await _discard(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    size = 0
    while size <= MAX_DISCARDED_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return
