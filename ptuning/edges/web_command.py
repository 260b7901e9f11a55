"""``ptuning web``: a page in the browser over the base model and any number of prefixes, and the API at the same address."""

from __future__ import annotations

import gc
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ptuning.core.errors import UserError
from ptuning.edges.garbage_collection import collection_paused
from ptuning.edges.language import LanguageChoice
from ptuning.edges.opening import served_model
from ptuning.edges.serve import (
    ServerArguments,
    guarded,
    is_loopback,
    load_api,
    secret,
    serving_settings,
)
from ptuning.settings.arguments import ServingArguments
from ptuning.settings.parsing import SettingsParser

logger = logging.getLogger(__name__)


@dataclass
class WebArguments(ServerArguments):
    """The page, and the API beside it."""

    environment: ClassVar[tuple[str, str]] = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT")
    usual_port: ClassVar[str] = "7860"

    host: str | None = field(
        default=None,
        metadata={
            "help": "Address to listen on (default: GRADIO_SERVER_NAME, or 127.0.0.1: this machine alone; 0.0.0.0: all).",
            "aliases": ("server_name",),
        },
    )
    port: int | None = field(
        default=None,
        metadata={"help": "Port (default: GRADIO_SERVER_PORT, or 7860); 0 takes a free one.", "aliases": ("server_port",)},
    )
    auth: str | None = field(
        default=None,
        metadata={
            "help": "USER:PASSWORD that the page asks for (default: WEB_AUTH, or none). Without an --api_key of its own the "
            "API is closed then."
        },
    )
    lang: LanguageChoice = field(
        default="auto", metadata={"help": "Language of the page; auto: as each reader's browser. The page can change it."}
    )
    report_root: str = field(
        default="output",
        metadata={"help": "The evaluation tab opens reports of training folders below this folder.", "path": True},
    )

    def __post_init__(self) -> None:
        """As of the server; and the form of auth."""
        super().__post_init__()
        self.auth = secret("auth", self.auth, "WEB_AUTH")
        user, colon, password = (self.auth or "").partition(":")
        if self.auth and not (user.strip() and colon and password.strip()):
            raise UserError("--auth (or WEB_AUTH): write USER:PASSWORD, neither of them empty")

    @property
    def user_and_password(self) -> tuple[str, str] | None:
        """Of auth."""
        user, _, password = (self.auth or "").partition(":")
        return (user, password) if self.auth else None


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings, checkpoints or an address that do not fit; a package that is missing.
    """
    parser = SettingsParser(
        {"model and prefixes": ServingArguments, "page and server": WebArguments},
        prog="ptuning web",
        description="A page to talk to the model in a browser, and the API at the same address. Without settings: the "
        "built-in tiny-chatglm.",
        positional="[CONFIG] [CHECKPOINT]",
    )
    given = parser.parse(argv)
    model, settings = served_model(given), given.build(WebArguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would report its start
    with collection_paused():
        try:
            from ptuning.edges.http.server import open_socket, serve

            opened = open_socket(settings.host, settings.port)
            import gradio  # noqa: F401  # the first, because whether it is there is soon told

            from ptuning.edges.web.dispatcher import PathDispatcher
            from ptuning.edges.web.page_app import create_page_app, end_heartbeats
        except ModuleNotFoundError as error:
            raise UserError(f"ptuning web needs {error.name}: pip install 'ptuning[web]' (or requirements.txt)") from None
        api_key = settings.api_key or (secrets.token_urlsafe(32) if settings.auth else None)
        service, api = load_api(model, settings, api_key)
        page = create_page_app(
            service,
            api.state.metrics,
            language=settings.lang,
            report_root=Path(settings.report_root),
            auth=settings.user_and_password,
            max_bytes=settings.max_body_bytes,
        )
    _announce(settings, opened.getsockname()[1], service.store.names(), service.store.default)
    app = guarded(PathDispatcher(api, page), settings, opened)
    serve(app, service, opened, **serving_settings(settings), at_end=lambda: end_heartbeats(page))
    gc.freeze()  # nothing is left to be collected, but leaving Python would look through all of gradio and torch for it
    return 0


def _announce(settings: WebArguments, port: int, names: Sequence[str], default: str) -> None:
    """Say where the page is, with what, and whether strangers may come in."""
    host = f"[{settings.host}]" if ":" in str(settings.host) else settings.host
    logger.info("serving %s (default: %s)", ", ".join(names), default)
    api = "closed: it has no --api_key" if settings.auth and not settings.api_key else "POST /, /v1, /health, /metrics"
    logger.info("listening on http://%s:%d  (page: open it in a browser; API: %s)", host, port, api)
    if is_loopback(str(settings.host)):
        return
    open_parts = [name for name, key in (("page", settings.auth), ("API", settings.api_key or settings.auth)) if not key]
    if open_parts:
        logger.warning(
            "WARNING: the server listens on %s, and its %s needs no password: everybody who reaches this machine "
            "can use it. Give --auth USER:PASSWORD and --api_key, or --host 127.0.0.1",
            settings.host, " and its ".join(open_parts),
        )
