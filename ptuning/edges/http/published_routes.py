"""``POST /``: the route of the published ``api.py``, field for field."""

from __future__ import annotations

import datetime
import json
from typing import Any

from fastapi import APIRouter, Request, Response

from ptuning.core.errors import UserError
from ptuning.edges.http.answer_queue import AnswerQueue, wait_for
from ptuning.edges.http.errors import setting_error
from ptuning.edges.http.json_body import BodyReader, documented
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.schemas import PublishedRequest, PublishedResponse
from ptuning.edges.http.worker_threads import away
from ptuning.serving.chat_service import Asked, ChatService, Question

WRONG = 422  # what the published route answers to a body that is wrong


def published_router(service: ChatService, metrics: Metrics) -> APIRouter:
    """The route.

    It takes JSON whatever the content type says, as the published one did, and so do its users' scripts.
    """
    router = APIRouter()
    reader = BodyReader(PublishedRequest, WRONG, any_type=True)

    @router.post("/", response_model=PublishedResponse, openapi_extra=documented(PublishedRequest))
    async def chat(request: Request) -> Response:
        """Answer a prompt after its history."""
        inbox = AnswerQueue(metrics)

        def put(body: PublishedRequest) -> tuple[PublishedRequest, Asked]:
            return body, service.ask(_question(body), inbox.listen)

        body, asked = await reader.read(request, put, undo=lambda made: made[1].cancel())
        await wait_for(asked, inbox, request)
        size = sum(len(query) + len(reply) for query, reply in body.history or ())
        return Response(await away(size, _written, body, asked), media_type="application/json")

    return router


def _question(body: PublishedRequest) -> Question:
    """The body as a question.

    Raises:
        ApiError: a setting that the engine refuses.
    """
    try:
        sampling = body.sampling_params()
    except UserError as error:
        raise setting_error(error, status=WRONG) from None
    return Question(body.prompt, body.history or (), body.model, sampling)


def _written(body: PublishedRequest, asked: Asked) -> bytes:
    """The answer, with all of the history: not a small thing to write."""
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
