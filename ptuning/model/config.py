"""The shape of a ChatGLM-6B model, as its published ``config.json`` states it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from ptuning.core.choices import QuantizationBits, values_of
from ptuning.core.errors import UserError
from ptuning.core.reading import check_kinds, guarded, is_regular, listed, read_json, shortened

logger = logging.getLogger(__name__)

# Keys that only later generations carry; they share the model_type "chatglm".
_LATER_GENERATION_KEYS = ("multi_query_attention", "ffn_hidden_size", "kv_channels")


class ChatGLMConfig(PreTrainedConfig):
    """Configuration of a ChatGLM-6B backbone; the defaults are the 6B model's.

    The names are those of the published ``config.json`` (``THUDM/chatglm-6b``). ``mask_token_id`` and ``gmask_token_id``
    are missing from early files: both vocabularies place them 4 and 3 ids before ``<sop>``, so that is the default.

    Attributes:
        inner_hidden_size: width of the MLP.
        pre_seq_len: number of prefix slots, or None for no prefix.
        prefix_projection: whether the prefix encoder has its two-layer projection.
        quantization_bit: 0 (float), 4 or 8: the storage of the four linears of every block.
        quantization_embeddings: whether ``word_embeddings`` and ``lm_head`` are quantised too (the INT4-QE model).
        family: name of the family that its models belong to; see :func:`ptuning.model.families.family_of`.
    """

    model_type = "chatglm"
    family: ClassVar[str] = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        vocab_size: int = 130528,
        hidden_size: int = 4096,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        inner_hidden_size: int | None = None,
        layernorm_epsilon: float = 1e-5,
        max_sequence_length: int = 2048,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        mask_token_id: int | None = None,
        gmask_token_id: int | None = None,
        pad_token_id: int | None = None,
        position_encoding_2d: bool = True,
        use_cache: bool = True,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        quantization_bit: int | None = 0,
        quantization_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        early = vocab_size == 150528  # the first release: every id is shifted by 20000 image tokens
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.inner_hidden_size = 4 * hidden_size if inner_hidden_size is None else inner_hidden_size
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.position_encoding_2d = position_encoding_2d
        self.use_cache = use_cache
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.quantization_bit = quantization_bit or 0
        self.quantization_embeddings = quantization_embeddings
        bos = bos_token_id if bos_token_id is not None else (150004 if early else 130004)
        self.mask_token_id = bos - 4 if mask_token_id is None else mask_token_id
        self.gmask_token_id = bos - 3 if gmask_token_id is None else gmask_token_id
        kwargs.setdefault("tie_word_embeddings", False)
        kwargs |= {
            "bos_token_id": bos,
            "eos_token_id": bos + 1 if eos_token_id is None else eos_token_id,
            "pad_token_id": (20003 if early else 3) if pad_token_id is None else pad_token_id,
        }
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', with a damaged ``config.json`` of a local folder refused by name."""
        name = pretrained_model_name_or_path
        path = Path(name, str(kwargs.get("subfolder") or ""), "config.json")
        if os.path.isdir(name) and is_regular(path):
            read_json(path)
        return super().get_config_dict(name, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """The configuration that a parsed ``config.json`` describes; the Auto classes come through here as well.

        Only what ChatGLM-6B has a use for reaches transformers, which trips over its own keys in a file of another
        version. A later generation's file passes as it is: its own tokenizer code may want it, and our model refuses it.

        Args:
            config_dict: the parsed file, or a configuration's ``to_dict()``.
            kwargs: as transformers': ``return_unused_kwargs`` and values that replace the file's.

        Raises:
            UserError: see :func:`check_config`.
        """
        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or config_dict.get("name_or_path")
        where = f"{os.fspath(name)}/config.json" if isinstance(name, str | os.PathLike) and name else "config.json"
        later = cls.later_generation_keys(config_dict)
        values = config_dict if later else check_config(config_dict, where)
        with guarded(where, "configuration", "take it from the model's page"):
            return super().from_dict(values, **kwargs)  # type: ignore[no-any-return]

    @staticmethod
    def later_generation_keys(values: Mapping[str, Any]) -> list[str]:
        """Those keys of a parsed ``config.json`` that only ChatGLM2 and later have."""
        return [key for key in _LATER_GENERATION_KEYS if key in values]

    @property
    def head_dim(self) -> int:
        """H, the size of one attention head."""
        return self.hidden_size // self.num_attention_heads


# The largest value of a size. Far beyond every ChatGLM-6B, and small enough that their products are no trouble.
_SIZES = {
    "vocab_size": 2**24, "hidden_size": 2**17, "num_layers": 1000, "num_attention_heads": 2**14,
    "inner_hidden_size": 2**20, "max_sequence_length": 2**24, "pre_seq_len": 2**14,
}  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
_MAY_BE_NULL = ("inner_hidden_size", "pre_seq_len", *_IDS)
_SWITCHES = ("use_cache", "prefix_projection", "quantization_embeddings", "position_encoding_2d", "tie_word_embeddings")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Keys of transformers that would make another model of it; a null, false or empty value says what is so anyway.
_CHANGE_THE_MODEL = (
    "rope_scaling", "rope_parameters", "pruned_heads", "is_encoder_decoder", "add_cross_attention", "quantization_config",
    "tie_word_embeddings", "per_layer_config", "output_attentions",
)  # fmt: skip
_ABOUT_THE_FILE: dict[str, tuple[type, ...]] = {
    "architectures": (list,), "auto_map": (dict,), "transformers_version": (str,), "_name_or_path": (str,),
    "tokenizer_class": (str,),
}  # fmt: skip


def check_config(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Refuse a ``config.json`` that does not describe a ChatGLM-6B model, before any weight is read.

    Args:
        values: the parsed ``config.json``.
        where: its path, for the message.

    Returns:
        the values that mean something for ChatGLM-6B, each of its type and in its range, under their published names.

    Raises:
        UserError: another architecture, a later ChatGLM generation, a value of another type, or sizes that do not fit
            together.
    """
    later = [key for key in _LATER_GENERATION_KEYS if key in values]
    if later:
        raise UserError(
            f"{where} describes a ChatGLM2, ChatGLM3 or GLM-4 checkpoint (it has {', '.join(later)}); "
            "ptuning runs the first generation, ChatGLM-6B. Give a chatglm-6b folder, or tune that model with another tool"
        )
    model_type = values.get("model_type", "chatglm")
    if model_type != "chatglm":
        raise UserError(
            f"{where} has model_type {shortened(repr(model_type), 60)}; ptuning runs ChatGLM-6B, model_type 'chatglm'"
        )
    known = _known_values(values, where)
    if not known.get("position_encoding_2d", True):
        raise UserError(f"{where} has position_encoding_2d false; only the published 2-D positions are supported")
    _check_whole_numbers(known, where)
    epsilon = known.get("layernorm_epsilon", 1e-5)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise UserError(
            f"{where} has layernorm_epsilon {shortened(repr(epsilon), 60)}; allowed is a number between 0 and 1 (1e-05)"
        )
    hidden, heads = known.get("hidden_size", 4096), known.get("num_attention_heads", 32)
    if hidden % heads or (hidden // heads) % 4:
        raise UserError(
            f"{where}: hidden_size {hidden} over num_attention_heads {heads} must give a head size that is a "
            "multiple of 4 (two rotary halves of two halves each)"
        )
    return known


def _known_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values that mean something here, by their published names; others that change the model are refused."""
    values = dict(values)
    for theirs, ours in ChatGLMConfig.attribute_map.items():
        if theirs in values:
            value = values.pop(theirs)
            if values.setdefault(ours, value) != value:
                raise UserError(f"{where} has {ours} {shortened(values[ours], 60)} and {theirs} {shortened(value, 60)}")
    for key in _CHANGE_THE_MODEL:
        if values.get(key) and not _is_default_rope(values[key]):
            raise UserError(
                f"{where} has {key} {shortened(repr(values[key]), 60)}, which ptuning's ChatGLM-6B does not have: take the "
                "config.json that was published with the weights"
            )
    own = set(inspect.signature(ChatGLMConfig.__init__).parameters) - {"self", "kwargs"}
    known = {key: value for key, value in values.items() if key in own or key == "tie_word_embeddings"}
    check_kinds(values, _ABOUT_THE_FILE, where)
    classes = (values.get("auto_map") or {}).values()
    named = [name for value in classes for name in (value if isinstance(value, list) else [value])]
    if not all(name is None or isinstance(name, str) for name in named):
        raise UserError(f"{where} has auto_map {shortened(repr(values['auto_map']), 60)}; allowed are names of classes")
    known |= {key: values[key] for key in _ABOUT_THE_FILE if values.get(key) is not None}
    for key in _SWITCHES:
        if key in known and not isinstance(known[key], bool):
            raise UserError(f"{where} has {key} {shortened(repr(known[key]), 60)}; allowed are true and false")
    bits = known.get("quantization_bit")
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or bits not in values_of(QuantizationBits)):
        raise UserError(f"{where} has quantization_bit {shortened(repr(bits), 60)}; allowed are 0 (float), 4 and 8")
    known["dtype"] = _dtype(values, where)
    # A plain value under a name that transformers does not have is a note of whoever made the file.
    others = {key: value for key, value in values.items() if key not in known}
    notes = {
        key: value
        for key, value in others.items()
        if isinstance(value, str | int | float | bool | None) and not _is_of_transformers(key)
    }
    if left := [key for key in others if key not in (*notes, "torch_dtype", "model_type", *_CHANGE_THE_MODEL)]:
        logger.debug("%s: %s mean nothing for ChatGLM-6B", where, listed(left))
    return known | notes


def _is_of_transformers(key: str) -> bool:
    """Whether transformers would do something with a key, other than to keep it."""
    return key.startswith("_") or key.endswith("_implementation") or hasattr(ChatGLMConfig, key)


def _is_default_rope(value: Any) -> bool:
    """Whether rotary settings say what is so anyway."""
    return isinstance(value, dict) and value.get("rope_type", value.get("type")) == "default"


def _dtype(values: Mapping[str, Any], where: str) -> str | None:
    """The dtype of the weights as a name; None where the file leaves it open."""
    key = "dtype" if values.get("dtype") is not None else "torch_dtype"
    value = values.get(key)
    if value is None or value == "auto":
        return None
    name = str(value).removeprefix("torch.")  # a torch.dtype in Python, a name in a file
    if name not in _DTYPES or isinstance(value, list | dict):
        raise UserError(f"{where} has {key} {shortened(repr(value), 60)}; allowed are {', '.join(_DTYPES)}")
    return name


def _check_whole_numbers(values: Mapping[str, Any], where: str) -> None:
    """Refuse sizes and ids that are no whole numbers, too small or too large."""
    rows = values.get("vocab_size", 130528)
    for key, maximum in _SIZES.items():
        _check_whole_number(values, key, 1, maximum, where)
    for key in _IDS:
        _check_whole_number(values, key, 0, rows - 1, where)


def _check_whole_number(values: Mapping[str, Any], key: str, minimum: int, maximum: int, where: str) -> None:
    value = values.get(key)
    if value is None and (key not in values or key in _MAY_BE_NULL):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        shown = shortened(repr(value), 60)
        raise UserError(f"{where} has {key} {shown}; allowed is a whole number from {minimum} to {maximum}")
