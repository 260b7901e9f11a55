"""``POST /``: the route of the published ``api.py``, field for field."""

from __future__ import annotations

import datetime
import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from ptuning.edges.http.bodies import PublishedAnswer, PublishedBody
from ptuning.edges.http.errors import ApiError, validation_error
from ptuning.edges.http.inbox import answers
from ptuning.edges.http.metrics import Metrics
from ptuning.uses.chat_service import ChatService, Question


def published_router(service: ChatService, metrics: Metrics) -> APIRouter:
    """The route.

    It reads its body itself: the published one took JSON whatever the content type said, and so do its users' scripts.
    """
    router = APIRouter()
    schema = {"content": {"application/json": {"schema": PublishedBody.model_json_schema()}}, "required": True}
    documented = {"requestBody": schema}

    @router.post("/", response_model=PublishedAnswer, response_model_exclude_none=True, openapi_extra=documented)
    async def chat(request: Request) -> dict[str, Any]:
        """Answer a prompt after its history."""
        body = _read(await request.body())
        history = body.history or []
        question = Question(
            body.prompt, history, body.model, body.sampling(), body.max_length, body.max_new_tokens, body.stops()
        )
        asked = await answers(service, question, request, metrics)
        response = asked.generations[0].text
        return {
            "response": response,
            "history": [*history, (body.prompt, response)],
            "status": 200,
            "time": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "dropped_rounds": asked.dropped_rounds or None,
        }

    return router


def _read(data: bytes) -> PublishedBody:
    """The body, or what is wrong with it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(422, f"the body is no JSON: {error}") from None
    try:
        return PublishedBody.model_validate(value)
    except ValidationError as error:
        raise validation_error(error, status=422) from None
