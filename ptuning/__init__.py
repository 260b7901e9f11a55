"""P-Tuning v2 for ChatGLM-6B: tune a prefix on your own rows, score it, talk to it.

>>> import ptuning
>>> tokenizer = ptuning.load_tokenizer("tiny-chatglm")
>>> model = ptuning.load_model("tiny-chatglm")
>>> response, history = model.chat(tokenizer, "你好")

Importing this package is cheap: torch and transformers are imported when a name below is first used. The Auto classes of
transformers know ChatGLM-6B from here on, without remote code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ptuning.auto_classes import register_when_imported
from ptuning.core.version import __version__ as __version__

if TYPE_CHECKING:
    from ptuning.checkpoint.load import load_tokenizer
    from ptuning.core.errors import GenerationError, UserError
    from ptuning.data.tokenizer import ChatGLMTokenizer
    from ptuning.engine.chat_model import ChatGLMForConditionalGeneration
    from ptuning.engine.load import load_model
    from ptuning.model.config import ChatGLMConfig

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMTokenizer",
    "GenerationError",
    "UserError",
    "load_model",
    "load_tokenizer",
]

_HOMES = {
    "ChatGLMConfig": "ptuning.model.config",
    "ChatGLMForConditionalGeneration": "ptuning.engine.chat_model",
    "ChatGLMTokenizer": "ptuning.data.tokenizer",
    "GenerationError": "ptuning.core.errors",
    "UserError": "ptuning.core.errors",
    "load_model": "ptuning.engine.load",
    "load_tokenizer": "ptuning.checkpoint.load",
}

register_when_imported()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ptuning' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
