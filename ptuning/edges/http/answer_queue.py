"""Answers on their way from the engine's thread to the event loop, and clients that disconnect before the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from ptuning.edges.http.errors import ClientGoneError
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.worker_threads import run_in_worker
from ptuning.engine.request import Generation
from ptuning.serving.chat_service import Asked, ChatService, Question


class AnswerQueue:
    """The pieces of the answers to one request: put in by the engine's thread, taken out in the event loop.

    Args:
        metrics: told of every finished answer.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._loop, self._metrics = asyncio.get_running_loop(), metrics
        self._queue: asyncio.Queue[tuple[Generation, str] | None] = asyncio.Queue()  # None: the client disconnected

    def put(self, generation: Generation, piece: str) -> None:
        """Add a piece of an answer; the last one is empty. Called in the engine's thread."""
        if generation.finish_reason is not None and not piece:
            self._metrics.observe(generation)
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (generation, piece))
        except RuntimeError:  # the event loop is closed: nobody reads the answer
            generation.cancel()

    async def pieces(self, count: int) -> AsyncIterator[tuple[Generation, str]]:
        """Yield pieces until ``count`` answers are finished; the last piece of each is "".

        Raises:
            ClientGoneError: see :meth:`watch`.
        """
        async for batch in self.batches(count):
            for item in batch:
                yield item

    async def batches(self, count: int) -> AsyncIterator[list[tuple[Generation, str]]]:
        """Like :meth:`pieces`, but everything that has arrived since the last look at once: for a reader that is slower
        than the model.

        Raises:
            ClientGoneError: see :meth:`watch`.
        """
        while count:
            items = [await self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
            batch = [item for item in items if item is not None]
            if len(batch) < len(items):
                raise ClientGoneError
            yield batch
            count -= sum(piece == "" for _, piece in batch)

    async def watch(self, request: Request) -> None:
        """Wait for the client to disconnect; the readers of this queue then get :class:`ClientGoneError`."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(None)


async def submit(service: ChatService, question: Question, queue: AnswerQueue) -> Asked:
    """Submit a question from the event loop; its prompt is built in a worker thread."""
    size = len(question.query) + sum(len(query) + len(reply) for query, reply in question.history)
    return await run_in_worker(size, service.ask, question, queue.put, undo=Asked.cancel)


async def wait_until_finished(asked: Asked, queue: AnswerQueue, request: Request) -> None:
    """Wait until all answers to a request are finished.

    Raises:
        ClientGoneError: the client disconnected; its answers were cancelled.
        GenerationError: the model's scores were not finite.
    """
    watching = asyncio.create_task(queue.watch(request))
    try:
        async for _ in queue.pieces(len(asked.generations)):
            pass
    finally:
        watching.cancel()
        asked.cancel()
    for generation in asked.generations:
        generation.raise_for_error()


class EventStream(StreamingResponse):
    """Server-sent events. However the stream ends, even before its first piece, the answers behind it are cancelled.

    Args:
        asked: the answers.
        events: made of them.
        headers: further ones.
    """

    media_type = "text/event-stream"

    def __init__(self, asked: Asked, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        # A proxy that buffers would hold the stream back until it is complete.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | headers)
        self.asked = asked

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream; Starlette ends it when the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.asked.cancel()
