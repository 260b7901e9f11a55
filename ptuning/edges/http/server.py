"""Running the ASGI application: an address that is taken before the model is loaded, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable
from threading import Timer
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from ptuning.core.errors import UserError
from ptuning.edges.http.connections import allowed_connections, limited_protocol

if TYPE_CHECKING:  # it imports torch, and an address in use is reported before that
    from ptuning.serving.chat_service import ChatService

logger = logging.getLogger(__name__)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to its address but does not listen yet; port 0 picks a free one.

    Raises:
        UserError: the address is in use, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sets TCP_NODELAY only where it knows the protocol; without that, each response body is 40 ms late.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: not a possible host name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); give another") from None
    return opened


class Server(uvicorn.Server):
    """A server that shuts down gracefully: it takes no new connections, waits for running answers, then cancels the rest.

    Args:
        config: uvicorn's.
        service: whose answers are waited for.
        seconds: how long running answers may continue.
        at_end: called in the event loop once no answer is running, to close connections that never end by themselves.
    """

    def __init__(
        self, config: uvicorn.Config, service: ChatService, seconds: float, at_end: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self.service, self.seconds, self.at_end = service, seconds, at_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM: shut down gracefully; the second one: at once. Unlike uvicorn's own handler, it does not raise
        the signal again."""
        if self.should_exit:
            self.service.engine.cancel_all()
            self.force_exit = True
            return
        self.should_exit = True
        timer = Timer(self.seconds, self.service.engine.cancel_all)
        timer.daemon = True
        timer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and wait for the open connections to close."""
        closing = asyncio.create_task(self._close_when_idle()) if self.at_end is not None else None
        await super().shutdown(sockets)
        if closing is not None:
            closing.cancel()

    async def _close_when_idle(self) -> None:
        deadline = time.monotonic() + self.seconds + 1
        while not self.service.engine.idle and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # for the last piece, which is still on its way
        if self.at_end is not None:
            self.at_end()


def serve(
    app: Any,
    service: ChatService,
    opened: socket.socket,
    *,
    seconds: float,
    log_requests: bool,
    request_timeout: float = 30,
    max_connections: int = 512,
    at_end: Callable[[], None] | None = None,
) -> None:
    """Serve until a signal arrives. See :class:`Server` and :func:`limited_protocol` for the arguments."""
    connections = allowed_connections(max_connections)
    if connections < max_connections:
        logger.info("at most %d connections at a time: the system lets this process open no more files", connections)
    config = uvicorn.Config(
        app,
        http=limited_protocol(request_timeout, connections),
        ws="none",
        log_config=None,
        access_log=log_requests,
        timeout_graceful_shutdown=int(seconds) + 5,
        server_header=False,
    )
    if log_requests:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    # Broken requests and disconnects are the clients' business and not logged; failures of the server are errors.
    for library in ("uvicorn.error", "asyncio", "python_multipart.multipart"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # The event loop needs Python's global lock several times per request, and waits this long for it beside a busy thread.
    sys.setswitchinterval(0.001)
    service.start()
    try:
        Server(config, service, seconds, at_end).run(sockets=[opened])
    finally:
        service.stop()
        opened.close()
    logger.info("stopped")
