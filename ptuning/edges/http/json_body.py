"""From the bytes of a request to checked fields, away from the event loop, with one clear error for all else.

What a body costs is bounded before it is parsed: Python parses JSON without letting any other thread run, so that the
number of values in it holds everybody up, more than its bytes.
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
from ptuning.edges.http.strict_model import StrictModel, settings_in_query
from ptuning.edges.http.worker_threads import away

MAX_VALUES = 200_000
"""Values in a body, counted by the signs that begin or part them; as many take Python some 20 ms."""
_SIGNS = (b",", b":", b"[", b"{")
# A string that nothing ends goes to the end, so that this takes one pass over whatever it is given.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|([\[{,:])', re.DOTALL)
_JSON_TYPES = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
Body = TypeVar("Body", bound=StrictModel)
Result = TypeVar("Result")


def has_too_many_values(data: bytes | bytearray) -> bool:
    """Whether a JSON text would become more than :data:`MAX_VALUES` values. Signs within its strings do not count."""
    if sum(map(data.count, _SIGNS)) <= MAX_VALUES:
        return False
    left = MAX_VALUES
    for token in _TOKEN.finditer(data):
        left -= token[1] is not None
        if left < 0:
            return True
    return False


@dataclass(frozen=True)
class BodyReader(Generic[Body]):
    """How a route takes its body.

    Attributes:
        model: its fields.
        status: of HTTP, for a body or a field that is wrong.
        any_type: whether it is taken as JSON whatever the Content-Type says.
    """

    model: type[Body]
    status: int = 400
    any_type: bool = False

    async def read(
        self, request: Request, use: Callable[[Body], Result], undo: Callable[[Result], None] | None = None
    ) -> Result:
        """Read the body of a request and make something of it, both in one go and in another thread: so that not all of
        many large bodies are there as Python's objects at a time, waiting for the second.

        Args:
            request: its body was not read yet.
            use: called with the body.
            undo: called with what that gave, if nobody waits for it any more.

        Raises:
            ApiError: what is wrong with the body; and whatever ``use`` raises.
        """
        self._check_query(list(request.query_params))
        self._check_headers(request)
        data = await request.body()
        sent_as = request.headers.get("content-type")
        return await away(len(data), lambda: use(self.parse(data, sent_as)), undo=undo)

    def parse(self, data: bytes, sent_as: str | None = None) -> Body:
        """The same from its bytes.

        Raises:
            ApiError: what is wrong with it.
        """
        text = self._text(data)
        try:
            value = parse_json(text, strict=True)
        except ValueError as error:
            raise self._wrong(_why_no_json(error, sent_as)) from None
        try:
            return self.model.model_validate(value)
        except ValidationError as error:
            raise validation_error(error, status=self.status) from None

    def _wrong(self, message: str) -> ApiError:
        return ApiError(self.status, message, code="invalid_json")

    def _check_query(self, names: Sequence[str]) -> None:
        known: Collection[str] = self.model.model_fields
        if name := settings_in_query(names, known):
            raise ApiError(self.status, f"{name}: stands in the address; settings belong in the JSON body", name)

    def _check_headers(self, request: Request) -> None:
        """Refuse what says of itself that it is something else."""
        packed = request.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            message = f"Content-Encoding: {packed[:40]} cannot be read; send the body as it is, without compressing it"
            raise ApiError(415, message, code="unsupported_encoding")
        sent_as = request.headers.get("content-type", "").strip()
        kind, _, rest = sent_as.partition(";")
        if not self.any_type and not _JSON_TYPES.fullmatch(kind.strip()):
            was = f"{sent_as[:60]} was sent" if sent_as else "there is none"
            message = f"the Content-Type header must be application/json; {was}"
            raise ApiError(415 if sent_as else 400, message, code="unsupported_content_type")
        charset = re.search(r"charset\s*=\s*\"?([\w.:-]+)", rest, re.IGNORECASE)
        if charset and charset[1].lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii", "ascii"):
            message = f"charset={charset[1][:40]} cannot be read; send the body as UTF-8"
            raise ApiError(415, message, code="unsupported_charset")

    def _text(self, data: bytes) -> str:
        if not data.strip():
            raise self._wrong("the body is empty; a JSON object is needed")
        for mark, name in _COMPRESSED.items():
            if data.startswith(mark):
                raise self._wrong(f"the body is compressed ({name}); send it as it is, without compressing it")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            what = f"{error.reason} at byte {error.start}"
            raise self._wrong(f"the body is not UTF-8 text ({what}); send it as UTF-8, not as GBK or UTF-16") from None


def _why_no_json(error: ValueError, sent_as: str | None) -> str:
    """What is said of a body that is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno} column {error.colno}"
        kind = f"; it was sent as {sent_as[:60]}" if sent_as and not _JSON_TYPES.match(sent_as) else ""
        return f"the body is no JSON: {error.msg} at {where}{kind}"
    if "digits" in str(error):
        return "the body is no JSON that can be read: a number in it has too many digits"
    return f"the body is no JSON that can be read: {error}"


def documented(model: type[StrictModel]) -> dict[str, Any]:
    """What the schema of the API says of a body that a route reads itself."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema in which definitions stand where they were named; none of ours contains itself."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(item, definitions) for name, item in schema.items()}
