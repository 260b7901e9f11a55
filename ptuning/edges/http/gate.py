"""What stands before every route: the key, and the size of the body."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from ptuning.edges.http.errors import error_response

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OPEN_PATHS = frozenset({"/health"})
"""What needs no key: a load balancer has none."""


def same_key(given: str, key: str) -> bool:
    """Whether two keys are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(given.encode(), key.encode())


def bearer(headers: Any) -> str:
    """The key of an ``Authorization: Bearer`` header, or nothing."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


class Gate:
    """ASGI middleware: 401 without the key where one is set, 413 for a body that is too large.

    A body is read whole before the route sees it (it is small, or refused), whether or not its length was announced.

    Args:
        app: behind the gate.
        key: None lets everybody in.
        admin_key: likewise good for everything.
        most_bytes: of a body.
    """

    def __init__(self, app: Any, key: str | None, admin_key: str | None, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes
        self.keys = [one for one in (key, admin_key) if one] if key else []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.keys and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            given = bearer(headers)
            if not any(same_key(given, key) for key in self.keys):
                what = "wrong API key" if given else "an API key is needed: Authorization: Bearer KEY"
                await error_response(401, what, code="invalid_api_key")(scope, receive, send)  # type: ignore[arg-type]
                return
        announced = headers.get("content-length", "0")
        body = None if announced.isdigit() and int(announced) > self.most_bytes else await self._body(receive)
        if body is None:
            message = f"the body is larger than {self.most_bytes} bytes"
            refusal = error_response(413, message, code="body_too_large")
            refusal.headers["connection"] = "close"  # the rest of the body is still on its way
            await refusal(scope, receive, send)  # type: ignore[arg-type]
            return
        await self.app(scope, _replay(body, receive), send)

    async def _body(self, receive: Receive) -> list[Message] | None:
        """The messages that bring the body, or None when it is too large."""
        messages, size = [], 0
        while True:
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self.most_bytes:
                return None
            if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body"):
                return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def receive_again() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return receive_again
