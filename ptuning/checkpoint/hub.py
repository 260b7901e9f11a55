"""From a model's name to a local folder: a path, the embedded model, or a hub repository."""

from __future__ import annotations

import logging
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory
from ptuning.core.reading import expanded

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "tiny-chatglm"
"""Name of the model that ships with the package."""

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "ice_text.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_SAFETENSORS = ("model.safetensors", "model-*.safetensors")
_BIN = ("pytorch_model.bin", "pytorch_model-*.bin")


def embedded_folder() -> Path:
    """The folder of the embedded model."""
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
    fetched. Where the hub cannot be reached, what the cache holds is used.

    Args:
        name: folder or hub name.
        weights: whether weight files are needed; the safetensors ones are taken where a repository has both forms.
        revision: branch, tag or commit on the hub; likewise the other hub settings.

    Raises:
        UserError: no such folder, or the hub does not give it.
    """
    text = os.fspath(name)
    if not text:
        raise UserError(f"the model's name is empty: give a folder, a hub name such as THUDM/chatglm-6b or {EMBEDDED_MODEL}")
    folder = expanded(text)
    if os.path.isdir(folder):
        return folder
    if text == EMBEDDED_MODEL:
        return embedded_folder()
    if os.path.exists(folder):
        raise UserError(f"{text} is a file; give the folder that holds config.json, ice_text.model and the weights")
    if folder.is_absolute() or text.startswith((".", "~")) or "\\" in text or text.count("/") != 1:
        raise UserError(
            f"model folder not found: {text} (working directory {working_directory()}). Give a folder, a hub name such as "
            f"THUDM/chatglm-6b, or {EMBEDDED_MODEL}"
        )
    settings: dict[str, Any] = {
        "revision": revision,
        "cache_dir": None if cache_dir is None else expanded(cache_dir),
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    return _download(text, weights, settings)


def _download(repository: str, weights: bool, settings: dict[str, Any]) -> Path:
    """Fetch a repository's files, or find them in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the root of whatever HTTP client this version of huggingface_hub uses, and OSError.
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError)  # type: ignore[assignment]
    try:
        if settings["local_files_only"] or constants.HF_HUB_OFFLINE:
            return _from_cache(repository, weights, settings)
        try:
            return _from_hub(repository, weights, settings)
        except failures as error:
            if isinstance(error, HfHubHTTPError | ValueError):
                raise  # the hub has answered
            try:
                folder = _from_cache(repository, weights, settings)
            except failures:
                raise error from None  # the cache has no copy: that the hub is out of reach is the news
            logger.warning("the hub (%s) cannot be reached: using the cached copy of %s", constants.ENDPOINT, repository)
            return folder
    except failures as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{repository} is no local folder (working directory {working_directory()}) and the hub "
            f"({constants.ENDPOINT}) did not give it: {reason}. Check the name and --model_revision, set HF_ENDPOINT to a "
            "mirror, or give a downloaded folder"
        ) from error


def _from_hub(repository: str, weights: bool, settings: dict[str, Any]) -> Path:
    from huggingface_hub import model_info, snapshot_download

    patterns = list(_SMALL_FILES)
    if weights:
        listed = model_info(repository, revision=settings["revision"], token=settings["token"]).siblings or ()
        files = [file.rfilename for file in listed]
        patterns += _SAFETENSORS if any(fnmatch(file, form) for file in files for form in _SAFETENSORS) else _BIN
    return Path(snapshot_download(repository, allow_patterns=patterns, **settings))


def _from_cache(repository: str, weights: bool, settings: dict[str, Any]) -> Path:
    """What the cache holds. huggingface_hub checks that the files asked for are complete, where it can tell."""
    from huggingface_hub import snapshot_download

    known = settings | {"local_files_only": True, "force_download": False}
    folder = Path(snapshot_download(repository, allow_patterns=list(_SMALL_FILES), **known))
    if weights:
        form = next((form for form in (_SAFETENSORS, _BIN) if any(any(folder.glob(name)) for name in form)), None)
        if form is None:
            raise FileNotFoundError(f"the cache ({folder}) holds no weights of it; load it once with the network")
        folder = Path(snapshot_download(repository, allow_patterns=[*_SMALL_FILES, *form], **known))
    return folder
