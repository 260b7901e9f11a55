"""API and page at one address: who gets a request, and what a browser may do with the page."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class PathDispatcher:
    """ASGI: requests of the API go to the API with its keys and limits, all others to the page.

    What belongs to the API is read off its schema, by the first part of the path, so that a route added there is behind its
    gate at once. ``/`` is shared: the page is looked at, the published ``POST /`` is sent.

    Args:
        api: of :func:`ptuning.edges.http.app.create_app`.
        page: of :func:`ptuning.edges.web.page_app.create_page_app`.
    """

    def __init__(self, api: Any, page: Any) -> None:
        self.api, self.page = api, page
        documents = [path for path in (api.openapi_url, api.docs_url, api.redoc_url) if path]
        self.of_the_api = {first_part(path) for path in (*api.openapi()["paths"], *documents)} - {""}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request on; starting and ending concern the page alone."""
        api = scope["type"] == "http" and self.belongs_to_the_api(scope["method"], scope["path"])
        await (self.api if api else self.page)(scope, receive, send)

    def belongs_to_the_api(self, method: str, path: str) -> bool:
        """Whether the API answers it."""
        if path in ("", "/"):
            return method not in ("GET", "HEAD")
        return first_part(path) in self.of_the_api


def first_part(path: str) -> str:
    """``/v1/models`` → ``v1``."""
    return path.lstrip("/").partition("/")[0]


class SecurityHeadersMiddleware:
    """ASGI: tells the browser to take nothing from elsewhere and to run no script but the page's own.

    Scripts in the page's HTML carry a number that is drawn anew for each request; what gets into the page later, from an
    answer for one, does not know it. ``unsafe-eval`` is gradio's need: its components compile their templates.

    Args:
        app: the page.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let the page answer and add to it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        if any(name == b"accept" and b"text/html" in value for name, value in scope["headers"]):
            # A page that comes packed could not be written into.
            headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            scope = scope | {"headers": headers}
        await self.app(scope, receive, _Sender(send, nonce))


class _Sender:
    """Sends a response on with more headers; HTML only once it is whole, with the nonce at each script."""

    def __init__(self, send: Send, nonce: str) -> None:
        self.send, self.nonce = send, nonce
        self.start: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name.lower(), value) for name, value in message["headers"]]
            is_html = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
            is_packed = any(name == b"content-encoding" for name, _ in headers)
            headers += [(name.encode(), value.encode()) for name, value in page_headers(self.nonce).items()]
            message = message | {"headers": headers}
            if is_html and not is_packed:
                self.start = message
                return
        elif self.start is not None and message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = self.body.replace(b"<script", f'<script nonce="{self.nonce}"'.encode())
            headers = [pair for pair in self.start["headers"] if pair[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            start, self.start = self.start | {"headers": headers}, None
            await self.send(start)
            message = {"type": "http.response.body", "body": body}
        await self.send(message)


def page_headers(nonce: str) -> dict[str, str]:
    """The headers of every response of the page."""
    policy = {
        "default-src": "'self'",
        "script-src": f"'self' 'unsafe-eval' 'nonce-{nonce}'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'self'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
