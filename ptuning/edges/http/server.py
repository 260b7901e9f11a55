"""Running the application: a socket that is known to be free before the model is loaded, and an orderly end."""

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

if TYPE_CHECKING:  # it imports torch, and a taken address is told before that
    from ptuning.serving.chat_service import ChatService

logger = logging.getLogger(__name__)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that has its address but takes no connections yet; port 0 takes a free one.

    Raises:
        UserError: the address is taken, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # By the protocol's name asyncio sends at once; without it each answer's body waits 40 ms for the client's system.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); give another") from None
    return opened


class Server(uvicorn.Server):
    """A server that ends in order: no new connections, then a while for answers that run, then they are cut and closed.

    Args:
        config: uvicorn's.
        service: whose answers.
        seconds: how long running answers may go on.
        at_end: called in the event loop when no answer runs any more, to close connections that never end by themselves.
    """

    def __init__(
        self, config: uvicorn.Config, service: ChatService, seconds: float, at_end: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self.service, self.seconds, self.at_end = service, seconds, at_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM: finish; a second one: now. The signal is not raised again: this is an orderly end."""
        if self.should_exit:
            self.service.engine.cancel_all()
            self.force_exit = True
            return
        self.should_exit = True
        timer = Timer(self.seconds, self.service.engine.cancel_all)
        timer.daemon = True
        timer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, and wait for those there are."""
        ending = asyncio.create_task(self._end()) if self.at_end is not None else None
        await super().shutdown(sockets)
        if ending is not None:
            ending.cancel()

    async def _end(self) -> None:
        until = time.monotonic() + self.seconds + 1
        while not self.service.engine.idle and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # the last piece is still on its way
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
    """Answer until a signal comes. See :class:`Server` and :func:`limited_protocol` for the arguments."""
    room = allowed_connections(max_connections)
    if room < max_connections:
        logger.info("at most %d connections at a time: the system lets this process open no more files", room)
    config = uvicorn.Config(
        app,
        http=limited_protocol(request_timeout, room),
        ws="none",
        log_config=None,
        access_log=log_requests,
        timeout_graceful_shutdown=int(seconds) + 5,
        server_header=False,
    )
    if log_requests:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    # What a client can cause with a broken request or by leaving is no news; a failure of ours is logged as an error.
    for library in ("uvicorn.error", "asyncio", "python_multipart.multipart"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # The event loop asks for Python's lock several times a request, and waits so long for a thread that computes.
    sys.setswitchinterval(0.001)
    service.start()
    try:
        Server(config, service, seconds, at_end).run(sockets=[opened])
    finally:
        service.stop()
        opened.close()
    logger.info("stopped")
