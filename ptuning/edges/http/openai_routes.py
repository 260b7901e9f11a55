"""``/v1/models`` and ``/v1/chat/completions``, as OpenAI's clients call them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from ptuning.core.errors import UserError
from ptuning.edges.http.answer_queue import AnswerQueue, EventStream, wait_until_finished
from ptuning.edges.http.errors import ApiError, error_body, setting_error
from ptuning.edges.http.json_body import BodyReader, openapi_body
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.openai_messages import query_and_history
from ptuning.edges.http.schemas import ChatCompletionRequest
from ptuning.serving.chat_service import Asked, ChatService, Question
from ptuning.serving.prefix_store import StoredPrefix

_FINISH_REASONS = {"stop": "stop", "length": "length", "cancelled": "length"}


def openai_router(service: ChatService, metrics: Metrics) -> APIRouter:
    """The router of ``/v1``."""
    router = APIRouter(prefix="/v1")
    reader = BodyReader(ChatCompletionRequest)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The base model and every prefix, by the names that ``model`` accepts."""
        return {"object": "list", "data": [_model(stored, service) for stored in service.store.all()]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The base model or one prefix."""
        return _model(service.store.get(name), service)

    @router.post("/chat/completions", response_model=None, openapi_extra=openapi_body(ChatCompletionRequest))
    async def complete(request: Request) -> EventStream | dict[str, Any]:
        """Answer a conversation, in one response or as a stream."""
        queue = AnswerQueue(metrics)

        def submit(body: ChatCompletionRequest) -> tuple[Asked, bool, bool]:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return service.ask(_question(body), queue.put), bool(body.stream), usage

        asked, stream, usage = await reader.read(request, submit, undo=lambda submitted: submitted[0].cancel())
        if not stream:
            await wait_until_finished(asked, queue, request)
            return _completion(asked)
        headers = {"X-Dropped-Rounds": str(asked.dropped_rounds)} if asked.dropped_rounds else {}
        return EventStream(asked, _events(asked, queue, usage), headers)

    return router


def _model(stored: StoredPrefix, service: ChatService) -> dict[str, Any]:
    model: dict[str, Any] = {"id": stored.name, "object": "model", "created": int(stored.loaded), "owned_by": "ptuning"}
    if stored.shared is not None:
        model |= {"parent": service.store.base_name, "pre_seq_len": stored.pre_seq_len}
    return model


def _question(body: ChatCompletionRequest) -> Question:
    """The question that a body asks.

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
    """The limit of the answer, under whichever of its names it was given.

    Raises:
        ApiError: two names were given different values.
    """
    names = ("max_tokens", "max_completion_tokens", "max_new_tokens")
    given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in given.items())
        raise ApiError(400, f"{shown}: they mean the same; give one of them", next(iter(given)))
    return next(iter(given.values()), None)


def _usage(asked: Asked) -> dict[str, int]:
    completion_tokens = sum(len(generation.ids) for generation in asked.generations)
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": asked.prompt_tokens + completion_tokens,
    }


def _header(asked: Asked, object_type: str) -> dict[str, Any]:
    """The fields that every object of one answer begins with."""
    dropped = {"dropped_rounds": asked.dropped_rounds} if asked.dropped_rounds else {}
    header = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": object_type, "created": int(time.time())}
    return header | {"model": asked.prefix.name} | dropped


def _completion(asked: Asked) -> dict[str, Any]:
    """The whole answer as one object."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": generation.text, "refusal": None},
            "logprobs": None,
            "finish_reason": _FINISH_REASONS[generation.finish_reason or "stop"],
        }
        for index, generation in enumerate(asked.generations)
    ]
    return _header(asked, "chat.completion") | {"choices": choices, "usage": _usage(asked)}


async def _events(asked: Asked, queue: AnswerQueue, usage: bool) -> AsyncIterator[str]:
    """The server-sent events of a stream, up to ``[DONE]``.

    Args:
        asked: the answers.
        queue: on which they arrive.
        usage: whether the token counts come last.
    """
    header = _header(asked, "chat.completion.chunk") | ({"usage": None} if usage else {})

    def chunk(index: int, delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(header | {"choices": [choice]})

    for index in range(len(asked.generations)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for generation, piece in queue.pieces(len(asked.generations)):
        if piece:
            yield chunk(generation.index, {"content": piece})
        elif generation.finish_reason == "error":
            yield _event(error_body(500, generation.error or "the model gave no answer", code="generation_error"))
        else:
            yield chunk(generation.index, {}, _FINISH_REASONS[generation.finish_reason or "stop"])
    if usage:
        yield _event(header | {"choices": [], "usage": _usage(asked)})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
