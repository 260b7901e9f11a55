"""API and page at one address: which of the two gets a request."""

from __future__ import annotations

from typing import Any

from ptuning.edges.http.middleware.asgi import Message, Receive, Send


class PathDispatcher:
    """An ASGI application that passes requests for the API to the API, with its keys and limits, and all others to the page.

    The API's paths are read from its OpenAPI schema by their first segment, so that a new route is behind the API's key at
    once. ``/`` is shared: ``GET`` shows the page, ``POST`` is the published route.

    Args:
        api: of :func:`ptuning.edges.http.app.create_app`.
        page: of :func:`ptuning.edges.web.page_app.create_page_app`.
    """

    def __init__(self, api: Any, page: Any) -> None:
        self.api, self.page = api, page
        documents = [path for path in (api.openapi_url, api.docs_url, api.redoc_url) if path]
        self.api_segments = {first_segment(path) for path in (*api.openapi()["paths"], *documents)} - {""}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on; startup and shutdown concern the page alone."""
        is_api = scope["type"] == "http" and self.is_for_api(scope["method"], scope["path"])
        await (self.api if is_api else self.page)(scope, receive, send)

    def is_for_api(self, method: str, path: str) -> bool:
        """Whether the API responds to a request."""
        if path in ("", "/"):
            return method not in ("GET", "HEAD")
        return first_segment(path) in self.api_segments


def first_segment(path: str) -> str:
    """The first part of a path: ``/v1/models`` → ``v1``."""
    return path.lstrip("/").partition("/")[0]
