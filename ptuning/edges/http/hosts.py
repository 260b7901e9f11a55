"""Hosts and origins, parsed from headers and settings into a form that can be compared."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

from ptuning.core.characters import shown
from ptuning.core.errors import UserError

ANY = "*"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}))(?::(\d{0,5}))?")
_ORIGIN = re.compile(r"(https?)://([^/?#\s]+)", re.IGNORECASE)
_NUMERIC_ADDRESS = re.compile(r"(?:0x[0-9a-f]*|\d+)(?:\.(?:0x[0-9a-f]*|\d+)){0,3}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Host(NamedTuple):
    """A host name in lower case without a trailing dot (an address in canonical form), and the port where one is given."""

    name: str
    port: int | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether the name always means this machine, whatever DNS says."""
        return self.name == "localhost" or is_loopback_address(self.name)


class Origin(NamedTuple):
    """The origin of a web page: scheme, host and port."""

    scheme: str
    host: Host

    @property
    def port(self) -> int:
        """The port, given or the scheme's default."""
        return self.host.port if self.host.port is not None else _DEFAULT_PORTS[self.scheme]

    def is_at(self, host: Host) -> bool:
        """Whether a page of this origin was loaded from ``host``, whose port defaults to that of the scheme."""
        return self.host.name == host.name and self.port == (host.port or _DEFAULT_PORTS[self.scheme])


def parse_host(text: str) -> Host | None:
    """The host of a ``Host`` header or a setting: ``name``, ``name:port``, ``[address]:port``; None for anything else."""
    match = _HOST.fullmatch(text)
    if not match:
        return None
    name, port = match[1].lower().removesuffix("."), match[2]
    if port and int(port) > 65535:
        return None
    if name.startswith("["):
        try:
            address = ipaddress.IPv6Address(name[1:-1])
        except ValueError:
            return None
        name = str(address.ipv4_mapped or address)
    elif _NUMERIC_ADDRESS.fullmatch(name):  # 127.1 or 0x7f000001: never a host name
        try:
            name = socket.inet_ntoa(socket.inet_aton(name))
        except OSError:
            return None
    return Host(name, int(port) if port else None) if name else None


def parse_origin(text: str) -> Origin | None:
    """The origin of an ``Origin`` header; None for ``null`` and anything else that is not http or https."""
    match = _ORIGIN.fullmatch(text)
    host = parse_host(match[2]) if match else None
    return Origin(match[1].lower(), host) if match and host else None


def is_loopback_address(host: str) -> bool:
    """Whether an address can be reached from this machine only; False for a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def allowed_host(text: str) -> str:
    """Check a value of ``--allowed_hosts``: a name, ``name:port``, or ``*``.

    Raises:
        UserError: anything else.
    """
    try:
        value = text.strip().encode("idna").decode() if not text.isascii() else text.strip()
    except UnicodeError:
        value = ""
    if value == ANY or parse_host(value):
        return value
    raise UserError(f"--allowed_hosts {shown(text)}: allowed is a host's name as browsers send it (chat.example.com, "
                    "chat.example.com:8443), or * for any")  # fmt: skip


def allowed_origin(text: str) -> str:
    """A value of ``--cors_origins`` in the form that browsers send.

    Raises:
        UserError: it is not an origin.
    """
    value = text.strip().removesuffix("/").lower()
    if value in (ANY, "null"):
        return value
    origin = parse_origin(value)
    if origin is None:
        raise UserError(f"--cors_origins {shown(text)}: allowed is an origin with scheme and without path "
                        "(https://example.com, http://localhost:3000), or * for all")  # fmt: skip
    name = f"[{origin.host.name}]" if ":" in origin.host.name else origin.host.name
    port = "" if origin.port == _DEFAULT_PORTS[origin.scheme] else f":{origin.port}"
    return f"{origin.scheme}://{name}{port}"


def hosts_of(texts: Sequence[str]) -> list[Host]:
    """The hosts among the values of both flags; ``*`` and ``null`` name none."""
    hosts = (parse_host(text.rpartition("://")[2]) for text in texts)
    return [host for host in hosts if host is not None]
