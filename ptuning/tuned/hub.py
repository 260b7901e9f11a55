"""From a model's name to a local folder: a path, the embedded model, or a hub repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ptuning.plain.errors import UserError

EMBEDDED_MODEL = "tiny-chatglm"
"""Name of the model that ships with the package."""

_SMALL_FILES = ["*.json", "ice_text.model"]


def embedded_folder() -> Path:
    """Where the embedded model lies."""
    return Path(__file__).resolve().parent.parent / "assets" / EMBEDDED_MODEL


def resolve_folder(
    name: str | os.PathLike[str],
    *,
    weights: bool,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder of a model.

    A local folder wins; then ``tiny-chatglm`` means the embedded model; anything else is a hub repository, fetched with
    huggingface_hub, which honours ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and a token. Remote code is never
    fetched.

    Args:
        name: folder or hub name.
        weights: whether weight files are needed; the safetensors ones are taken where a repository has both forms.
        revision: branch, tag or commit on the hub; likewise the other hub settings.

    Raises:
        UserError: no such folder, or the hub does not give it.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if text == EMBEDDED_MODEL:
        return embedded_folder()
    if folder.exists():
        raise UserError(f"{text} is a file; give the folder that holds config.json, ice_text.model and the weights")
    if folder.is_absolute() or text.startswith((".", "~")) or "\\" in text or text.count("/") != 1:
        raise UserError(
            f"model folder not found: {text} (working directory {Path.cwd()}). Give a folder, a hub name such as "
            f"THUDM/chatglm-6b, or {EMBEDDED_MODEL}"
        )
    settings: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    return _download(text, weights, settings)


def _download(repository: str, weights: bool, settings: dict[str, Any]) -> Path:
    from huggingface_hub import constants, list_repo_files, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    patterns = list(_SMALL_FILES)
    try:
        if weights:
            patterns += ["*.safetensors", "pytorch_model*.bin"]
            if not (settings["local_files_only"] or constants.HF_HUB_OFFLINE):
                files = list_repo_files(repository, revision=settings["revision"], token=settings["token"])
                if any(file.endswith(".safetensors") for file in files):
                    patterns.remove("pytorch_model*.bin")
        return Path(snapshot_download(repository, allow_patterns=patterns, **settings))
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{repository} is no local folder (working directory {Path.cwd()}) and the hub "
            f"({constants.ENDPOINT}) did not give it: {reason}. Check the name and --model_revision, set HF_ENDPOINT to a "
            "mirror, or give a downloaded folder"
        ) from error
