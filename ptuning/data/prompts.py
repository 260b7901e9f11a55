"""The one prompt form of ChatGLM-6B: training, evaluation, chat and every server build their prompts here."""

from collections.abc import Sequence

from ptuning.core.errors import UserError
from ptuning.data.protocols import Tokenizer

History = Sequence[Sequence[str]]  # [(query, reply), ...], oldest first


def build_prompt(query: str, history: History | None = None, *, legacy: bool = False, system: str = "") -> str:
    """The prompt for ``query`` after the rounds of ``history`` (pairs of query and reply, oldest first).

    Without earlier rounds the prompt is the query itself; with some it is ``[Round i]\\n问：…\\n答：…\\n`` for each and
    ends in ``答：``, as the published chat does. ``legacy=True`` also wraps an empty list as ``[Round 0]``, which the
    published trainer did once a history column was set; ``None`` (no history column) is the plain query even then.
    ``system`` is text that comes before the dialogue; ChatGLM-6B has no form for it, so it stands in front of the first
    question, on a line of its own.

    Raises :class:`UserError` for a history entry that is not a pair of texts.
    """
    if system:
        history, query = (history, f"{system}\n{query}") if not history else (_with_system(system, history), query)
    if history is None or (len(history) == 0 and not legacy):
        return query
    rounds = []
    for i, entry in enumerate(history):
        if isinstance(entry, str) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
            raise UserError(
                f"history entry {i} is {entry!r}; allowed is a pair of texts [query, reply]; correct the history"
            )
        rounds.append(f"[Round {i}]\n问：{entry[0]}\n答：{entry[1]}\n")
    return "".join(rounds) + f"[Round {len(history)}]\n问：{query}\n答："


class RoundsPrompt:
    """The prompt form of ChatGLM-6B: text, made by :func:`build_prompt`; a :class:`~ptuning.data.protocols.PromptForm`."""

    def encode(
        self,
        tokenizer: Tokenizer,
        query: str,
        history: History | None,
        *,
        source_prefix: str,
        legacy: bool,
        system: str,
    ) -> list[int]:
        """Ids of the text of a prompt."""
        return tokenizer.encode_text(source_prefix + build_prompt(query, history, legacy=legacy, system=system))

    def ending(self, tokenizer: Tokenizer, query: str, wrapped: bool) -> int:
        """How many ids the question and ``答：`` take at the end of a prompt; a plain query ends in itself."""
        cue = "\n答：" if wrapped else ""
        return len(tokenizer.encode_text(f"\n{query}{cue}")) - len(tokenizer.encode_text("\n"))


def _with_system(system: str, history: History) -> History:
    """The history with ``system`` in front of its first question; an entry that is no pair is left for the caller."""
    first = history[0]
    if isinstance(first, str) or len(first) != 2:
        return history
    return [(f"{system}\n{first[0]}", first[1]), *history[1:]]
