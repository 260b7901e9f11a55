"""Makes transformers' Auto classes know ChatGLM-6B, without importing transformers for those who do not use it.

``import ptuning`` must stay cheap (``ptuning --help`` answers without torch), and ``AutoModelForCausalLM`` must work after
it. So a class is registered as soon as both its own module and transformers' Auto module have been imported, whichever
comes last; importing an Auto module brings ours in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."
_CONFIG, _TOKENIZER, _MODEL = "ptuning.model.config", "ptuning.data.tokenizer", "ptuning.engine.chat_model"
# What the module of the model imports and what imports transformers: where one of these comes first, it is not complete
# yet when the Auto module is.
_BELOW_MODEL = ("ptuning.model.network", "ptuning.engine.generate", "ptuning.engine.chat")
# Auto module -> our modules whose classes it needs; the last one holds the class to register.
_NEEDS = {
    f"{_AUTO}configuration_auto": (_CONFIG,),
    f"{_AUTO}tokenization_auto": (_CONFIG, _TOKENIZER),
    f"{_AUTO}modeling_auto": (_CONFIG, *_BELOW_MODEL, _MODEL),
}
_FACTORIES = {
    f"{_AUTO}configuration_auto": ("AutoConfig",),
    f"{_AUTO}tokenization_auto": ("AutoTokenizer",),
    f"{_AUTO}modeling_auto": ("AutoModelForCausalLM", "AutoModel", "AutoModelForSeq2SeqLM"),
}
_OURS = frozenset(name for needs in _NEEDS.values() for name in needs)


def register_when_imported() -> None:
    """Register now what is imported already, and the rest as soon as it is."""
    if any(isinstance(finder, _AutoFinder) for finder in sys.meta_path):
        return
    finder = _AutoFinder(set(sys.modules) & (set(_NEEDS) | _OURS))
    sys.meta_path.insert(0, finder)
    for auto in set(_NEEDS) & finder.executed:
        finder.after(auto)


def _register(auto: ModuleType) -> None:
    """Tell one Auto module about our classes; all modules involved have been executed."""
    config = sys.modules[_CONFIG].ChatGLMConfig
    factories = [getattr(auto, name) for name in _FACTORIES[auto.__name__]]
    for factory in factories:
        if auto.__name__.endswith("configuration_auto"):
            factory.register(config.model_type, config, exist_ok=True)
        elif auto.__name__.endswith("tokenization_auto"):
            factory.register(config, sys.modules[_TOKENIZER].ChatGLMTokenizer, exist_ok=True)
        else:
            factory.register(config, sys.modules[_MODEL].ChatGLMForConditionalGeneration, exist_ok=True)
        _keep_from_remote_code(factory, config)


def _keep_from_remote_code(factory: Any, config: Any) -> None:
    """Keep an Auto class away from a ChatGLM-6B folder's remote code, also with ``trust_remote_code=True``, and from its
    damaged files.

    Which of the two comes first, a registered class or remote code, depends on the factory and on the version of
    transformers; the published code does not run on transformers 5.
    """
    original = factory.from_pretrained.__func__
    if hasattr(original, "knows_chatglm"):
        return

    @wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *inputs: Any, **kwargs: Any) -> Any:
        _check_local_folder(config, pretrained_model_name_or_path, kwargs)
        if kwargs.get("trust_remote_code") and _is_chatglm_6b(config, pretrained_model_name_or_path, kwargs):
            kwargs["trust_remote_code"] = False
        return original(cls, pretrained_model_name_or_path, *inputs, **kwargs)

    from_pretrained.knows_chatglm = True  # type: ignore[attr-defined]
    factory.from_pretrained = classmethod(from_pretrained)


def _check_local_folder(config: Any, name: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a local ChatGLM-6B folder with a damaged small file; the Auto classes would trip over it.

    Folders of other models are not ours to judge, nor are later generations, which come with code of their own.

    Raises:
        UserError: with file, name and value.
    """
    from ptuning.core.errors import UserError
    from ptuning.core.reading import is_regular, read_bytes, read_json
    from ptuning.data.tokenizer_settings import check_tokenizer_files
    from ptuning.model.config import check_config

    if not isinstance(name, str | os.PathLike) or not os.path.isdir(name):
        return
    folder = Path(name, str(kwargs.get("subfolder") or ""))
    path = folder / "config.json"
    if not is_regular(path):
        return
    try:
        values = read_json(path)
    except UserError:
        with suppress(UserError, OSError):
            if b'"chatglm"' not in read_bytes(path):
                return  # the original finds words for it
        raise
    if values.get("model_type") == config.model_type and not config.later_generation_keys(values):
        check_config(values, str(path))
        check_tokenizer_files(folder)


def _is_chatglm_6b(config: Any, name: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a model is one of ours and no later generation, which has tokenizers of its own."""
    hub = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")
    try:
        values, _ = config.get_config_dict(name, **{key: kwargs[key] for key in hub if key in kwargs})
    except (OSError, ValueError):
        return False  # the original finds words for it
    return values.get("model_type") == config.model_type and not config.later_generation_keys(values)


class _AutoFinder(MetaPathFinder):
    """Finds the modules concerned as everyone else would, and adds a step after their execution."""

    def __init__(self, executed: set[str]) -> None:
        self.executed = executed

    def after(self, name: str) -> None:
        """A module concerned has been executed: register what is complete now."""
        self.executed.add(name)
        for auto, needs in _NEEDS.items():
            if auto not in self.executed or (name != auto and name not in needs):
                continue
            if any(need in sys.modules and need not in self.executed for need in needs):
                continue  # one of ours is on its way: its own end brings us back here
            for need in needs:
                if need not in sys.modules:
                    import_module(need)
            if self.executed.issuperset(needs):
                _register(sys.modules[auto])

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not (name in _NEEDS or name in _OURS):
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    """Executes a module as its own loader does, gives it that loader back, and registers."""

    def __init__(self, loader: Loader, finder: _AutoFinder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.finder.after(module.__name__)
