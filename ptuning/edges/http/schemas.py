"""The schemas of requests and responses. A field that is null counts as missing; 0 is a value."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ptuning.core.characters import whole_characters
from ptuning.edges.http.strict_model import IGNORED, NEUTRAL, StrictModel
from ptuning.engine.sampling_params import SamplingParams
from ptuning.settings.answer_limits import MAX_CHOICES, MAX_ROUNDS, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOKENS, SAMPLING

MAX_MESSAGES, MAX_PARTS = 2 * MAX_ROUNDS, 1000


def _number(value: Any) -> Any:
    """Numbers only: JSON can tell them from strings and from true."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number_type", "must be a number")
    if isinstance(value, int) and abs(value) > 2**1000:
        raise PydanticCustomError("number_size", "is too large a number")
    return value


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise PydanticCustomError("whole_number", "must be a whole number")
    if abs(value) >= 2**64:
        raise PydanticCustomError("number_size", "is too large a number")
    return int(value)


def _stops(value: Any) -> Any:
    """One stop string or several; empty ones stop nothing."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("stop_type", "must be a string or a list of strings")
    if any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise PydanticCustomError(
            "text_size", "a stop string may have at most {limit} characters", {"limit": MAX_STOP_CHARACTERS}
        )
    return [text for text in texts if text] if len(texts) <= MAX_STOPS else texts


def _round(value: Any) -> Any:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise PydanticCustomError("round_type", "must be a pair of strings, [question, reply]")
    return value


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content_type", "must be a string or a list of parts")
    return value


def _within(name: str) -> Any:
    """The engine's limits of a setting, checked here already so that the error names the field."""
    return Field(ge=SAMPLING[name].minimum, le=SAMPLING[name].maximum)


Text = Annotated[str, AfterValidator(whole_characters)]
Number = Annotated[float, BeforeValidator(_number, json_schema_input_type=float), Field(allow_inf_nan=False)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number, json_schema_input_type=int)]
TokenCount = Annotated[WholeNumber, Field(ge=1, le=MAX_TOKENS)]
Flag = Annotated[bool, Field(strict=True)]
_STOPS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS}]}
Stops = Annotated[list[Text], Field(max_length=MAX_STOPS), BeforeValidator(_stops), WithJsonSchema(_STOPS_SCHEMA)]
Round = Annotated[tuple[Text, Text], BeforeValidator(_round)]


class SamplingFields(StrictModel):
    """How tokens are sampled and where the answer ends, for every route."""

    neutral: ClassVar = NEUTRAL
    ignored: ClassVar = IGNORED

    temperature: Annotated[Number, Field(ge=0, le=100, description="0 takes the likeliest token each time")] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[WholeNumber, Field(ge=0, le=SAMPLING["top_k"].maximum)] | None = None
    repetition_penalty: Annotated[Number, _within("repetition_penalty")] | None = None
    no_repeat_ngram_size: Annotated[WholeNumber, Field(ge=0, le=SAMPLING["no_repeat_ngram_size"].maximum)] | None = None
    seed: Annotated[WholeNumber, _within("seed")] | None = None
    do_sample: Annotated[Flag, Field(description="false takes the likeliest token each time")] | None = None
    max_length: Annotated[TokenCount, Field(description="limit of prompt and answer together, in tokens")] | None = None
    max_new_tokens: Annotated[TokenCount, Field(description="limit of the answer alone, in tokens")] | None = None
    stop: Annotated[Stops, Field(description="the answer ends before the first of these strings")] | None = None

    def sampling_params(self) -> SamplingParams:
        """The settings as the engine takes them; what was not given is as in the published chat.

        Raises:
            UserError: a value that the engine does not take.
        """
        names = [*SamplingParams.__dataclass_fields__, "do_sample"]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return SamplingParams.from_settings(**given)


class PublishedRequest(SamplingFields):
    """``POST /``, as the published ``api.py`` takes it."""

    neutral: ClassVar = {**NEUTRAL, "stream": (False,), "n": (1,)}

    prompt: Text
    history: Annotated[
        list[Round], Field(max_length=MAX_ROUNDS, description="earlier rounds: [[question, reply], ...]")
    ] | None = None  # fmt: skip
    model: Annotated[Text, Field(description="name of a prefix or of the base model")] | None = None


class PublishedResponse(BaseModel):
    """The response of ``POST /``."""

    response: str
    history: list[tuple[str, str]]
    status: int = 200
    time: str
    dropped_rounds: int | None = Field(default=None, description="rounds of the history that did not fit")


class ContentPart(StrictModel):
    """A piece of a message; only text can be read."""

    neutral: ClassVar = {"annotations": ([],)}
    ignored: ClassVar = frozenset({"cache_control"})

    type: Text
    text: Text | None = None

    @classmethod
    def _reject_field(cls, name: str, value: Any) -> None:
        if name in ("image_url", "input_audio", "file"):  # the error about ``type`` is the clearer one
            return
        super()._reject_field(name, value)


class ChatMessage(StrictModel):
    """One message of a conversation. The further fields of this server's own answers may be sent back."""

    neutral: ClassVar = {
        "refusal": ("",), "annotations": ([],), "tool_calls": ([],), "function_call": (), "audio": (), "name": ("",),
    }  # fmt: skip

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[ContentPart],
        Field(max_length=MAX_PARTS),
        BeforeValidator(_parts),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
    ] | None = None  # fmt: skip


class StreamOptions(StrictModel):
    """What a stream contains besides the answer."""

    ignored: ClassVar = frozenset({"include_obfuscation"})

    include_usage: Flag | None = None


class ChatCompletionRequest(SamplingFields):
    """``POST /v1/chat/completions``. Fields that do not change an answer (``user``, ``metadata``) are accepted."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[TokenCount, Field(description="another name of max_new_tokens")] | None = None
    max_completion_tokens: Annotated[TokenCount, Field(description="another name of max_tokens")] | None = None
    n: Annotated[WholeNumber, Field(ge=1, le=MAX_CHOICES, description="how many answers")] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None


class LoadPrefixRequest(StrictModel):
    """``POST /admin/prefixes``."""

    name: Text
    path: Text
