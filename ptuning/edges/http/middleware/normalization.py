"""Requests as the routes know them: without a slash at the end, and HEAD as GET without the body of its answer."""

from __future__ import annotations

from typing import Any

from ptuning.edges.http.middleware.early_response import Message, Receive, Send


class NormalizationMiddleware:
    """ASGI middleware, outside of all others, so that everything behind it sees the same path. (A redirect to the path
    without the slash would lose the bodies that some clients send.)

    Args:
        app: behind it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if scope["method"] == "HEAD":
            await self.app(scope | {"path": path, "method": "GET"}, receive, _without_body(send))
        else:
            await self.app(scope | {"path": path}, receive, send)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = message | {"body": b""}
        await send(message)

    return send_head
