"""Prefixes loaded and unloaded while the server runs, behind a key of their own."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool

from ptuning.core.errors import UserError
from ptuning.edges.http.errors import ApiError
from ptuning.edges.http.json_body import BodyReader, documented
from ptuning.edges.http.middleware.access import bearer_key, keys_equal
from ptuning.edges.http.schemas import LoadPrefixRequest
from ptuning.serving.chat_service import ChatService
from ptuning.serving.prefix_store import StoredPrefix, UnknownPrefixError, check_name


def admin_router(service: ChatService, admin_key: str | None, root: Path) -> APIRouter:
    """The routes.

    Args:
        service: whose prefixes.
        admin_key: None switches the routes off.
        root: only checkpoints below this folder are loaded.
    """

    def with_key(request: Request) -> None:
        if not admin_key:
            raise ApiError(403, "prefixes cannot be changed over HTTP: the server was started without --admin_key")
        if not keys_equal(bearer_key(request.scope["headers"]), admin_key):
            raise ApiError(401, "wrong admin key: Authorization: Bearer KEY", code="invalid_api_key")

    router = APIRouter(prefix="/admin", dependencies=[Depends(with_key)])
    reader = BodyReader(LoadPrefixRequest)

    @router.get("/prefixes")
    async def prefixes() -> dict[str, Any]:
        """Everything that is loaded."""
        return {"default": service.store.default, "prefixes": [_described(one) for one in service.store.all()]}

    @router.post("/prefixes", status_code=201, openapi_extra=documented(LoadPrefixRequest))
    async def load(request: Request) -> dict[str, Any]:
        """Load a checkpoint from this machine's disk."""
        body = await reader.read(request, lambda read: read)
        return _described(await run_in_threadpool(_load, service, body.name, body.path, root))

    @router.delete("/prefixes/{name}")
    async def unload(name: Annotated[str, "as in /v1/models"]) -> dict[str, Any]:
        """Let a prefix go; answers that run with it are finished."""
        await run_in_threadpool(service.store.unload, name)
        return {"unloaded": name}

    return router


def below(path: str, root: Path) -> Path:
    """A checkpoint below a folder. Links are followed, its own and those of its files; none may lead out of the folder.

    Raises:
        ApiError: it lies elsewhere, or nowhere. Both read the same, so that nobody learns what lies elsewhere.
    """
    try:
        top = root.resolve()
        found = (root / path).resolve()
        fine = found.is_relative_to(top) and found.exists() and _stays_below(found, top)
    except (OSError, ValueError, RuntimeError):
        fine = False
    if not fine:
        raise ApiError(400, f"path: no such checkpoint below {root}", "path")
    return found


def _stays_below(checkpoint: Path, top: Path) -> bool:
    """Whether everything that a reader of the checkpoint may open is a file or folder below ``top``."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for entry in (checkpoint, *folder.iterdir()):
        kind = entry.stat().st_mode if entry.exists() else 0
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or not entry.resolve().is_relative_to(top):
            return False
    return True


def _load(service: ChatService, name: str, path: str, root: Path) -> StoredPrefix:
    """Load a checkpoint; its place is looked at again afterwards, as links may change while it is read.

    Raises:
        ApiError: it cannot be loaded.
    """
    found = below(path, root)
    try:
        check_name(name)
        stored = service.store.load(name, found)
    except UnknownPrefixError:
        raise
    except UserError as error:
        taken = name in service.store.names()
        raise ApiError(409 if taken else 400, str(error), "name" if taken else None) from None
    try:
        if below(path, root) != found:
            raise ApiError(400, f"path: no such checkpoint below {root}", "path")
    except ApiError:
        service.store.unload(name)
        raise
    return stored


def _described(stored: StoredPrefix) -> dict[str, Any]:
    return {
        "name": stored.name,
        "path": None if stored.path is None else str(stored.path),
        "pre_seq_len": stored.pre_seq_len,
        "loaded": int(stored.loaded),
    }
