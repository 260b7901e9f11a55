"""Who asks: the cookies of a request, whose session it may name, and what its headers say about this server."""

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
"""By which the pages of one browser are known."""

Headers = Sequence[tuple[bytes, bytes]]
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Browser:
    """The sender of a request.

    Attributes:
        cookies: of the request.
        mark: added to the names of its sessions; "" without a cookie of the page.
    """

    cookies: Mapping[str, str]
    mark: str

    def session(self, name: Any) -> str:
        """The session that is meant by the name a client gave it. Whoever does not send the cookie of the browser that
        opened a session means another one by the same name.

        Raises:
            RefusedError: no name that a client of gradio gives.
        """
        if not isinstance(name, str) or not _SESSION.fullmatch(name):
            raise RefusedError(400, "session_hash: 1 to 64 letters, digits, - or _ are needed")
        return name + self.mark

    def logged_in(self, page: Any) -> bool:
        """Whether gradio's login was passed, if there is one.

        Args:
            page: gradio's application.
        """
        names = (f"access-token-{page.cookie_id}", f"access-token-unsecure-{page.cookie_id}")
        return page.auth is None or any(self.cookies.get(name) in page.tokens for name in names)


class BrowserCookies:
    """Tells visitors apart. What it adds to the name of a session cannot be told from the cookie by anybody else."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def visitor(self, headers: Headers) -> Browser:
        """Of a request."""
        text = "; ".join(value.decode("latin-1") for name, value in headers if name.lower() == b"cookie")
        cookies = cookie_parser(text)
        token = cookies.get(COOKIE, "")
        if not _TOKEN.fullmatch(token):
            return Browser(cookies, "")
        return Browser(cookies, "." + hashlib.blake2b(token.encode(), key=self._secret, digest_size=16).hexdigest())

    @staticmethod
    def new() -> bytes:
        """The header's value that marks a browser."""
        return f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax".encode()


def sound_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Without those that would make gradio take another server for this one, or fail over an address that is none.

    Raises:
        RefusedError: the Host header is no address.
    """
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"host" and not _is_host(value):
            raise RefusedError(400, "Host: this is no address")
        if lower == b"x-gradio-server" or (lower == b"x-forwarded-host" and not _is_host(value.split(b",")[0].strip())):
            continue
        kept.append((name, value))
    return kept


def _is_host(value: bytes) -> bool:
    text = value.decode("latin-1")
    found = _HOST.fullmatch(text)
    if found is None or int(found[1] or 0) > 65535:
        return False
    try:
        httpx.URL(f"http://{text}")  # as gradio takes it apart
    except httpx.InvalidURL:
        return False
    return True
