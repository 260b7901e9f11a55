"""Which web pages may talk to the server: its own, and those that it was told of.

A browser sends requests for whatever page it shows. A page of a stranger can so reach a server that listens on its reader's
own machine: straight away (only the answer is kept from it), or under a name of its own that it lets point there (DNS
rebinding). Both can be told by what the browser says of itself: ``Host``, ``Origin``, ``Sec-Fetch-Site``. Programs send no
``Origin`` and are let through.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.edges.http.errors import ApiError, error_response
from ptuning.edges.http.hosts import ANY, Host, Origin, hosts_of, parse_host, parse_origin
from ptuning.edges.http.middleware.early_response import Message, Receive, Send, respond_early


class OriginMiddleware:
    """ASGI middleware around everything that is served, the page included.

    Args:
        app: behind it.
        own_host: what ``--host`` says, one of the server's own names.
        loopback: whether it listens on this machine alone; then it answers to its own names only.
        allowed_hosts: further names that it answers to, also behind a proxy; ``*``: to all. Given at all, they are all the
            names there are on other addresses, too.
        cors_origins: other origins whose pages may call it; ``*``: all.
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
        """Let a request in, or respond_early it before anything of it was read."""
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
        await self.app(self._with_own_names(scope), receive, send)  # type: ignore[operator]

    def _with_own_names(self, scope: Message) -> Message:
        """Without a proxy's word for the host that was asked for, where that is a stranger's: the page would believe it."""
        forwarded = _values(scope, b"x-forwarded-host")
        hosts = [parse_host(value.partition(",")[0].strip()) for value in forwarded]
        if all(host is not None and (host.is_loopback or host.name in self.names) for host in hosts):
            return scope
        kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-forwarded-host"]
        return scope | {"headers": kept}

    def check(self, scope: Message) -> None:
        """Look at the headers of a request.

        Raises:
            ApiError: 400 for a ``Host`` that is none; 403 for a foreign name or page.
        """
        host = self._host(scope)
        origins = _values(scope, b"origin")
        if self.any_origin or (len(origins) == 1 and origins[0].strip().lower() in self.origins):
            return
        if origins:
            origin = parse_origin(origins[0].strip()) if len(origins) == 1 else None
            if origin is None or not self._own(origin, host):
                raise ApiError(403, _foreign(origins[0]), code="origin_not_allowed")
        if "cross-site" in (value.strip().lower() for value in _values(scope, b"sec-fetch-site")) and not _is_link(scope):
            raise ApiError(403, _foreign("another site"), code="origin_not_allowed")

    def _host(self, scope: Message) -> Host | None:
        """The host that was asked for, if it is one of the server's."""
        values = _values(scope, b"host")
        host = parse_host(values[0].strip()) if len(values) == 1 else None
        if not values and scope.get("http_version") == "1.0":
            return None  # simple probes: every browser sends one
        if host is None and (values or self.own_names_only):
            raise ApiError(400, "one Host header is needed, with the server's name or address", code="invalid_host")
        if host is None or not self.own_names_only:
            return host
        if host.is_loopback or host.name in self.names or host.name == _reached_address(scope):
            return host
        message = (
            f"the Host header names {host.name}, which is not a name of this server: use localhost or its address, or start "
            f"it with --allowed_hosts {host.name}"
        )
        raise ApiError(403, message, code="host_not_allowed")

    def _own(self, origin: Origin, host: Host | None) -> bool:
        """Whether a page was loaded from this server itself, perhaps through a proxy that was named."""
        return any(origin.is_at(one) for one in (*([host] if host else []), *self.allowed))


def _reached_address(scope: Message) -> str | None:
    """The server's address at which the connection came in; no name of a stranger's is one."""
    address = (scope.get("server") or ("",))[0]
    found = parse_host(f"[{address}]" if ":" in address else address)
    return found.name if found else None


def _is_link(scope: Message) -> bool:
    """Whether somebody followed a link: the answer becomes a page of its own, which the page with the link cannot see."""
    modes, places = _values(scope, b"sec-fetch-mode"), _values(scope, b"sec-fetch-dest")
    fine = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return fine and modes == ["navigate"] and places in ([], ["document"])


def _values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _foreign(whose: str) -> str:
    shown = whose[:100] if whose.isascii() and whose.isprintable() and whose else "another site"
    flag = f": start the server with --cors_origins {shown} where they may" if "://" in shown else ""
    return f"web pages of {shown} may not call this server{flag}"
