"""``/admin``: load and unload prefixes while the server runs, with a key of its own."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool

from ptuning.core.errors import UserError
from ptuning.edges.http.errors import ApiError
from ptuning.edges.http.json_body import BodyReader, openapi_body
from ptuning.edges.http.middleware.access import bearer_key, keys_equal
from ptuning.edges.http.schemas import LoadPrefixRequest
from ptuning.serving.chat_service import ChatService
from ptuning.serving.prefix_store import StoredPrefix, UnknownPrefixError, check_name


def admin_router(service: ChatService, admin_key: str | None, root: Path) -> APIRouter:
    """The router of ``/admin``.

    Args:
        service: whose prefixes are managed.
        admin_key: None disables the routes.
        root: only checkpoints below this folder can be loaded.
    """

    def check_key(request: Request) -> None:
        if not admin_key:
            raise ApiError(403, "prefixes cannot be changed over HTTP: the server was started without --admin_key")
        if not keys_equal(bearer_key(request.scope["headers"]), admin_key):
            raise ApiError(401, "wrong admin key: Authorization: Bearer KEY", code="invalid_api_key")

    router = APIRouter(prefix="/admin", dependencies=[Depends(check_key)])
    reader = BodyReader(LoadPrefixRequest)

    @router.get("/prefixes")
    async def prefixes() -> dict[str, Any]:
        """All loaded prefixes."""
        return {"default": service.store.default, "prefixes": [_description(stored) for stored in service.store.all()]}

    @router.post("/prefixes", status_code=201, openapi_extra=openapi_body(LoadPrefixRequest))
    async def load(request: Request) -> dict[str, Any]:
        """Load a checkpoint from this machine's disk."""
        body = await reader.read(request, lambda body: body)
        return _description(await run_in_threadpool(_load, service, body.name, body.path, root))

    @router.delete("/prefixes/{name}")
    async def unload(name: Annotated[str, "as in /v1/models"]) -> dict[str, Any]:
        """Unload a prefix; answers in progress with it are finished."""
        await run_in_threadpool(service.store.unload, name)
        return {"unloaded": name}

    return router


def checkpoint_below(root: Path, path: str) -> Path:
    """A checkpoint below a folder, with symbolic links resolved: its own and those of its files may not lead out of it.

    Raises:
        ApiError: it lies elsewhere or does not exist. The message is the same for both, so that it reveals nothing about
            other folders.
    """
    try:
        real_root = root.resolve()
        checkpoint = (root / path).resolve()
        is_below = checkpoint.is_relative_to(real_root) and checkpoint.exists() and _files_are_below(checkpoint, real_root)
    except (OSError, ValueError, RuntimeError):
        is_below = False
    if not is_below:
        raise ApiError(400, f"path: no such checkpoint below {root}", "path")
    return checkpoint


def _files_are_below(checkpoint: Path, root: Path) -> bool:
    """Whether everything that a reader of the checkpoint may open is a file or folder below ``root``."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for entry in (checkpoint, *folder.iterdir()):
        mode = entry.stat().st_mode if entry.exists() else 0
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not entry.resolve().is_relative_to(root):
            return False
    return True


def _load(service: ChatService, name: str, path: str, root: Path) -> StoredPrefix:
    """Load a checkpoint. Its place is checked again afterwards, because links may change while it is read.

    Raises:
        ApiError: it cannot be loaded.
    """
    checkpoint = checkpoint_below(root, path)
    try:
        check_name(name)
        stored = service.store.load(name, checkpoint)
    except UnknownPrefixError:
        raise
    except UserError as error:
        taken = name in service.store.names()
        raise ApiError(409 if taken else 400, str(error), "name" if taken else None) from None
    try:
        if checkpoint_below(root, path) != checkpoint:
            raise ApiError(400, f"path: no such checkpoint below {root}", "path")
    except ApiError:
        service.store.unload(name)
        raise
    return stored


def _description(stored: StoredPrefix) -> dict[str, Any]:
    return {
        "name": stored.name,
        "path": None if stored.path is None else str(stored.path),
        "pre_seq_len": stored.pre_seq_len,
        "loaded": int(stored.loaded),
    }
