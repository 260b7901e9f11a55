"""OpenAI's messages as a question with earlier rounds. Every message is used or rejected; none is dropped."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.edges.http.errors import ApiError
from ptuning.edges.http.schemas import ChatMessage

Rounds = list[tuple[str, str]]


def query_and_history(messages: Sequence[ChatMessage]) -> tuple[str, Rounds]:
    """The last question and the (question, reply) rounds before it.

    ChatGLM-6B knows questions and replies only. System (and developer) messages go in front of the last question, which is
    never truncated, each on lines of its own. Consecutive messages of one role are joined by newlines. A reply without a
    question before it follows an empty question.

    Raises:
        ApiError: the last message is not the user's; a part is not text; a message has no content.
    """
    system: list[str] = []
    rounds: list[tuple[list[str], list[str]]] = []  # lines of the question, lines of the reply
    questions: list[str] = []
    previous_role = ""
    for index, message in enumerate(messages):
        text = _text(message, index)
        if message.role in ("system", "developer"):
            system.append(text)
            continue
        if message.role == "user":
            questions.append(text)
        elif questions or previous_role != "assistant":
            rounds.append((questions, [text]))
            questions = []
        else:
            rounds[-1][1].append(text)
        previous_role = message.role
    if not questions:
        field = f"messages.{len(messages) - 1}.role"
        raise ApiError(400, f"{field}: the last message must be the user's; there is nothing to answer", field)
    history = [("\n".join(question_lines), "\n".join(reply_lines)) for question_lines, reply_lines in rounds]
    return "\n".join([*system, *questions]), history


def _text(message: ChatMessage, index: int) -> str:
    """The text of a message; the texts of its parts joined."""
    content = message.content
    field = f"messages.{index}.content"
    if content is None:
        if message.role == "assistant":  # as clients send it beside tool calls
            return ""
        raise ApiError(400, f"{field}: a text is needed", field)
    for number, part in enumerate(content):
        if part.type not in ("text", "input_text"):
            type_field = f"{field}.{number}.type"
            raise ApiError(400, f"{type_field}: {part.type[:40]!r} cannot be read; allowed is text", type_field)
        if part.text is None:
            raise ApiError(400, f"{field}.{number}.text: is required", f"{field}.{number}.text")
    return "".join(part.text or "" for part in content)
