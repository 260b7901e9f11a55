"""What clients may send. A field that is null is as one that is missing; 0 is a value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ptuning.loops.engine.request import Sampling


def whole_characters(text: str) -> str:
    """A text without halves of characters, which broken JSON escapes give and no answer could be sent with."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Text = Annotated[str, AfterValidator(whole_characters)]
Temperature = Annotated[float, Field(ge=0, le=100, description="0 takes the likeliest token each time")]
TopP = Annotated[float, Field(gt=0, le=1)]
MOST_STOPS, MOST_CHOICES = 16, 16


class SamplingFields(BaseModel):
    """How tokens are drawn, in every route."""

    model_config = ConfigDict(protected_namespaces=())

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = Field(default=None, description="the answer ends before the first of these texts")

    def sampling(self) -> Sampling:
        """The engine's form; what was not given is as in the published chat."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "seed")
        given = {name: getattr(self, name) for name in names}
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    def stops(self) -> tuple[str, ...]:
        """Stop texts; empty ones stop nothing."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)


class PublishedBody(SamplingFields):
    """``POST /``, as the published ``api.py`` takes it."""

    prompt: Text
    history: list[tuple[Text, Text]] | None = Field(default=None, description="earlier rounds, [[question, reply], ...]")
    max_length: Annotated[int, Field(ge=1)] | None = Field(default=None, description="prompt and answer, in tokens")
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    model: Text | None = Field(default=None, description="a prefix by name, or the base model")


class PublishedAnswer(BaseModel):
    """What ``POST /`` answers."""

    response: str
    history: list[tuple[str, str]]
    status: int = 200
    time: str
    dropped_rounds: int | None = Field(default=None, description="rounds of the history that did not fit")


class ContentPart(BaseModel):
    """A piece of a message; only text can be read."""

    type: Text
    text: Text | None = None


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart] | None = None


class StreamOptions(BaseModel):
    """What a stream brings besides."""

    include_usage: bool | None = None


class ChatCompletionBody(SamplingFields):
    """``POST /v1/chat/completions``. Fields that do not change an answer (``user``, ``metadata``) may stand there."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    # Known, and refused where they would change the answer: silence would be worse.
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | int | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class PrefixBody(BaseModel):
    """``POST /admin/prefixes``."""

    name: Text
    path: Text
