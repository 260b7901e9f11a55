"""``/v1/models`` and ``/v1/chat/completions``, in the form that OpenAI's clients speak."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from ptuning.edges.http.bodies import ChatCompletionBody
from ptuning.edges.http.conversation_form import question_of
from ptuning.edges.http.errors import ApiError, error_body
from ptuning.edges.http.inbox import EventStream, Inbox, answers, ask
from ptuning.edges.http.metrics import Metrics
from ptuning.uses.chat_service import Asked, ChatService, Question
from ptuning.uses.prefix_store import StoredPrefix

_REASONS = {"stop": "stop", "length": "length", "cancelled": "length"}


def openai_router(service: ChatService, metrics: Metrics) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The base model and every prefix, by the names that ``model`` takes."""
        return {"object": "list", "data": [_model(one, service) for one in service.store.all()]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(service.store.get(name), service)

    @router.post("/chat/completions", response_model=None)
    async def complete(body: ChatCompletionBody, request: Request) -> EventStream | dict[str, Any]:
        """Answer a conversation, at once or in pieces."""
        question = _question(body)
        if not body.stream:
            return _whole(await answers(service, question, request, metrics))
        inbox = Inbox(metrics)
        asked = await ask(service, question, inbox)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        headers = {"X-Dropped-Rounds": str(asked.dropped_rounds)} if asked.dropped_rounds else {}
        return EventStream(asked, _pieces(asked, inbox, usage), headers)

    return router


def _model(stored: StoredPrefix, service: ChatService) -> dict[str, Any]:
    found: dict[str, Any] = {"id": stored.name, "object": "model", "created": int(stored.loaded), "owned_by": "ptuning"}
    if stored.shared is not None:
        found |= {"parent": service.store.base_name, "pre_seq_len": stored.pre_seq_len}
    return found


def _question(body: ChatCompletionBody) -> Question:
    """The body as a question.

    Raises:
        ApiError: a field that would change the answer and cannot be followed; messages without a question.
    """
    unsupported = {
        "tools": body.tools,
        "functions": body.functions,
        "logprobs": body.logprobs,
        "logit_bias": body.logit_bias,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "response_format": body.response_format if (body.response_format or {}).get("type") != "text" else None,
    }
    for name, value in unsupported.items():
        if value:
            hint = "; repetition_penalty is there" if name.endswith("_penalty") else ""
            raise ApiError(400, f"{name}: not supported by this model{hint}; leave it out", name, "unsupported_parameter")
    query, history = question_of(body.messages)
    return Question(
        query,
        history,
        body.model,
        body.sampling(),
        max_new_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        stop=body.stops(),
        stream=bool(body.stream),
        choices=body.n or 1,
    )


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


async def _pieces(asked: Asked, inbox: Inbox, usage: bool) -> AsyncIterator[str]:
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
