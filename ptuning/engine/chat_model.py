"""The public class: the network, with answers on top of it and every published layout of weights below."""

from __future__ import annotations

from typing import Any

from ptuning.checkpoint.weights import from_pretrained
from ptuning.engine.chat import ChatMixin
from ptuning.engine.generate import generate
from ptuning.model.network import ChatGLMNetwork


class ChatGLMForConditionalGeneration(ChatMixin, ChatGLMNetwork):
    """A ChatGLM-6B model, with a prefix encoder where ``config.pre_seq_len`` says so.

    The names of the published state dict are kept. ``from_pretrained`` (also through ``AutoModelForCausalLM``) reads every
    published layout; see :func:`ptuning.load_model`.

    Args:
        config: sizes, special ids, quantisation, prefix.
    """

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does (greedy, sampled, beams, batches with left padding).

        The keys and values of the attached prefix are computed once for the whole call.
        """
        return generate(self, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as :func:`ptuning.load_model` does; takes the keywords of transformers' ``from_pretrained``."""
        return from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs)
