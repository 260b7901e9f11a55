"""OpenAI's messages as a question after rounds of question and reply. Nothing is dropped: it is used, or refused."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.edges.http.bodies import ChatMessage
from ptuning.edges.http.errors import ApiError

Rounds = list[tuple[str, str]]


def question_of(messages: Sequence[ChatMessage]) -> tuple[str, Rounds]:
    """The last question and the rounds before it.

    ChatGLM-6B knows questions and replies only. System (and developer) messages go in front of the last question, which
    is never cut, each on lines of its own. Several messages of one speaker in a row are one, line by line. A reply that
    nobody asked for stands after an empty question.

    Raises:
        ApiError: the last message is not the user's; a part is no text; nothing is asked.
    """
    system: list[str] = []
    rounds: Rounds = []
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
            rounds.append(("\n".join(questions), text))
            questions = []
        else:
            asked, reply = rounds.pop()
            rounds.append((asked, f"{reply}\n{text}"))
        last = message.role
    if not questions:
        where = f"messages.{len(messages) - 1}.role"
        raise ApiError(400, f"{where}: the last message must be the user's; there is nothing to answer", where)
    return "\n".join([*system, *questions]), rounds


def _text(message: ChatMessage, number: int) -> str:
    """The text of a message; its parts one after another."""
    content = message.content
    where = f"messages.{number}.content"
    if content is None:
        if message.role == "assistant":  # as clients send it beside tool calls
            return ""
        raise ApiError(400, f"{where}: a text is needed", where)
    if isinstance(content, str):
        return content
    for place, part in enumerate(content):
        if part.type not in ("text", "input_text") or part.text is None:
            kind = f"{where}.{place}.type"
            raise ApiError(400, f"{kind}: {part.type!r} cannot be read; allowed is text", kind)
    return "".join(part.text or "" for part in content)
