"""Path and method as the routes expect them: no slash at the end, and HEAD handled as GET without a response body."""

from __future__ import annotations

from typing import Any

from ptuning.edges.http.middleware.asgi import Message, Receive, Send


class NormalizationMiddleware:
    """Removes trailing slashes from the path and turns HEAD into GET.

    It stands outside the API's other middleware, so that all of them see the same path. (A redirect to the path without the
    slash would lose the bodies that some clients send.)

    Args:
        app: the next ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a normalized request on."""
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
