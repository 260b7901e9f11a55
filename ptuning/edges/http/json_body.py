"""From the bytes of a request to a validated schema, outside the event loop, with one clear error for anything else.

The cost of a body is bounded before it is parsed: Python parses JSON without letting any other thread run, and how long that
takes depends on the number of values in it more than on its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import ValidationError

from ptuning.core.reading import parse_json
from ptuning.edges.http.errors import ApiError, validation_error
from ptuning.edges.http.strict_model import StrictModel, setting_in_query
from ptuning.edges.http.worker_threads import run_in_worker

MAX_VALUES = 200_000
"""Limit of the values in a body, counted by the delimiters before them; Python takes about 20 ms to parse so many."""
_DELIMITERS = (b",", b":", b"[", b"{")
# An unterminated string matches to the end of the data, so that one pass suffices whatever the data is.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|([\[{,:])', re.DOTALL)
_JSON_TYPES = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)
_MAGIC_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
Body = TypeVar("Body", bound=StrictModel)
Result = TypeVar("Result")


def has_too_many_values(data: bytes | bytearray) -> bool:
    """Whether a JSON text holds more than :data:`MAX_VALUES` values. Delimiters inside strings do not count."""
    if sum(map(data.count, _DELIMITERS)) <= MAX_VALUES:
        return False
    remaining = MAX_VALUES
    for token in _TOKEN.finditer(data):
        remaining -= token[1] is not None
        if remaining < 0:
            return True
    return False


@dataclass(frozen=True)
class BodyReader(Generic[Body]):
    """Reads and validates the bodies of one route.

    Attributes:
        schema: of the body.
        status: HTTP status for an invalid body or field.
        any_type: whether the body is read as JSON whatever its Content-Type says.
    """

    schema: type[Body]
    status: int = 400
    any_type: bool = False

    async def read(
        self, request: Request, use: Callable[[Body], Result], undo: Callable[[Result], None] | None = None
    ) -> Result:
        """Read the body of a request and process it, both in one worker thread and in one go: many large bodies would
        otherwise wait for their processing as Python objects, all at the same time.

        Args:
            request: whose body has not been read yet.
            use: processes the validated body; its result is returned.
            undo: called with that result if the request was cancelled meanwhile.

        Raises:
            ApiError: the body is invalid; also whatever ``use`` raises.
        """
        self._check_query(list(request.query_params))
        self._check_headers(request)
        data = await request.body()
        content_type = request.headers.get("content-type")
        return await run_in_worker(len(data), lambda: use(self.parse(data, content_type)), undo=undo)

    def parse(self, data: bytes, content_type: str | None = None) -> Body:
        """Validate the bytes of a body.

        Raises:
            ApiError: it is invalid.
        """
        text = self._text(data)
        try:
            value = parse_json(text, strict=True)
        except ValueError as error:
            raise self._invalid(_json_error_message(error, content_type)) from None
        try:
            return self.schema.model_validate(value)
        except ValidationError as error:
            raise validation_error(error, status=self.status) from None

    def _invalid(self, message: str) -> ApiError:
        return ApiError(self.status, message, code="invalid_json")

    def _check_query(self, names: Sequence[str]) -> None:
        known: Collection[str] = self.schema.model_fields
        if name := setting_in_query(names, known):
            raise ApiError(self.status, f"{name}: is in the query string; settings belong in the JSON body", name)

    def _check_headers(self, request: Request) -> None:
        """Reject a body that its headers declare to be anything but uncompressed JSON in UTF-8."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            message = f"Content-Encoding: {encoding[:40]} cannot be read; send the body as it is, without compressing it"
            raise ApiError(415, message, code="unsupported_encoding")
        content_type = request.headers.get("content-type", "").strip()
        media_type, _, parameters = content_type.partition(";")
        if not self.any_type and not _JSON_TYPES.fullmatch(media_type.strip()):
            given = f"{content_type[:60]} was sent" if content_type else "there is none"
            message = f"the Content-Type header must be application/json; {given}"
            raise ApiError(415 if content_type else 400, message, code="unsupported_content_type")
        charset = re.search(r"charset\s*=\s*\"?([\w.:-]+)", parameters, re.IGNORECASE)
        if charset and charset[1].lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii", "ascii"):
            message = f"charset={charset[1][:40]} cannot be read; send the body as UTF-8"
            raise ApiError(415, message, code="unsupported_charset")

    def _text(self, data: bytes) -> str:
        if not data.strip():
            raise self._invalid("the body is empty; a JSON object is needed")
        for magic, name in _MAGIC_BYTES.items():
            if data.startswith(magic):
                raise self._invalid(f"the body is compressed ({name}); send it as it is, without compressing it")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise self._invalid(f"the body is not UTF-8 text ({reason}); send it as UTF-8, not as GBK or UTF-16") from None


def _json_error_message(error: ValueError, content_type: str | None) -> str:
    """The message for a body that is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno} column {error.colno}"
        is_declared = not content_type or _JSON_TYPES.match(content_type)
        hint = "" if is_declared else f"; it was sent as {str(content_type)[:60]}"
        return f"the body is not valid JSON: {error.msg} at {place}{hint}"
    if "digits" in str(error):
        return "the body cannot be read as JSON: a number in it has too many digits"
    return f"the body cannot be read as JSON: {error}"


def openapi_body(model: type[StrictModel]) -> dict[str, Any]:
    """The entry in the OpenAPI schema for a body that a route reads by itself."""
    schema = model.model_json_schema()
    schema = _inline_definitions(schema, schema.pop("$defs", {}))
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _inline_definitions(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with every reference replaced by its definition; none of ours refers to itself."""
    if isinstance(schema, list):
        return [_inline_definitions(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline_definitions(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline_definitions(item, definitions) for name, item in schema.items()}
