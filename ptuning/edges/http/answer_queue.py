"""From the engine's thread to the event loop: pieces of answers, and the news that the client went away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from ptuning.edges.http.errors import ClientGoneError
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.worker_threads import away
from ptuning.engine.request import Generation
from ptuning.serving.chat_service import Asked, ChatService, Question


class AnswerQueue:
    """Where the answers to one request arrive, in the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self.loop, self.metrics = asyncio.get_running_loop(), metrics
        self.queue: asyncio.Queue[tuple[Generation, str] | None] = asyncio.Queue()

    def listen(self, generation: Generation, piece: str) -> None:
        """The engine's listener."""
        if generation.finish_reason is not None and not piece:
            self.metrics.observe(generation)
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (generation, piece))
        except RuntimeError:  # the loop is closed: nobody listens any more
            generation.cancel()

    async def events(self, count: int) -> AsyncIterator[tuple[Generation, str]]:
        """Pieces of the answers, until ``count`` of them are over; each answer's last one is "".

        Raises:
            ClientGoneError: see :meth:`watch`.
        """
        async for bunch in self.bunches(count):
            for item in bunch:
                yield item

    async def bunches(self, count: int) -> AsyncIterator[list[tuple[Generation, str]]]:
        """The same, everything that has arrived meanwhile at once: for who looks less often than the model writes.

        Raises:
            ClientGoneError: see :meth:`watch`.
        """
        while count:
            bunch = [await self.queue.get()]
            while not self.queue.empty():
                bunch.append(self.queue.get_nowait())
            items = [item for item in bunch if item is not None]
            if len(items) < len(bunch):
                raise ClientGoneError
            yield items
            count -= sum(piece == "" for _, piece in items)

    async def watch(self, request: Request) -> None:
        """Wait for the client to go away."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.queue.put_nowait(None)


async def ask(service: ChatService, question: Question, inbox: AnswerQueue) -> Asked:
    """Put a question from the event loop; the tokenizer works in another thread."""
    size = len(question.query) + sum(len(query) + len(reply) for query, reply in question.history)
    return await away(size, service.ask, question, inbox.listen, undo=Asked.cancel)


async def wait_for(asked: Asked, inbox: AnswerQueue, request: Request) -> None:
    """Wait until all choices are over.

    Raises:
        ClientGoneError: the client went away; its answers were cancelled.
        GenerationError: the model's scores were not finite.
    """
    watching = asyncio.create_task(inbox.watch(request))
    try:
        async for _ in inbox.events(len(asked.generations)):
            pass
    finally:
        watching.cancel()
        asked.cancel()
    for generation in asked.generations:
        generation.raise_for_error()


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, also before the first piece, the answers behind it are cancelled."""

    media_type = "text/event-stream"

    def __init__(self, asked: Asked, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        # Buffering proxies would hold a stream back until it is over.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | headers)
        self.asked = asked

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send; Starlette ends it when the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.asked.cancel()
