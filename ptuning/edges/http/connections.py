"""What a connection may cost while nothing is answered on it: time to send a request, time to read an answer, and a place.

uvicorn gives a kept connection five seconds, but a client that sends a request byte by byte, or opens a connection and sends
nothing, as long as it likes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ptuning.edges.http.errors import error_response

logger = logging.getLogger(__name__)

_MAX_READ = 16 * 1024  # bytes taken in at a time: a body in chunks of one byte must not hold the event loop up
_OTHER_FILES = 200  # the model's, the program's, and what is opened for a moment
_LINGER = 5.0  # seconds that a last answer may take to leave


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection with limits; those of :func:`limited_protocol`."""

    seconds: float
    max_connections: int

    _began = _ended = False
    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to count, and make room."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _MAX_READ
        self._await_request()
        if len(self.connections) > self.max_connections:
            idle = [one for one in self.connections if one is not self and getattr(one, "idle", False)]
            if idle:
                min(idle, key=lambda one: one.deadline).end()
            else:
                self.end(503, "the server has no room for more connections; try again a little later")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to count."""
        self._stop("_sending")
        self._stop("_reading")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something of a request."""
        if self._ended:
            return
        self._began = True
        super().data_received(data)
        if self.answering:
            self._stop("_sending")

    def on_response_complete(self) -> None:
        """An answer is over; the next request may come."""
        super().on_response_complete()
        if not self.answering and not self.transport.is_closing():
            self._await_request()

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        super().pause_writing()
        self._stop("_reading")
        self._reading = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._stop("_reading")

    @property
    def answering(self) -> bool:
        """Whether a request came in whole and its answer is not over."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything here."""
        return (self.cycle is None or self.cycle.response_complete) and not self._ended

    @property
    def deadline(self) -> float:
        """By when the request has to be whole, in the event loop's time."""
        return self._sending.when() if self._sending is not None else 0.0

    def end(self, status: int | None = None, message: str = "") -> None:
        """Close the connection, with a last word where one is given.

        What the client still sends is not looked at, but taken: otherwise it would not get to see the last word.
        """
        if self.transport.is_closing() or self._ended:
            return
        self._ended = True
        self.connections.discard(self)
        self.loop.call_later(_LINGER, self.transport.abort)
        started = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if status is None or started or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write(_last_word(status, message))
        self.flow.resume_reading()
        self.transport.write_eof()

    def _await_request(self) -> None:
        self._began = False
        self._stop("_sending")
        self._sending = self.loop.call_later(self.seconds, self._too_late)

    def _too_late(self) -> None:
        if not self.answering:
            self.end(408 if self._began else None, f"the request was not whole after {self.seconds:g} seconds")

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
        setattr(self, name, None)


def limited_protocol(seconds: float, max_connections: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol for one connection, with limits.

    Args:
        seconds: in which a request has to be whole, from its first byte (or the connection's beginning) to the last of its
            body; and in which a client that reads its answer slowly has to read on.
        max_connections: at a time. For one more, the one that has been idle for the longest is closed; where all are busy,
            the new one is refused.
    """
    return type("LimitedProtocol", (LimitedProtocol,), {"seconds": seconds, "max_connections": max_connections})


def _last_word(status: int, message: str) -> bytes:
    """An error as it goes over the wire, for where no request is there that could be answered."""
    response = error_response(status, message)
    response.headers["connection"] = "close"
    names = {408: "Request Timeout", 503: "Service Unavailable"}
    head = f"HTTP/1.1 {status} {names[status]}\r\n".encode()
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return head + fields + b"\r\n" + bytes(response.body)


def allowed_connections(max_connections: int) -> int:
    """How many connections the operating system lets the process have beside its files, at most ``max_connections``.

    The process's own limit is raised as far as it may be.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return max_connections
    wanted = max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            logger.debug("the limit of open files stays at %d", soft)
        return max(1, min(max_connections, soft - _OTHER_FILES))
    return max_connections
