"""What this room asks of a tokenizer and of a prompt form. It is handed them: a family of models puts them together."""

from collections.abc import Sequence
from typing import Any, Protocol


class PromptForm(Protocol):
    """How a question, after earlier rounds, is written for a model."""

    def encode(
        self,
        tokenizer: "Tokenizer",
        query: str,
        history: Sequence[Sequence[str]] | None,
        *,
        source_prefix: str,
        legacy: bool,
        system: str,
    ) -> list[int]:
        """Ids of a prompt, without the special ids that frame it. All of its texts are user text: control strings in them
        stay text.

        Args:
            tokenizer: of the model.
            query: the question.
            history: earlier (query, reply) pairs, oldest first.
            source_prefix: text in front of all.
            legacy: whether an empty history is written as the published trainer did.
            system: text that comes before the dialogue.

        Raises:
            UserError: a history entry that is no pair of texts.
        """

    def ending(self, tokenizer: "Tokenizer", query: str, wrapped: bool) -> int:
        """How many ids the end of a prompt takes, which is the last to be cut: the question, and the cue for the reply.

        Args:
            tokenizer: of the model.
            query: the question; "" for the cue alone.
            wrapped: whether the prompt has the form of a dialogue.
        """


class Tokenizer(Protocol):
    """A tokenizer, as rows, prompts and replies use it.

    Attributes:
        prompt_form: how its model is asked.
        eos_token_id: ends a reply.
        pad_token_id: fills up a batch.
    """

    prompt_form: PromptForm
    eos_token_id: Any  # an int; transformers' tokenizers do not say so
    pad_token_id: Any

    @property
    def max_characters(self) -> int:
        """Characters of a text that one id stands for, at most."""

    def encode_text(self, text: str) -> list[int]:
        """Ids of a user's text: no control id whatever stands in it, nothing added at either end."""

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """The ids of a prompt in their frame of special ids, ready for the model."""
