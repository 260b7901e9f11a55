"""Which browser sent a request: its cookies, the sessions that it may use, and its headers made safe for gradio."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.requests import cookie_parser

from ptuning.edges.web.functions import RefusedError

COOKIE = "ptuning_visitor"
"""Name of the cookie that tells browsers apart."""

Headers = Sequence[tuple[bytes, bytes]]
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Browser:
    """The browser that sent a request.

    Attributes:
        cookies: of the request.
        suffix: appended to the names of its sessions; "" where it does not send our cookie.
    """

    cookies: Mapping[str, str]
    suffix: str

    def session(self, name: Any) -> str:
        """The server's name for the session that a client calls ``name``. The same name means different sessions for
        different browsers, so that nobody can use the session of another one.

        Raises:
            RefusedError: not a name that gradio's clients use.
        """
        if not isinstance(name, str) or not _SESSION.fullmatch(name):
            raise RefusedError(400, "session_hash: 1 to 64 letters, digits, - or _ are needed")
        return name + self.suffix

    def logged_in(self, page: Any) -> bool:
        """Whether the user has logged in, or gradio asks for no login.

        Args:
            page: gradio's application.
        """
        names = (f"access-token-{page.cookie_id}", f"access-token-unsecure-{page.cookie_id}")
        return page.auth is None or any(self.cookies.get(name) in page.tokens for name in names)


class BrowserCookies:
    """Tells browsers apart by a cookie. The suffix of their sessions depends on the cookie and a secret of this process."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def browser(self, headers: Headers) -> Browser:
        """The browser that sent a request with these headers."""
        text = "; ".join(value.decode("latin-1") for name, value in headers if name.lower() == b"cookie")
        cookies = cookie_parser(text)
        token = cookies.get(COOKIE, "")
        if not _TOKEN.fullmatch(token):
            return Browser(cookies, "")
        return Browser(cookies, "." + hashlib.blake2b(token.encode(), key=self._secret, digest_size=16).hexdigest())

    @staticmethod
    def new() -> bytes:
        """The value of a ``Set-Cookie`` header for a browser that has no cookie yet."""
        return f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax".encode()


def safe_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers without those that would make gradio mistake another server for this one, or fail on an invalid address.

    Raises:
        RefusedError: the Host header is not an address.
    """
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"host" and not _is_host(value):
            raise RefusedError(400, "Host: not a valid address")
        if lower == b"x-gradio-server" or (lower == b"x-forwarded-host" and not _is_host(value.split(b",")[0].strip())):
            continue
        kept.append((name, value))
    return kept


def _is_host(value: bytes) -> bool:
    text = value.decode("latin-1")
    match = _HOST.fullmatch(text)
    if match is None or int(match[1] or 0) > 65535:
        return False
    try:
        httpx.URL(f"http://{text}")  # the parser that gradio uses
    except httpx.InvalidURL:
        return False
    return True
