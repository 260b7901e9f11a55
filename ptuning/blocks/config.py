"""The shape of a ChatGLM-6B model, as its published ``config.json`` states it."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ptuning.plain.errors import UserError

# Keys that only later generations carry; they share the model_type "chatglm" (SPEC: names and sizes).
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
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
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

    @staticmethod
    def later_generation_keys(values: dict[str, Any]) -> list[str]:
        """Those keys of a parsed ``config.json`` that only ChatGLM2 and later have."""
        return [key for key in _LATER_GENERATION_KEYS if key in values]

    @property
    def head_dim(self) -> int:
        """H, the size of one attention head."""
        return self.hidden_size // self.num_attention_heads


def check_config(values: dict[str, Any], where: str) -> None:
    """Refuse a ``config.json`` that does not describe a ChatGLM-6B model, before any weight is read.

    Args:
        values: the parsed ``config.json``.
        where: its path, for the message.

    Raises:
        UserError: another architecture, a later ChatGLM generation, or sizes that do not fit together.
    """
    later = ChatGLMConfig.later_generation_keys(values)
    if later:
        raise UserError(
            f"{where} describes a ChatGLM2, ChatGLM3 or GLM-4 checkpoint (it has {', '.join(later)}); "
            "ptuning runs the first generation, ChatGLM-6B. Give a chatglm-6b folder, or tune that model with another tool"
        )
    model_type = values.get("model_type", "chatglm")
    if model_type != "chatglm":
        raise UserError(f"{where} has model_type {model_type!r}; ptuning runs ChatGLM-6B, model_type 'chatglm'")
    if not values.get("position_encoding_2d", True):
        raise UserError(f"{where} has position_encoding_2d false; only the published 2-D positions are supported")
    bits = values.get("quantization_bit") or 0
    if bits not in (0, 4, 8):
        raise UserError(f"{where} has quantization_bit {bits!r}; allowed are 0 (float), 4 and 8")
    _check_whole_numbers(values, where)
    hidden, heads = values.get("hidden_size", 4096), values.get("num_attention_heads", 32)
    if heads < 1 or hidden % heads or (hidden // heads) % 4:
        raise UserError(
            f"{where}: hidden_size {hidden} over num_attention_heads {heads} must give a head size that is a "
            "multiple of 4 (two rotary halves of two halves each)"
        )


def _check_whole_numbers(values: dict[str, Any], where: str) -> None:
    """Refuse sizes and ids that are no whole numbers, or too small."""
    sizes = (
        "vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size", "max_sequence_length",
        "pre_seq_len",
    )
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
    for key, least in [*((key, 1) for key in sizes), *((key, 0) for key in ids)]:
        value = values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(f"{where} has {key} {value!r}; allowed is a whole number from {least} on")
