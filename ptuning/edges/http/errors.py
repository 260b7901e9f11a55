"""Every error of the server as OpenAI's clients expect it: a message, the field, and a status that clients act on."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ptuning.core.characters import whole_characters
from ptuning.core.errors import GenerationError, UserError
from ptuning.edges.http.validation_messages import validation_message
from ptuning.engine.request import QueueFullError
from ptuning.serving.prefix_store import UnknownPrefixError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CLIENT_GONE = 499  # by convention the status in logs for a client that disconnected; nobody receives it
_MAX_MESSAGE = 1500  # characters; a message may quote what the client sent


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: for the user.
        param: the field that is wrong, if it is one.
        code: for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class ClientGoneError(Exception):
    """The client closed the connection."""


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error, as OpenAI's clients expect it."""
    message = whole_characters(message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…")
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error as a response, with the headers that belong to its status."""
    headers = {429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return JSONResponse(error_body(status, message, param, code), status, headers)


def validation_error(error: ValidationError | RequestValidationError, *, status: int) -> ApiError:
    """The first of the errors that a schema found in a body."""
    first = error.errors()[0]
    field, phrase = validation_message(first)
    return ApiError(status, f"{field}: {phrase}" if field else f"the body {phrase}", field or None, str(first["type"]))


def as_api_error(error: Exception) -> ApiError:
    """The HTTP form of an error that service or engine raised."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownPrefixError):
        return ApiError(404, str(error), "model", "model_not_found")
    if isinstance(error, QueueFullError):
        return ApiError(429, f"the server is busy: {error}", code="queue_full")
    if isinstance(error, GenerationError):
        return ApiError(500, str(error), code="generation_error")
    return ApiError(400, str(error))


def setting_error(error: UserError, *, status: int) -> ApiError:
    """The error for a setting that the engine refuses; the message begins with the setting's name."""
    name = str(error).partition(" ")[0]
    return ApiError(status, str(error), name if name.isidentifier() else None)


def add_handlers(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into error responses."""

    async def known(_: Request, error: Exception) -> Response:
        if isinstance(error, ClientGoneError):
            return Response(status_code=CLIENT_GONE)
        api_error = as_api_error(error)
        return error_response(api_error.status, api_error.message, api_error.param, api_error.code)

    async def invalid(request: Request, error: Exception) -> Response:
        status = 400 if request.url.path.startswith("/v1/") else 422
        return await known(request, validation_error(error, status=status))  # type: ignore[arg-type]

    async def http(_: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        response = error_response(status, str(getattr(error, "detail", error)))
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    async def unexpected(_: Request, __: Exception) -> Response:  # Starlette raises the error again, for the log
        return error_response(500, "the server failed on this request; its log says why", code="internal_error")

    app.add_exception_handler(Exception, unexpected)
    for kind in (ApiError, ClientGoneError, UserError, QueueFullError, GenerationError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
