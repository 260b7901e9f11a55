"""What stands between the network and gradio: the few routes that the page needs, and bodies that hold plain values only.

gradio serves many more routes than a page uses (files, uploads, a proxy, streams, an editor), and turns whatever looks like
a file into one. Here everything is closed that is not named below, and what is let through is written anew from the values
that were checked: gradio never parses a stranger's body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ptuning.core.reading import parse_json
from ptuning.edges.web.browser import Browser, BrowserCookies, sound_headers
from ptuning.edges.web.functions import Function, RefusedError, refuse_files
from ptuning.edges.web.queue_limits import QueueLimits

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LONG_BODY = 64_000
"""Bytes from which on a body is read in another thread."""


@dataclass(frozen=True)
class _Route:
    """One of the ways through.

    Attributes:
        method: of HTTP; where it is GET, HEAD is as good.
        pattern: of the whole path.
        open: whether it needs no login.
        way: the guard's method that lets it through.
    """

    method: str
    pattern: re.Pattern[str]
    open: bool = False
    way: str = "_hand_on"


_ROUTES = (
    _Route("GET", re.compile(r"/?|/(theme\.css|favicon\.ico|manifest\.json|robots\.txt|logout)"), open=True),
    _Route("GET", re.compile(r"/(assets|static)(/[A-Za-z0-9_@-][A-Za-z0-9_@.-]*)+"), open=True),
    _Route("POST", re.compile(r"/login"), open=True, way="_log_in"),
    _Route("GET", re.compile(r"/config|/gradio_api/(info|app_id)")),
    _Route("GET", re.compile(r"/gradio_api/heartbeat/([^/]+)"), way="_keep_open"),
    _Route("GET", re.compile(r"/gradio_api/queue/data"), way="_follow"),
    _Route("POST", re.compile(r"/gradio_api/(?:queue/join|run/([^/]+))"), way="_call"),
    _Route("POST", re.compile(r"/gradio_api/cancel"), way="_cancel"),
)


class AllowlistMiddleware:
    """ASGI: lets through to gradio what the page needs, and answers everything else itself.

    - Routes, methods and query parameters that the page does not use do not exist.
    - Bodies are JSON with plain values; see :class:`~ptuning.edges.web.functions.Function`.
    - With a login, everything but the login itself and the page's own scripts and styles wants its cookie.
    - A session belongs to the browser that opened it; see :class:`~ptuning.edges.web.browser.Browser`.

    Args:
        app: that gradio is mounted on.
        page: gradio's own application.
        functions: that may be called, by their numbers.
        streams: the answers that are waited for.
        max_characters: of a text in a body; longer ones are cut, see :meth:`Function.checked`.
    """

    def __init__(
        self, app: Any, *, page: Any, functions: Mapping[int, Function], streams: QueueLimits, max_characters: int
    ) -> None:
        self.app, self.page, self.functions, self.streams = app, page, functions, streams
        self.max_characters = max_characters
        self.cookies = BrowserCookies()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "websocket":  # nothing of the page uses one
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            try:
                await self._admit(scope, receive, send)
            except RefusedError as error:
                # Under both names: gradio's clients read one for calls and the other for the queue.
                response = JSONResponse({"error": error.message, "detail": error.message}, error.status)
                await response(scope, receive, send)  # type: ignore[arg-type]

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        visitor = self.cookies.visitor(scope["headers"])
        route, found = _route(scope["method"], scope["path"])
        if not route.open and not visitor.logged_in(self.page):
            raise RefusedError(401, "Not authenticated: log in on the page")
        scope = scope | {"headers": sound_headers(scope["headers"])}
        new = scope["path"] in ("", "/") and not visitor.mark
        await getattr(self, route.way)(visitor, found, scope, receive, _Answer(send, self.cookies.new() if new else None))

    # ---- the ways through

    async def _hand_on(self, _: Browser, found: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """As it is, without its query: gradio would look up what that names, and the page needs none of it."""
        await self.app(scope | {"query_string": b""}, receive, send)

    async def _log_in(self, _: Browser, found: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """User and password, as a form."""
        if self.page.auth is None:
            raise RefusedError(404, "the page has no login")
        try:
            form = await Request(scope, receive).form(max_files=0, max_fields=10)  # type: ignore[arg-type]
        except HTTPException as error:
            raise RefusedError(400, f"the form cannot be read: {error.detail}") from None
        given = {name: form.get(name) for name in ("username", "password")}
        if not all(isinstance(value, str) and value for value in given.values()):
            raise RefusedError(400, "username and password are needed, as a form")
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        headers.append((b"content-type", b"application/x-www-form-urlencoded"))
        await self._send_on(urlencode(given), scope | {"headers": headers}, receive, send)

    async def _keep_open(self, visitor: Browser, found: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The connection that shows that a page is open."""
        path = f"/gradio_api/heartbeat/{visitor.session(found[1])}"
        await self.app(scope | {"path": path, "raw_path": path.encode(), "query_string": b""}, receive, send)

    async def _follow(self, visitor: Browser, _: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The answers of a session."""
        names = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])
        session = visitor.session(names[-1])
        with self.streams.reading(session):
            await self.app(scope | {"query_string": urlencode({"session_hash": session}).encode()}, receive, send)

    async def _call(self, visitor: Browser, found: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """A press on the page, at once (``run``) or with an answer in pieces (``queue``)."""
        body = await _body(scope, receive)
        function = self._function(body, found[1])
        data = function.checked(body.get("data"), self.max_characters)
        passed: dict[str, Any] = {"fn_index": function.number, "data": data}
        if body.get("session_hash") is not None or function.streams:
            passed["session_hash"] = visitor.session(body.get("session_hash"))
        if found[1] is None:
            await self.streams.admit(passed["session_hash"])
        elif function.streams:
            raise RefusedError(400, "answers come in pieces: POST /gradio_api/queue/join")
        path = "/gradio_api/queue/join" if found[1] is None else "/gradio_api/run/predict"
        await self._send_on(json.dumps(passed), scope | {"path": path, "raw_path": path.encode()}, receive, send)

    async def _cancel(self, visitor: Browser, _: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The end of an answer, as gradio's own client asks for it."""
        body = await _body(scope, receive)
        session, event = visitor.session(body.get("session_hash")), body.get("event_id")
        function = self._function(body, None)
        if not isinstance(event, str) or not self.streams.owns(session, event):
            raise RefusedError(404, "event_id: this session waits for no such answer")
        passed = {"session_hash": session, "fn_index": function.number, "event_id": event}
        await self._send_on(json.dumps(passed), scope, receive, send)

    # ---- bodies

    def _function(self, body: Mapping[str, Any], name: str | None) -> Function:
        """The function that is called: by its number, or by the name in the path."""
        number = body.get("fn_index")
        if number is None and name is not None:
            found = next((one for one in self.functions.values() if one.name == name), None)
        else:
            found = self.functions.get(number) if type(number) is int else None
        if found is None:
            raise RefusedError(404, "there is no such function of the page")
        return found

    async def _send_on(self, body: str, scope: Message, receive: Receive, send: Send) -> None:
        """The same request with a body of our own."""
        text = body.encode()
        headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"accept-encoding")]
        headers.append((b"content-length", str(len(text)).encode()))  # and nothing is packed: that would take longer
        waiting = iter([{"type": "http.request", "body": text, "more_body": False}])

        async def receive_body() -> Message:
            message = next(waiting, None)
            return await receive() if message is None else message

        await self.app(scope | {"headers": headers, "query_string": b""}, receive_body, send)


def _route(method: str, path: str) -> tuple[_Route, re.Match[str]]:
    """The way a request takes.

    Raises:
        RefusedError: there is none.
    """
    allowed = ""
    for route in _ROUTES:
        found = route.pattern.fullmatch(path)
        if found is not None and method in (route.method, "HEAD" if route.method == "GET" else ""):
            return route, found
        allowed = route.method if found is not None else allowed
    raise RefusedError(405, f"Method Not Allowed: {allowed}") if allowed else RefusedError(404, "Not Found")


async def _body(scope: Message, receive: Receive) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        RefusedError: it brings something else, or a file in it.
    """
    headers = {name.lower(): value.decode("latin-1").lower() for name, value in scope["headers"]}
    if headers.get(b"content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(415, "Content-Type: application/json is needed")
    if headers.get(b"content-encoding", "identity") != "identity":
        raise RefusedError(415, "Content-Encoding: a packed body is not read")
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    data = b"".join(pieces)
    return await run_in_threadpool(_read, data) if len(data) > _LONG_BODY else _read(data)


def _read(data: bytes) -> dict[str, Any]:
    try:
        body = parse_json(data.decode())
    except UnicodeDecodeError:
        raise RefusedError(400, "the body is not UTF-8") from None
    except ValueError as error:
        raise RefusedError(400, f"the body is no JSON that can be read: {error}") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is no JSON object")
    refuse_files(body)
    return body


class _Answer:
    """Sends a response on: never for other origins, and to a new browser with its cookie."""

    def __init__(self, send: Send, cookie: bytes | None) -> None:
        self.send, self.cookie = send, cookie

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
            if self.cookie is not None:
                headers.append((b"set-cookie", self.cookie))
            message = message | {"headers": headers}
        await self.send(message)
