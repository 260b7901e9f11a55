"""Which hosts and web pages may use the server: its own, and those that the user named.

A browser sends requests on behalf of whatever page it shows. So any web site can reach a server that listens on its reader's
own machine: directly (only the response is hidden from it), or under a host name of its own that it resolves to that machine
(DNS rebinding). What the browser says of a request reveals both: ``Host``, ``Origin``, ``Sec-Fetch-Site``. Programs send no
``Origin`` and are let through.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.edges.http.errors import ApiError, error_response
from ptuning.edges.http.hosts import ANY, Host, Origin, hosts_of, parse_host, parse_origin
from ptuning.edges.http.middleware.asgi import Message, Receive, Send
from ptuning.edges.http.middleware.early_response import respond_early


class OriginMiddleware:
    """Rejects requests to foreign host names and requests from foreign web pages. It protects API and page alike.

    Args:
        app: the next ASGI application.
        own_host: the value of ``--host``, one of the server's own names.
        loopback: whether the server listens on a loopback address; then only its own names are accepted.
        allowed_hosts: further names of the server, such as a proxy's; ``*``: every name. Where any are given, the ``Host``
            header is checked on other addresses too.
        cors_origins: other origins whose pages may call the server; ``*``: all.
    """

    def __init__(
        self,
        app: object,
        *,
        own_host: str,
        loopback: bool,
        allowed_hosts: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
    ) -> None:
        self.app = app
        self.any_origin, self.origins = ANY in cors_origins, frozenset(cors_origins)
        self.allowed = hosts_of(allowed_hosts)
        self.names = {host.name for host in (*self.allowed, *hosts_of([own_host]), *hosts_of(cors_origins))}
        self.own_names_only = ANY not in allowed_hosts and (loopback or bool(allowed_hosts))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it before any of its body is read."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)  # type: ignore[operator]
            return
        try:
            self.check(scope)
        except ApiError as error:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            await respond_early(error_response(error.status, error.message, code=error.code), scope, receive, send)
            return
        await self.app(self.without_foreign_proxy(scope), receive, send)  # type: ignore[operator]

    def without_foreign_proxy(self, scope: Message) -> Message:
        """The request without ``X-Forwarded-Host`` where that names a foreign host: the page would trust it."""
        forwarded = _header_values(scope, b"x-forwarded-host")
        hosts = [parse_host(value.partition(",")[0].strip()) for value in forwarded]
        if all(host is not None and (host.is_loopback or host.name in self.names) for host in hosts):
            return scope
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-forwarded-host"]
        return scope | {"headers": headers}

    def check(self, scope: Message) -> None:
        """Check the headers of a request.

        Raises:
            ApiError: 400 for an invalid ``Host``; 403 for a foreign host name or page.
        """
        host = self._checked_host(scope)
        origins = _header_values(scope, b"origin")
        if self.any_origin or (len(origins) == 1 and origins[0].strip().lower() in self.origins):
            return
        if origins:
            origin = parse_origin(origins[0].strip()) if len(origins) == 1 else None
            if origin is None or not self._is_own(origin, host):
                raise ApiError(403, _foreign_page(origins[0]), code="origin_not_allowed")
        sites = [value.strip().lower() for value in _header_values(scope, b"sec-fetch-site")]
        if "cross-site" in sites and not _is_followed_link(scope):
            raise ApiError(403, _foreign_page("another site"), code="origin_not_allowed")

    def _checked_host(self, scope: Message) -> Host | None:
        """The host that the request is addressed to, if it is one of the server's."""
        values = _header_values(scope, b"host")
        host = parse_host(values[0].strip()) if len(values) == 1 else None
        if not values and scope.get("http_version") == "1.0":
            return None  # a simple probe: every browser sends the header
        if host is None and (values or self.own_names_only):
            raise ApiError(400, "one Host header is needed, with the server's name or address", code="invalid_host")
        if host is None or not self.own_names_only:
            return host
        if host.is_loopback or host.name in self.names or host.name == _server_address(scope):
            return host
        message = (
            f"the Host header names {host.name}, which is not a name of this server: use localhost or its address, or start "
            f"it with --allowed_hosts {host.name}"
        )
        raise ApiError(403, message, code="host_not_allowed")

    def _is_own(self, origin: Origin, host: Host | None) -> bool:
        """Whether a page was loaded from this server itself, directly or through a proxy among ``allowed_hosts``."""
        return any(origin.is_at(own) for own in (*([host] if host else []), *self.allowed))


def _server_address(scope: Message) -> str | None:
    """The server's address on which the connection arrived; no foreign host name can equal it."""
    address = (scope.get("server") or ("",))[0]
    host = parse_host(f"[{address}]" if ":" in address else address)
    return host.name if host else None


def _is_followed_link(scope: Message) -> bool:
    """Whether the user followed a link: the response becomes a page of its own, which the page with the link cannot read."""
    modes, destinations = _header_values(scope, b"sec-fetch-mode"), _header_values(scope, b"sec-fetch-dest")
    is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return is_read and modes == ["navigate"] and destinations in ([], ["document"])


def _header_values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _foreign_page(origin: str) -> str:
    shown = origin[:100] if origin.isascii() and origin.isprintable() and origin else "another site"
    flag = f": start the server with --cors_origins {shown} if they should" if "://" in shown else ""
    return f"web pages of {shown} may not call this server{flag}"
