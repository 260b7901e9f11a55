"""``/v1/models`` and ``/v1/chat/completions``, in the form that OpenAI's clients speak."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from ptuning.core.errors import UserError
from ptuning.edges.http.answer_queue import AnswerQueue, EventStream, wait_for
from ptuning.edges.http.errors import ApiError, error_body, setting_error
from ptuning.edges.http.json_body import BodyReader, documented
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.openai_messages import query_and_history
from ptuning.edges.http.schemas import ChatCompletionRequest
from ptuning.serving.chat_service import Asked, ChatService, Question
from ptuning.serving.prefix_store import StoredPrefix

_REASONS = {"stop": "stop", "length": "length", "cancelled": "length"}


def openai_router(service: ChatService, metrics: Metrics) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1")
    reader = BodyReader(ChatCompletionRequest)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The base model and every prefix, by the names that ``model`` takes."""
        return {"object": "list", "data": [_model(one, service) for one in service.store.all()]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(service.store.get(name), service)

    @router.post("/chat/completions", response_model=None, openapi_extra=documented(ChatCompletionRequest))
    async def complete(request: Request) -> EventStream | dict[str, Any]:
        """Answer a conversation, at once or in pieces."""
        inbox = AnswerQueue(metrics)

        def put(body: ChatCompletionRequest) -> tuple[Asked, bool, bool]:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return service.ask(_question(body), inbox.listen), bool(body.stream), usage

        asked, stream, usage = await reader.read(request, put, undo=lambda made: made[0].cancel())
        if not stream:
            await wait_for(asked, inbox, request)
            return _whole(asked)
        headers = {"X-Dropped-Rounds": str(asked.dropped_rounds)} if asked.dropped_rounds else {}
        return EventStream(asked, _pieces(asked, inbox, usage), headers)

    return router


def _model(stored: StoredPrefix, service: ChatService) -> dict[str, Any]:
    found: dict[str, Any] = {"id": stored.name, "object": "model", "created": int(stored.loaded), "owned_by": "ptuning"}
    if stored.shared is not None:
        found |= {"parent": service.store.base_name, "pre_seq_len": stored.pre_seq_len}
    return found


def _question(body: ChatCompletionRequest) -> Question:
    """The body as a question.

    Raises:
        ApiError: messages without a question; settings that contradict each other, or that the engine refuses.
    """
    query, history = query_and_history(body.messages)
    try:
        sampling = replace(body.sampling_params(), max_new_tokens=_max_new_tokens(body))
    except UserError as error:
        raise setting_error(error, status=400) from None
    return Question(query, history, body.model, sampling, stream=bool(body.stream), choices=body.n or 1)


def _max_new_tokens(body: ChatCompletionRequest) -> int | None:
    """The limit of the answer, by whichever of its names.

    Raises:
        ApiError: two of them differ.
    """
    names = ("max_tokens", "max_completion_tokens", "max_new_tokens")
    given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in given.items())
        raise ApiError(400, f"{shown}: they mean the same; give one of them", next(iter(given)))
    return next(iter(given.values()), None)


def _usage(asked: Asked) -> dict[str, int]:
    completion = sum(len(one.ids) for one in asked.generations)
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": asked.prompt_tokens + completion,
    }


def _frame(asked: Asked, kind: str) -> dict[str, Any]:
    """What every object of one answer begins with."""
    frame = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": asked.prefix.name}
    return frame | ({"dropped_rounds": asked.dropped_rounds} if asked.dropped_rounds else {})


def _whole(asked: Asked) -> dict[str, Any]:
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": None,
            "finish_reason": _REASONS[one.finish_reason or "stop"],
        }
        for number, one in enumerate(asked.generations)
    ]
    return _frame(asked, "chat.completion") | {"choices": choices, "usage": _usage(asked)}


async def _pieces(asked: Asked, inbox: AnswerQueue, usage: bool) -> AsyncIterator[str]:
    """The chunks of a stream, to [DONE]."""
    frame = _frame(asked, "chat.completion.chunk") | ({"usage": None} if usage else {})

    def chunk(number: int, delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(frame | {"choices": [choice]})

    for number in range(len(asked.generations)):
        yield chunk(number, {"role": "assistant", "content": ""})
    async for generation, piece in inbox.events(len(asked.generations)):
        if piece:
            yield chunk(generation.index, {"content": piece})
        elif generation.finish_reason == "error":
            yield _event(error_body(500, generation.error or "the model gave no answer", code="generation_error"))
        else:
            yield chunk(generation.index, {}, _REASONS[generation.finish_reason or "stop"])
    if usage:
        yield _event(frame | {"choices": [], "usage": _usage(asked)})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
