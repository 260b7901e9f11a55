"""The page as an ASGI application: gradio with its middleware, to be served beside the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.middleware.access import AccessMiddleware
from ptuning.edges.language import LanguageChoice
from ptuning.edges.web.allowlist import AllowlistMiddleware
from ptuning.edges.web.answers import Answers
from ptuning.edges.web.functions import functions_of
from ptuning.edges.web.page import Page
from ptuning.edges.web.queue_limits import QueueLimits
from ptuning.edges.web.security_headers import SecurityHeadersMiddleware
from ptuning.edges.web.sessions import MAX_PAGE_SESSIONS
from ptuning.edges.web.texts import Texts
from ptuning.edges.web.theme import css, theme
from ptuning.serving.chat_service import ChatService


def create_page_app(
    service: ChatService,
    metrics: Metrics,
    *,
    language: LanguageChoice = "auto",
    report_root: Path = Path("output"),
    auth: tuple[str, str] | None = None,
    max_bytes: int = 2_000_000,
) -> FastAPI:
    """The application of the page. It shares nothing through gradio's servers, reports nothing, and loads nothing from
    other hosts.

    Args:
        service: already started.
        metrics: of the API at the same address.
        language: of the page; auto: that of each user's browser.
        report_root: reports below this folder can be opened.
        auth: user and password; None: no login.
        max_bytes: limit of a request body.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = Page(service, Answers(service, metrics), language, report_root)
    texts = Texts("en" if language == "en" else "zh")
    page.blocks.state_session_capacity = MAX_PAGE_SESSIONS  # gradio keeps about 0.1 MB for each; its default is 10,000
    gr.mount_gradio_app(
        app, page.blocks, "/", auth=auth, auth_message=texts("login") if auth else None, footer_links=[],
        run_history=False, show_error=False, max_file_size=1, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=theme(), css=css(),
    )  # fmt: skip
    # gradio is mounted here, not launched; without this, it would skip its own check of files.
    page.blocks.has_launched = True
    app.state.page = page
    app.add_middleware(
        AllowlistMiddleware,
        page=mounted(app),
        functions=functions_of(page.blocks),
        queue_limits=QueueLimits(page.blocks._queue, page.sessions.leave),
        max_characters=page.answers.max_characters,
    )
    app.add_middleware(AccessMiddleware, key=None, admin_key=None, max_bytes=max_bytes)
    app.add_middleware(SecurityHeadersMiddleware)
    return app


def mounted(app: FastAPI) -> Any:
    """gradio's own application, which is mounted in the page's."""
    return next(route.app for route in app.routes if hasattr(getattr(route, "app", None), "stop_event"))  # type: ignore[attr-defined]


def end_heartbeats(app: Any) -> None:
    """Close the heartbeat connections of open pages, for which a server would wait at its shutdown. To be called in the
    event loop."""
    mounted(app).stop_event.set()
