"""``/docs``: the routes of the API on a page without scripts. The whole schema is at ``/openapi.json``."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "x-content-type-options": "nosniff"}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "td{padding:.2em 1em .2em 0;vertical-align:top}h2{font:bold 1.1em monospace;margin:2em 0 0}"
)


def docs_router(app: FastAPI) -> APIRouter:
    """The router of ``/docs``.

    Args:
        app: whose routes the page lists.
    """
    router = APIRouter()

    @router.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        """This page."""
        return HTMLResponse(render_docs(app.openapi()), headers=_HEADERS)

    return router


def render_docs(schema: dict[str, Any]) -> str:
    """An HTML page with every route of an OpenAPI schema and the fields of its body."""
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        f"<p>{escape(schema['info'].get('description', ''))}. The schema: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2>{escape(method.upper())} {escape(path)}</h2><p>{escape(route.get('description', ''))}</p>")
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            parts.append(_field_table(content.get("schema", {})))
    return "".join(parts)


def _field_table(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = []
    for name, field in schema.get("properties", {}).items():
        note = "required" if name in required else ""
        cells = (f"<code>{escape(name)}</code>", note, escape(field.get("description", "")))
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return f"<table>{''.join(rows)}</table>" if rows else ""
