"""What stands before every route: the key, and how much a body may be."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Any

from ptuning.edges.http.errors import error_response
from ptuning.edges.http.json_body import MAX_VALUES, has_too_many_values
from ptuning.edges.http.middleware.early_response import Message, Receive, Send, respond_early
from ptuning.edges.http.worker_threads import LARGE, away

OPEN_PATHS = frozenset({"/health"})
"""What needs no key: a load balancer has none."""
MAX_HELD_BYTES = 128 * 1024 * 1024
"""Bytes of all bodies that are held at a time; who comes then is told to come again."""


def keys_equal(given: bytes, key: str) -> bool:
    """Whether two keys are equal, in a time that does not tell how far they are.

    Outside of ASCII the encoding of a header is up to the client: curl sends UTF-8, browsers send Latin-1.
    """
    forms = [key.encode("utf-8", "surrogateescape")]
    if not key.isascii() and all(ord(character) < 256 for character in key):
        forms.append(key.encode("latin-1"))
    return sum(hmac.compare_digest(given, form) for form in forms) > 0


def bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key of an ``Authorization: Bearer`` header, or nothing. Two such headers are none."""
    found = [value for name, value in headers if name.lower() == b"authorization"]
    kind, _, key = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
    return key.strip() if kind.lower() == b"bearer" else b""


class _RefusedError(Exception):
    """A body that is not taken: status, message, code, and whether all of it was read."""

    def __init__(self, status: int, message: str, code: str, whole: bool = False) -> None:
        super().__init__(message)
        self.response, self.whole = error_response(status, message, code=code), whole


class _GoneError(Exception):
    """The client left before its body was whole."""


class AccessMiddleware:
    """ASGI middleware: 401 without the key where one is set, 413 for a body that is too large.

    A body is read whole before the route sees it (it is small, or refused), whether or not its length was announced.

    Args:
        app: behind the gate.
        key: None lets everybody in.
        admin_key: likewise good for everything.
        max_bytes: of a body.
    """

    def __init__(self, app: Any, key: str | None, admin_key: str | None, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.keys = [one for one in (key, admin_key) if one] if key else []
        self.held = 0  # bytes of all bodies

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.keys and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            given = bearer_key(scope["headers"])
            if not sum(keys_equal(given, key) for key in self.keys):
                what = "wrong API key" if given else "an API key is needed: Authorization: Bearer KEY"
                await respond_early(error_response(401, what, code="invalid_api_key"), scope, receive, send)
                return
        body = bytearray()
        try:
            await self._read(scope, receive, body)
            await self._check_values(body)
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
            await self.app(scope, _replay(message, receive), send)
        except _RefusedError as refused:
            await respond_early(refused.response, scope, receive, send, begun=len(body) > 0, whole=refused.whole)
        except _GoneError:
            return
        finally:
            self.held -= len(body)

    async def _read(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Take in a body.

        Raises:
            _RefusedError: it is too large, or too much is held already.
            _GoneError: the client left.
        """
        announced = dict(scope["headers"]).get(b"content-length", b"0").strip()
        size = int(announced) if re.fullmatch(rb"[0-9]{1,18}", announced) else self.max_bytes + 1
        more = True
        while more:
            if max(size, len(body)) > self.max_bytes:
                raise _RefusedError(413, f"the body is larger than {self.max_bytes} bytes", "body_too_large")
            if self.held > max(MAX_HELD_BYTES, self.max_bytes):
                raise _RefusedError(503, "too many large requests at a time; try again a little later", "overloaded")
            message = await receive()
            if message["type"] != "http.request":
                raise _GoneError
            piece, more = message.get("body", b""), message.get("more_body", False)
            body += piece
            self.held += len(piece)
        if len(body) > self.max_bytes:
            raise _RefusedError(413, f"the body is larger than {self.max_bytes} bytes", "body_too_large", whole=True)

    async def _check_values(self, body: bytearray) -> None:
        """Refuse what would hold up everybody when it is parsed, whoever parses it.

        Raises:
            _RefusedError: it has too many values.
        """
        if len(body) >= LARGE and await away(len(body), has_too_many_values, body):
            message = f"the body is too large: it has more than {MAX_VALUES} values"
            raise _RefusedError(413, message, "body_too_large", whole=True)


def _replay(body: Message, receive: Receive) -> Receive:
    waiting = [body]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again
