"""The headers by which a browser lets the page load nothing from elsewhere and run no script but its own."""

from __future__ import annotations

import secrets
from typing import Any

from ptuning.edges.http.middleware.asgi import Message, Receive, Send


class SecurityHeadersMiddleware:
    """Adds a Content-Security-Policy and its companions to every response of the page.

    Each script in the page's HTML gets a nonce that is new for every request; whatever enters the page later, from an answer
    for example, does not know it. gradio needs ``unsafe-eval``: its components compile their templates.

    Args:
        app: the page.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, and add to the response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        if any(name == b"accept" and b"text/html" in value for name, value in scope["headers"]):
            # The nonce cannot be inserted into compressed HTML.
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = scope | {"headers": headers}
        await self.app(scope, receive, _HeaderSender(send, nonce))


class _HeaderSender:
    """Sends a response with further headers; HTML only once it is complete, with the nonce in every script tag."""

    def __init__(self, send: Send, nonce: str) -> None:
        self.send, self.nonce = send, nonce
        self.start: Message | None = None  # of an HTML response whose body is still incomplete
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name.lower(), value) for name, value in message["headers"]]
            is_html = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
            is_compressed = any(name == b"content-encoding" for name, _ in headers)
            headers += [(name.encode(), value.encode()) for name, value in security_headers(self.nonce).items()]
            message = message | {"headers": headers}
            if is_html and not is_compressed:
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


def security_headers(nonce: str) -> dict[str, str]:
    """The headers for one response of the page."""
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
