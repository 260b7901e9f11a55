"""``POST /``: the route of the published ``api.py``, field for field."""

from __future__ import annotations

import datetime
import json
from typing import Any

from fastapi import APIRouter, Request, Response

from ptuning.core.errors import UserError
from ptuning.edges.http.answer_queue import AnswerQueue, wait_until_finished
from ptuning.edges.http.errors import setting_error
from ptuning.edges.http.json_body import BodyReader, openapi_body
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.schemas import PublishedRequest, PublishedResponse
from ptuning.edges.http.worker_threads import run_in_worker
from ptuning.serving.chat_service import Asked, ChatService, Question

INVALID = 422  # the published route's status for an invalid body


def published_router(service: ChatService, metrics: Metrics) -> APIRouter:
    """The router of ``POST /``.

    It reads JSON whatever the Content-Type says: so did the published route, and its users' scripts rely on that.
    """
    router = APIRouter()
    reader = BodyReader(PublishedRequest, INVALID, any_type=True)

    @router.post("/", response_model=PublishedResponse, openapi_extra=openapi_body(PublishedRequest))
    async def chat(request: Request) -> Response:
        """Answer a prompt after its history."""
        queue = AnswerQueue(metrics)

        def submit(body: PublishedRequest) -> tuple[PublishedRequest, Asked]:
            return body, service.ask(_question(body), queue.put)

        body, asked = await reader.read(request, submit, undo=lambda submitted: submitted[1].cancel())
        await wait_until_finished(asked, queue, request)
        size = sum(len(query) + len(reply) for query, reply in body.history or ())
        return Response(await run_in_worker(size, _response_json, body, asked), media_type="application/json")

    return router


def _question(body: PublishedRequest) -> Question:
    """The question that a body asks.

    Raises:
        ApiError: a setting that the engine refuses.
    """
    try:
        sampling = body.sampling_params()
    except UserError as error:
        raise setting_error(error, status=INVALID) from None
    return Question(body.prompt, body.history or (), body.model, sampling)


def _response_json(body: PublishedRequest, asked: Asked) -> bytes:
    """The response as JSON. It repeats the whole history, so that writing it may take a while."""
    response = asked.generations[0].text
    answer: dict[str, Any] = {
        "response": response,
        "history": [*(body.history or []), (body.prompt, response)],
        "status": 200,
        "time": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
    }
    if asked.dropped_rounds:
        answer["dropped_rounds"] = asked.dropped_rounds
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
