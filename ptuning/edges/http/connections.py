"""Limits of a connection: how long a client may take to send a request and to read the response, and how many may be open.

uvicorn closes an idle keep-alive connection after five seconds, but a client that sends its request byte by byte, or opens a
connection and sends nothing, may take as long as it likes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ptuning.edges.http.errors import error_response

logger = logging.getLogger(__name__)

_MAX_READ = 16 * 1024  # bytes per read: a body in chunks of one byte must not block the event loop
_OTHER_FILES = 200  # open files besides connections: the model's, the program's, temporary ones
_LINGER = 5.0  # seconds that the last response may take to be sent


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection with the limits of :func:`limited_protocol`."""

    seconds: float
    max_connections: int

    _request_started = _closed = False
    _request_timer: asyncio.TimerHandle | None = None
    _response_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer of the first request; where there are too many connections, close an idle one or this one."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _MAX_READ
        self._await_request()
        if len(self.connections) > self.max_connections:
            idle = [other for other in self.connections if other is not self and getattr(other, "idle", False)]
            if idle:
                min(idle, key=lambda connection: connection.deadline).close(None)
            else:
                self.close(503, "the server has no room for more connections; try again a little later")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop("_request_timer")
        self._stop("_response_timer")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request; the timer stops once the request is complete."""
        if self._closed:
            return
        self._request_started = True
        super().data_received(data)
        if self.responding:
            self._stop("_request_timer")

    def on_response_complete(self) -> None:
        """Start the timer of the next request."""
        super().on_response_complete()
        if not self.responding and not self.transport.is_closing():
            self._await_request()

    def pause_writing(self) -> None:
        """The client does not read the response: start the timer that aborts the connection."""
        super().pause_writing()
        self._stop("_response_timer")
        self._response_timer = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads on: stop that timer."""
        super().resume_writing()
        self._stop("_response_timer")

    @property
    def responding(self) -> bool:
        """Whether a request has been received completely and its response is not finished."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return (self.cycle is None or self.cycle.response_complete) and not self._closed

    @property
    def deadline(self) -> float:
        """When the request has to be complete, in the event loop's time."""
        return self._request_timer.when() if self._request_timer is not None else 0.0

    def close(self, status: int | None, message: str = "") -> None:
        """Close the connection, with an error response first where a status is given.

        Whatever the client still sends is received and ignored; otherwise it might not get to see the response.
        """
        if self.transport.is_closing() or self._closed:
            return
        self._closed = True
        self.connections.discard(self)
        self.loop.call_later(_LINGER, self.transport.abort)
        started = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if status is None or started or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write(_raw_error_response(status, message))
        self.flow.resume_reading()
        self.transport.write_eof()

    def _await_request(self) -> None:
        self._request_started = False
        self._stop("_request_timer")
        self._request_timer = self.loop.call_later(self.seconds, self._request_timeout)

    def _request_timeout(self) -> None:
        if not self.responding:
            status = 408 if self._request_started else None
            self.close(status, f"the request was not complete after {self.seconds:g} seconds")

    def _stop(self, timer_name: str) -> None:
        timer = getattr(self, timer_name)
        if timer is not None:
            timer.cancel()
        setattr(self, timer_name, None)


def limited_protocol(seconds: float, max_connections: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol for one connection, with limits.

    Args:
        seconds: for a request, from its first byte (or the start of the connection) to the last byte of its body; also for
            a client that stopped reading its response to read on.
        max_connections: open at a time. For one more, the connection that has been idle longest is closed; where all are
            busy, the new one is rejected.
    """
    return type("LimitedProtocol", (LimitedProtocol,), {"seconds": seconds, "max_connections": max_connections})


def _raw_error_response(status: int, message: str) -> bytes:
    """The bytes of an error response, for a connection without a request that uvicorn could respond to."""
    response = error_response(status, message)
    response.headers["connection"] = "close"
    names = {408: "Request Timeout", 503: "Service Unavailable"}
    head = f"HTTP/1.1 {status} {names[status]}\r\n".encode()
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return head + fields + b"\r\n" + bytes(response.body)


def allowed_connections(max_connections: int) -> int:
    """How many connections the operating system allows besides the process's other files, at most ``max_connections``.

    The limit of open files is raised as far as the process may.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return max_connections
    required = max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < required:
        raised = required if hard == resource.RLIM_INFINITY else min(required, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            logger.debug("the limit of open files stays at %d", soft)
        return max(1, min(max_connections, soft - _OTHER_FILES))
    return max_connections
