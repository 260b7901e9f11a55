"""Access to the API: the API key, and how large a request body may be."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Any

from ptuning.edges.http.errors import error_response
from ptuning.edges.http.json_body import MAX_VALUES, has_too_many_values
from ptuning.edges.http.middleware.asgi import Message, Receive, Send, replay_body
from ptuning.edges.http.middleware.early_response import respond_early
from ptuning.edges.http.worker_threads import LARGE, run_in_worker

PUBLIC_PATHS = frozenset({"/health"})
"""Paths that need no key: a load balancer has none."""
MAX_BUFFERED_BYTES = 128 * 1024 * 1024
"""Limit for the bodies of all requests in progress together; beyond it, new requests get status 503."""


def keys_equal(given: bytes, key: str) -> bool:
    """Compare two keys in a time that does not reveal how much of them agrees.

    Clients choose the encoding of a header outside ASCII: curl sends UTF-8, browsers send Latin-1.
    """
    encodings = [key.encode("utf-8", "surrogateescape")]
    if not key.isascii() and all(ord(character) < 256 for character in key):
        encodings.append(key.encode("latin-1"))
    return sum(hmac.compare_digest(given, encoded) for encoded in encodings) > 0


def bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key of an ``Authorization: Bearer`` header; empty without one, or with more than one."""
    values = [value for name, value in headers if name.lower() == b"authorization"]
    scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    return key.strip() if scheme.lower() == b"bearer" else b""


class _RejectedError(Exception):
    """A body that is not accepted; carries the response, and whether the body has been read to its end."""

    def __init__(self, status: int, message: str, code: str, body_complete: bool = False) -> None:
        super().__init__(message)
        self.response, self.body_complete = error_response(status, message, code=code), body_complete


class _DisconnectedError(Exception):
    """The client left before its body was complete."""


class AccessMiddleware:
    """Responds with 401 to a wrong or missing key, and with 413 to a body that is too large.

    The whole body is read before the route is called (it is small, or rejected), whether or not its length was announced.

    Args:
        app: the next ASGI application.
        key: the API key; None: no key is needed.
        admin_key: accepted wherever the API key is.
        max_bytes: of a body.
    """

    def __init__(self, app: Any, key: str | None, admin_key: str | None, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.keys = [accepted for accepted in (key, admin_key) if accepted] if key else []
        self.buffered_bytes = 0  # of all requests in progress

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond to it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.keys and scope["path"] not in PUBLIC_PATHS and scope["method"] != "OPTIONS":
            given = bearer_key(scope["headers"])
            if not sum(keys_equal(given, key) for key in self.keys):
                message = "wrong API key" if given else "an API key is needed: Authorization: Bearer KEY"
                await respond_early(error_response(401, message, code="invalid_api_key"), scope, receive, send)
                return
        body = bytearray()
        try:
            await self._read(scope, receive, body)
            await self._check_values(body)
            await self.app(scope, replay_body(bytes(body), receive), send)
        except _RejectedError as rejected:
            await respond_early(
                rejected.response, scope, receive, send, body_started=len(body) > 0, body_complete=rejected.body_complete
            )
        except _DisconnectedError:
            return
        finally:
            self.buffered_bytes -= len(body)

    async def _read(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Read the body of a request into ``body``.

        Raises:
            _RejectedError: it is too large, or too many bodies are being held already.
            _DisconnectedError: the client left.
        """
        announced = dict(scope["headers"]).get(b"content-length", b"0").strip()
        size = int(announced) if re.fullmatch(rb"[0-9]{1,18}", announced) else self.max_bytes + 1
        more = True
        while more:
            if max(size, len(body)) > self.max_bytes:
                raise _RejectedError(413, f"the body is larger than {self.max_bytes} bytes", "body_too_large")
            if self.buffered_bytes > max(MAX_BUFFERED_BYTES, self.max_bytes):
                raise _RejectedError(503, "too many large requests at a time; try again a little later", "overloaded")
            message = await receive()
            if message["type"] != "http.request":
                raise _DisconnectedError
            piece, more = message.get("body", b""), message.get("more_body", False)
            body += piece
            self.buffered_bytes += len(piece)
        if len(body) > self.max_bytes:
            too_large = f"the body is larger than {self.max_bytes} bytes"
            raise _RejectedError(413, too_large, "body_too_large", body_complete=True)

    async def _check_values(self, body: bytearray) -> None:
        """Reject a body whose parsing would block all other requests, whichever route parses it.

        Raises:
            _RejectedError: it has too many values.
        """
        if len(body) >= LARGE and await run_in_worker(len(body), has_too_many_values, body):
            message = f"the body is too large: it has more than {MAX_VALUES} values"
            raise _RejectedError(413, message, "body_too_large", body_complete=True)
