"""The API as an ASGI application: routes, error handlers and middleware around one chat service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from ptuning import __version__
from ptuning.edges.http.admin_routes import admin_router
from ptuning.edges.http.docs_page import docs_router
from ptuning.edges.http.errors import add_handlers
from ptuning.edges.http.metrics import Metrics
from ptuning.edges.http.middleware.access import AccessMiddleware
from ptuning.edges.http.middleware.normalization import NormalizationMiddleware
from ptuning.edges.http.openai_routes import openai_router
from ptuning.edges.http.published_routes import published_router
from ptuning.serving.chat_service import ChatService

MAX_BODY_BYTES = 2_000_000


def create_app(
    service: ChatService,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    checkpoint_root: Path = Path(),
    max_bytes: int = MAX_BODY_BYTES,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The application over a running service.

    Args:
        service: already started.
        api_key: required for everything but ``/health``; None: no key is needed.
        admin_key: required to load and unload prefixes; None: that is disabled.
        checkpoint_root: only checkpoints below it can be loaded over HTTP.
        max_bytes: limit of a request body.
        cors_origins: other origins whose web pages may call the API; ``*`` for all.
    """
    app = FastAPI(
        title="ptuning", version=__version__, description="ChatGLM-6B with any number of P-Tuning prefixes",
        docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    metrics = app.state.metrics = Metrics(service)
    app.include_router(published_router(service, metrics))
    app.include_router(openai_router(service, metrics))
    app.include_router(admin_router(service, admin_key, checkpoint_root))
    app.include_router(docs_router(app))
    add_handlers(app)

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Whether the server answers, and how busy it is."""
        engine, alive = service.engine, service.worker.alive
        state: dict[str, Any] = {
            "status": "ok" if alive else "stopped",
            "model": service.store.base_name,
            "prefixes": service.store.names()[1:],
            "running": len(engine.running),
            "waiting": len(engine.waiting),
            "version": __version__,
        }
        return JSONResponse(state, 200 if alive else 503)

    @app.get("/metrics", response_model=None)
    async def prometheus() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_middleware(AccessMiddleware, key=api_key, admin_key=admin_key, max_bytes=max_bytes)
    if cors_origins:
        from fastapi.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(NormalizationMiddleware)
    return app
