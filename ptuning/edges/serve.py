"""``ptuning serve``: the base model and any number of prefixes over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, ClassVar

from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.edges.garbage_collection import collection_paused
from ptuning.edges.http.hosts import allowed_host, allowed_origin, is_loopback_address
from ptuning.edges.opening import open_service, served_model
from ptuning.settings.arguments import ServingArguments
from ptuning.settings.parsing import SettingsParser

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ptuning.serving.chat_service import ChatService

logger = logging.getLogger(__name__)


@dataclass
class ServerArguments:
    """How the server answers, and whom."""

    environment: ClassVar[tuple[str, str]] = ("API_HOST", "API_PORT")
    usual_port: ClassVar[str] = "8000"

    host: str | None = field(
        default=None,
        metadata={"help": "Address to listen on (default: API_HOST, or 127.0.0.1: this machine alone; 0.0.0.0: all)."},
    )
    port: int | None = field(default=None, metadata={"help": "Port (default: API_PORT, or 8000); 0 takes a free one."})
    api_key: str | None = field(
        default=None, metadata={"help": "Clients must send it as Authorization: Bearer KEY (default: API_KEY, or none)."}
    )
    admin_key: str | None = field(
        default=None,
        metadata={"help": "Key for loading and unloading prefixes over HTTP (default: API_ADMIN_KEY; none: nobody can)."},
    )
    checkpoint_root: str = field(
        default=".", metadata={"help": "Only checkpoints below this folder can be loaded over HTTP.", "path": True}
    )
    max_rows: int = field(default=32, metadata={"help": "Answers that are made at the same time; memory grows with it."})
    max_waiting: int = field(default=256, metadata={"help": "Requests that may wait beside them; more get status 429."})
    max_length: int | None = field(
        default=None, metadata={"help": "Limit of prompt and answer together, in tokens (default: the model's own)."}
    )
    max_body_bytes: int = field(
        default=2_000_000, metadata={"help": "Largest body of a request; larger ones get status 413."}
    )
    cors_origins: list[str] | None = field(
        default=None, metadata={"help": "Web pages of other origins that may call the server (https://example.com, or *)."}
    )
    allowed_hosts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names that it answers to besides its own, as they stand in the Host header (a proxy's, for one); "
            "pages that come from there may call it, too. * answers to every name."
        },
    )
    request_timeout: int = field(
        default=30, metadata={"help": "Seconds in which a client has to send all of a request; slower ones get status 408."}
    )
    max_connections: int = field(
        default=512,
        metadata={"help": "Connections at a time; for more, idle ones are closed, or the new ones get status 503."},
    )
    shutdown_seconds: int = field(
        default=10, metadata={"help": "How long answers may continue after Ctrl-C or SIGTERM before they are truncated."}
    )
    log_requests: bool = field(default=False, metadata={"help": "One line for every request."})

    def __post_init__(self) -> None:
        """Fill in from the environment what no flag says, and refuse what cannot work."""
        host, port = self.environment
        self.host = self.host or os.environ.get(host) or "127.0.0.1"
        if self.port is None:
            self.port = _port(port, os.environ.get(port) or self.usual_port)
        self.api_key = secret("api_key", self.api_key, "API_KEY")
        self.admin_key = secret("admin_key", self.admin_key, "API_ADMIN_KEY")
        self.allowed_hosts = [allowed_host(one) for one in self.allowed_hosts or ()]
        self.cors_origins = [allowed_origin(one) for one in self.cors_origins or ()]
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: allowed are 0 to 65535")
        min_values = {"max_rows": 1, "max_waiting": 0, "max_body_bytes": 1, "shutdown_seconds": 0, "request_timeout": 1}
        for name, minimum in (min_values | {"max_connections": 1}).items():
            if getattr(self, name) < minimum:
                raise UserError(f"--{name} {getattr(self, name)}: must be {minimum} or more")
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"--max_length {self.max_length}: must be 8 or more")
        if not Path(self.checkpoint_root).is_dir():
            raise UserError(
                f"--checkpoint_root {self.checkpoint_root}: no such folder (working directory {working_directory()})"
            )


def secret(flag: str, given: str | None, variable: str) -> str | None:
    """A key or password of a flag, or else of an environment variable; None where neither is there.

    Raises:
        UserError: it is there and blank, as an unset variable in a script makes it (``--api_key "$KEY"``): without this, a
            door that was meant to be locked would stand open.
    """
    name, value = (f"--{flag}", given) if given is not None else (variable, os.environ.get(variable))
    if value is None:
        return None
    if not value.strip():
        raise UserError(f"{name} is empty (an unset variable?): give a key, or leave it out where nobody should need one")
    if value != value.strip() or not value.isprintable():
        raise UserError(f"{name}: no header can hold blanks at its ends, line breaks or control characters; remove them")
    return value


def _port(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name}={text}: a port is a number from 0 to 65535")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, checkpoints or an address that do not fit; a package that is missing.
    """
    parser = SettingsParser(
        {"model and prefixes": ServingArguments, "server": ServerArguments},
        prog="ptuning serve",
        description="Answer over HTTP: POST / as published, and OpenAI's /v1. Without settings: the built-in tiny-chatglm.",
        positional="[CONFIG] [CHECKPOINT]",
    )
    given = parser.parse(argv)
    model, settings = served_model(given), given.build(ServerArguments)
    with collection_paused():  # else the collector would go through all of it again and again while a large body is parsed
        try:
            from ptuning.edges.http.server import open_socket, serve

            opened = open_socket(settings.host, settings.port)
            import ptuning.edges.http.app  # noqa: F401  # what is missing is told before the model is loaded
        except ModuleNotFoundError as error:
            missing = f"ptuning serve needs {error.name}: pip install 'ptuning[serve]' (or requirements.txt)"
            raise UserError(missing) from None
        service, app = load_api(model, settings, settings.api_key)
    _announce(settings, opened.getsockname()[1], service.store.names(), service.store.default)
    serve(guarded(app, settings, opened), service, opened, **serving_settings(settings))
    return 0


def guarded(app: Any, settings: ServerArguments, opened: socket) -> Any:
    """The application inside the origin check, :class:`ptuning.edges.http.middleware.origin.OriginMiddleware`."""
    from ptuning.edges.http.middleware.origin import OriginMiddleware

    return OriginMiddleware(
        app,
        own_host=str(settings.host),
        loopback=is_loopback(opened.getsockname()[0]),
        allowed_hosts=settings.allowed_hosts or (),
        cors_origins=settings.cors_origins or (),
    )


def serving_settings(settings: ServerArguments) -> dict[str, Any]:
    """Keywords of :func:`ptuning.edges.http.server.serve`."""
    return {
        "seconds": settings.shutdown_seconds,
        "log_requests": settings.log_requests,
        "request_timeout": settings.request_timeout,
        "max_connections": settings.max_connections,
    }


def load_api(model: ServingArguments, settings: ServerArguments, api_key: str | None) -> tuple[ChatService, FastAPI]:
    """Load the model and start its service; gives it and the API over it, which asks for ``api_key`` if there is one."""
    from ptuning.edges.http.app import create_app

    service = open_service(
        model, max_rows=settings.max_rows, max_waiting=settings.max_waiting, max_length=settings.max_length
    )
    return service, create_app(
        service,
        api_key=api_key,
        admin_key=settings.admin_key,
        checkpoint_root=Path(settings.checkpoint_root),
        max_bytes=settings.max_body_bytes,
        cors_origins=settings.cors_origins or (),
    )


def _announce(settings: ServerArguments, port: int, names: Sequence[str], default: str) -> None:
    """Say where it listens, with what, and whether strangers may come in."""
    host = f"[{settings.host}]" if ":" in str(settings.host) else settings.host
    logger.info("serving %s (default: %s)", ", ".join(names), default)
    logger.info("listening on http://%s:%d  (POST /, /v1/chat/completions, /v1/models, /health, /metrics)", host, port)
    if not is_loopback(str(settings.host)) and not settings.api_key:
        logger.warning(
            "WARNING: the server listens on %s without a key: everybody who reaches this machine can use it. Give --api_key "
            "(or API_KEY), or --host 127.0.0.1", settings.host,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host == "localhost" or is_loopback_address(host)
