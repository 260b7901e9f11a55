"""The middleware in front of gradio: an allowlist of the few routes that the page needs, and bodies with scalar values only.

gradio serves many more routes than a page uses (files, uploads, a proxy, streams, an editor), and turns whatever looks like
a file into one. Everything that is not listed below is rejected here, and what is passed on is rebuilt from checked values:
gradio never parses a body that a client wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ptuning.core.reading import parse_json
from ptuning.edges.http.middleware.asgi import Message, Receive, Send, replay_body
from ptuning.edges.web.browser import Browser, BrowserCookies, safe_headers
from ptuning.edges.web.functions import Function, RefusedError, refuse_files
from ptuning.edges.web.queue_limits import QueueLimits

_LONG_BODY = 64_000
"""Bytes from which on a body is parsed in another thread."""


@dataclass(frozen=True)
class _Route:
    """An allowed route.

    Attributes:
        method: of HTTP; GET includes HEAD.
        pattern: of the whole path.
        public: whether it needs no login.
        handler: the middleware's method that checks the request and passes it on.
    """

    method: str
    pattern: re.Pattern[str]
    public: bool = False
    handler: str = "_pass_on"


_ROUTES = (
    _Route("GET", re.compile(r"/?|/(theme\.css|favicon\.ico|manifest\.json|robots\.txt|logout)"), public=True),
    _Route("GET", re.compile(r"/(assets|static)(/[A-Za-z0-9_@-][A-Za-z0-9_@.-]*)+"), public=True),
    _Route("POST", re.compile(r"/login"), public=True, handler="_log_in"),
    _Route("GET", re.compile(r"/config|/gradio_api/(info|app_id)")),
    _Route("GET", re.compile(r"/gradio_api/heartbeat/([^/]+)"), handler="_heartbeat"),
    _Route("GET", re.compile(r"/gradio_api/queue/data"), handler="_read_answers"),
    _Route("POST", re.compile(r"/gradio_api/(?:queue/join|run/([^/]+))"), handler="_call"),
    _Route("POST", re.compile(r"/gradio_api/cancel"), handler="_cancel"),
)


class AllowlistMiddleware:
    """Passes on to gradio what the page needs, and rejects everything else.

    - Routes, methods and query parameters that the page does not use do not exist.
    - Bodies are JSON with scalar values; see :class:`~ptuning.edges.web.functions.Function`.
    - With a login, everything but the login itself and the page's own scripts and styles needs its cookie.
    - A session belongs to the browser that opened it; see :class:`~ptuning.edges.web.browser.Browser`.

    Args:
        app: the application that gradio is mounted on.
        page: gradio's own application.
        functions: that may be called, by their numbers.
        queue_limits: of the answers in gradio's queue.
        max_characters: limit of a string in a body; longer ones are cut, see :meth:`Function.checked`.
    """

    def __init__(
        self, app: Any, *, page: Any, functions: Mapping[int, Function], queue_limits: QueueLimits, max_characters: int
    ) -> None:
        self.app, self.page, self.functions, self.queue_limits = app, page, functions, queue_limits
        self.max_characters = max_characters
        self.cookies = BrowserCookies()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        if scope["type"] == "websocket":  # the page uses none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            try:
                await self._admit(scope, receive, send)
            except RefusedError as error:
                # gradio's clients read "error" for calls and "detail" for the queue.
                response = JSONResponse({"error": error.message, "detail": error.message}, error.status)
                await response(scope, receive, send)  # type: ignore[arg-type]

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        browser = self.cookies.browser(scope["headers"])
        route, match = _route(scope["method"], scope["path"])
        if not route.public and not browser.logged_in(self.page):
            raise RefusedError(401, "Not authenticated: log in on the page")
        scope = scope | {"headers": safe_headers(scope["headers"])}
        is_new = scope["path"] in ("", "/") and not browser.suffix
        sender = _ResponseSender(send, self.cookies.new() if is_new else None)
        await getattr(self, route.handler)(browser, match, scope, receive, sender)

    # ---- the handlers of the routes

    async def _pass_on(self, _: Browser, match: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """Unchanged but for the query: gradio would look up what it names, and the page needs none."""
        await self.app(scope | {"query_string": b""}, receive, send)

    async def _log_in(self, _: Browser, match: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The login: user and password as a form."""
        if self.page.auth is None:
            raise RefusedError(404, "the page has no login")
        try:
            form = await Request(scope, receive).form(max_files=0, max_fields=10)  # type: ignore[arg-type]
        except HTTPException as error:
            raise RefusedError(400, f"the form cannot be read: {error.detail}") from None
        fields = {name: form.get(name) for name in ("username", "password")}
        if not all(isinstance(value, str) and value for value in fields.values()):
            raise RefusedError(400, "username and password are needed, as a form")
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        headers.append((b"content-type", b"application/x-www-form-urlencoded"))
        await self._send_body(urlencode(fields), scope | {"headers": headers}, receive, send)

    async def _heartbeat(self, browser: Browser, match: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The connection that a page holds while it is open."""
        path = f"/gradio_api/heartbeat/{browser.session(match[1])}"
        await self.app(scope | {"path": path, "raw_path": path.encode(), "query_string": b""}, receive, send)

    async def _read_answers(self, browser: Browser, _: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The stream with the answers of a session."""
        names = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])
        session = browser.session(names[-1])
        with self.queue_limits.reading(session):
            await self.app(scope | {"query_string": urlencode({"session_hash": session}).encode()}, receive, send)

    async def _call(self, browser: Browser, match: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """A function call, with the result in the response (``run``) or in pieces through the queue (``queue/join``)."""
        body = await _body(scope, receive)
        function = self._function(body, match[1])
        data = function.checked(body.get("data"), self.max_characters)
        call: dict[str, Any] = {"fn_index": function.number, "data": data}
        if body.get("session_hash") is not None or function.streams:
            call["session_hash"] = browser.session(body.get("session_hash"))
        if match[1] is None:
            await self.queue_limits.admit(call["session_hash"])
        elif function.streams:
            raise RefusedError(400, "answers come in pieces: POST /gradio_api/queue/join")
        path = "/gradio_api/queue/join" if match[1] is None else "/gradio_api/run/predict"
        await self._send_body(json.dumps(call), scope | {"path": path, "raw_path": path.encode()}, receive, send)

    async def _cancel(self, browser: Browser, _: re.Match[str], scope: Message, receive: Receive, send: Send) -> None:
        """The cancellation of an answer, as gradio's own client requests it."""
        body = await _body(scope, receive)
        session, event = browser.session(body.get("session_hash")), body.get("event_id")
        function = self._function(body, None)
        if not isinstance(event, str) or not self.queue_limits.owns(session, event):
            raise RefusedError(404, "event_id: this session waits for no such answer")
        cancellation = {"session_hash": session, "fn_index": function.number, "event_id": event}
        await self._send_body(json.dumps(cancellation), scope, receive, send)

    # ---- bodies

    def _function(self, body: Mapping[str, Any], name: str | None) -> Function:
        """The function that a body calls by its number, or by the name in the path."""
        number = body.get("fn_index")
        if number is None and name is not None:
            function = next((function for function in self.functions.values() if function.name == name), None)
        else:
            function = self.functions.get(number) if type(number) is int else None
        if function is None:
            raise RefusedError(404, "the page has no such function")
        return function

    async def _send_body(self, body: str, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on with a rebuilt body, and ask for an uncompressed response: compressing would take longer."""
        data = body.encode()
        headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"accept-encoding")]
        headers.append((b"content-length", str(len(data)).encode()))
        await self.app(scope | {"headers": headers, "query_string": b""}, replay_body(data, receive), send)


def _route(method: str, path: str) -> tuple[_Route, re.Match[str]]:
    """The route of a request, and the match of its path.

    Raises:
        RefusedError: there is none.
    """
    allowed = ""
    for route in _ROUTES:
        match = route.pattern.fullmatch(path)
        if match is not None and method in (route.method, "HEAD" if route.method == "GET" else ""):
            return route, match
        allowed = route.method if match is not None else allowed
    raise RefusedError(405, f"Method Not Allowed: {allowed}") if allowed else RefusedError(404, "Not Found")


async def _body(scope: Message, receive: Receive) -> dict[str, Any]:
    """The body of a request, which has to be a JSON object.

    Raises:
        RefusedError: it is something else, or holds a file.
    """
    headers = {name.lower(): value.decode("latin-1").lower() for name, value in scope["headers"]}
    if headers.get(b"content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(415, "Content-Type: application/json is needed")
    if headers.get(b"content-encoding", "identity") != "identity":
        raise RefusedError(415, "Content-Encoding: compressed bodies are not accepted")
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    data = b"".join(pieces)
    return await run_in_threadpool(_parse_body, data) if len(data) > _LONG_BODY else _parse_body(data)


def _parse_body(data: bytes) -> dict[str, Any]:
    try:
        body = parse_json(data.decode())
    except UnicodeDecodeError:
        raise RefusedError(400, "the body is not UTF-8") from None
    except ValueError as error:
        raise RefusedError(400, f"the body cannot be read as JSON: {error}") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    refuse_files(body)
    return body


class _ResponseSender:
    """Sends a response without gradio's CORS headers, and with a cookie for a new browser."""

    def __init__(self, send: Send, cookie: bytes | None) -> None:
        self.send, self.cookie = send, cookie

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
            if self.cookie is not None:
                headers.append((b"set-cookie", self.cookie))
            message = message | {"headers": headers}
        await self.send(message)
