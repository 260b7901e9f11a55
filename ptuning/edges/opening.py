"""What chat, server and page begin with: the model and the prefixes that their settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptuning.edges.garbage_collection import collection_paused
from ptuning.settings.arguments import ServingArguments
from ptuning.settings.parsing import Given

if TYPE_CHECKING:
    from ptuning.serving.chat_service import ChatService


def served_model(given: Given) -> ServingArguments:
    """Which model and prefixes; a folder named before the flags is a prefix checkpoint, the first one."""
    settings: ServingArguments = given.build(ServingArguments)
    if given.folder is not None:
        settings.ptuning_checkpoint = [given.folder, *(settings.ptuning_checkpoint or [])]
    return settings


def open_service(model: ServingArguments, **engine: Any) -> ChatService:
    """Load them; the service is not started yet.

    Args:
        model: which model and prefixes.
        engine: settings of :class:`~ptuning.engine.engine.Engine`.

    Raises:
        UserError: settings or checkpoints that do not fit.
    """
    with collection_paused():
        from ptuning.serving.chat_service import load_service

        return load_service(model, **engine)
