"""OpenAI's messages as a question after rounds of question and reply. Nothing is dropped: it is used, or refused."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.edges.http.errors import ApiError
from ptuning.edges.http.schemas import ChatMessage

Rounds = list[tuple[str, str]]


def query_and_history(messages: Sequence[ChatMessage]) -> tuple[str, Rounds]:
    """The last question and the rounds before it.

    ChatGLM-6B knows questions and replies only. System (and developer) messages go in front of the last question, which
    is never cut, each on lines of its own. Several messages of one speaker in a row are one, line by line. A reply that
    nobody asked for stands after an empty question.

    Raises:
        ApiError: the last message is not the user's; a part is no text; nothing is asked.
    """
    system: list[str] = []
    rounds: list[tuple[list[str], list[str]]] = []  # lines of the question and of the reply
    questions: list[str] = []
    last = ""
    for number, message in enumerate(messages):
        text = _text(message, number)
        if message.role in ("system", "developer"):
            system.append(text)
            continue
        if message.role == "user":
            questions.append(text)
        elif questions or last != "assistant":
            rounds.append((questions, [text]))
            questions = []
        else:
            rounds[-1][1].append(text)
        last = message.role
    if not questions:
        where = f"messages.{len(messages) - 1}.role"
        raise ApiError(400, f"{where}: the last message must be the user's; there is nothing to answer", where)
    return "\n".join([*system, *questions]), [("\n".join(asked), "\n".join(replies)) for asked, replies in rounds]


def _text(message: ChatMessage, number: int) -> str:
    """The text of a message; its parts one after another."""
    content = message.content
    where = f"messages.{number}.content"
    if content is None:
        if message.role == "assistant":  # as clients send it beside tool calls
            return ""
        raise ApiError(400, f"{where}: a text is needed", where)
    for place, part in enumerate(content):
        if part.type not in ("text", "input_text"):
            kind = f"{where}.{place}.type"
            raise ApiError(400, f"{kind}: {part.type[:40]!r} cannot be read; allowed is text", kind)
        if part.text is None:
            raise ApiError(400, f"{where}.{place}.text: is needed", f"{where}.{place}.text")
    return "".join(part.text or "" for part in content)
