"""The tokenizer of ChatGLM-6B as a transformers class: SentencePiece pieces, whitespace pieces, [gMASK] and <sop>.

Source of the conventions: the published ``ice_text.model`` and ``tokenizer_config.json`` of ChatGLM-6B.

- Newline, tab and runs of 2 to 80 blanks have pieces of their own (``<n>``, ``<|tab|>``, ``<|blank_k|>``).
- Ids are SentencePiece ids + ``num_image_tokens`` (0, or 20000 in the early release with 150528 rows).
- One text is ``ids [gMASK] <sop>``, a pair ``a [gMASK] <sop> b <eop>``; padding stands on the left.
"""

import os
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, PreTrainedTokenizer

from ptuning.core.errors import UserError
from ptuning.core.reading import guarded, is_regular, read_json
from ptuning.data.prompts import RoundsPrompt
from ptuning.data.protocols import PromptForm
from ptuning.data.sentencepiece_file import literal_processor, load_processor
from ptuning.data.tokenizer_settings import CONFIG_FILE, MAX_IMAGE_TOKENS, check_image_tokens, check_tokenizer_files

EARLY_IMAGE_TOKENS = 20000  # the published default where a tokenizer_config.json says nothing
MAX_BLANKS = 80
_BLANK_RUN = re.compile(" {2,}")
_MARKER = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
_IMAGE_TOKEN = re.compile(r"<image_(\d+)>")
# Unicode noncharacters, which no text has a use for: they stand for the whitespace pieces in the literal processor.
_SIGN = re.compile("\ufdd0[0-9]+\ufdd1")
_WHITESPACE_PIECE = re.compile(r"<n>|<\|tab\|>|<\|blank_[0-9]+\|>")


class ChatGLMTokenizer(PreTrainedTokenizer):
    """SentencePiece tokenizer of ChatGLM-6B.

    ``vocab_file``: path of ``ice_text.model``. ``num_image_tokens``: how many image ids come before the text ids; None
    asks a ``config.json`` beside the vocabulary (its ``bos_token_id`` tells), else 20000 as published. ``processor``: the
    vocabulary, where it was read already. The special tokens, ``do_lower_case`` and ``remove_space`` are those of the
    published ``tokenizer_config.json``.

    ``split_special_tokens=True`` (constructor or call) and :meth:`encode_text` treat text as text: whatever a user
    typed, also ``<eop>``, ``<n>`` or a full-width ``＜sop＞``, comes out as ordinary pieces that decode to the same
    visible characters, and never as a control id. Text without such strings gets the same ids either way.

    Raises :class:`UserError` for a vocabulary file that is missing, a Git LFS pointer, cut short, or of another model.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}  # noqa: RUF012 - the base class's form
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    prompt_form: PromptForm = RoundsPrompt()

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        do_lower_case: bool = False,
        remove_space: bool = False,
        bos_token: str | AddedToken = "<sop>",
        eos_token: str | AddedToken = "<eop>",
        end_token: str | AddedToken = "</s>",
        mask_token: str | AddedToken = "[MASK]",
        gmask_token: str | AddedToken = "[gMASK]",
        pad_token: str | AddedToken = "<pad>",
        unk_token: str | AddedToken = "<unk>",
        num_image_tokens: int | None = None,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = True,
        processor: SentencePieceProcessor | None = None,
        **kwargs: Any,
    ) -> None:
        # from_pretrained hands the tokens that transformers has no name for over in a dictionary (which one depends on
        # its version). They must not become "special" there: the published tokenizer never splits text at them.
        unnamed = {"gmask_token": gmask_token, "end_token": end_token}
        for key in ("extra_special_tokens", "model_specific_special_tokens"):
            if isinstance(kwargs.get(key), dict):
                others = kwargs.pop(key)
                unnamed.update({name: others[name] for name in unnamed if name in others})
                if rest := {name: token for name, token in others.items() if name not in unnamed}:
                    kwargs[key] = rest
        self.gmask_token, self.end_token = str(unnamed["gmask_token"]), str(unnamed["end_token"])
        self.vocab_file = vocab_file
        self.do_lower_case = do_lower_case
        self.remove_space = remove_space
        self.sp_model = load_processor(vocab_file) if processor is None else processor
        self._literal_model: Any = None
        named = {
            "bos_token": str(bos_token),
            "eos_token": str(eos_token),
            "mask_token": str(mask_token),
            "pad_token": str(pad_token),
            "unk_token": str(unk_token),
        }
        self._read_pieces([*named.values(), self.gmask_token])
        self.num_image_tokens = self._choose_num_image_tokens(num_image_tokens, named["bos_token"])
        super().__init__(
            vocab_file=vocab_file,
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            num_image_tokens=self.num_image_tokens,
            padding_side=padding_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            added_tokens_decoder=self._special_tokens(named.values(), kwargs.pop("added_tokens_decoder", None)),
            **named,
            **kwargs,
        )
        self.init_kwargs.update(gmask_token=self.gmask_token, end_token=self.end_token)  # so that they are saved

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As transformers', with every damaged file of a local folder refused by name."""
        name = pretrained_model_name_or_path
        if not os.path.isdir(name):
            return super().from_pretrained(name, *args, **kwargs)
        folder = Path(name, kwargs.get("subfolder") or "")
        check_tokenizer_files(folder)
        with guarded(folder / CONFIG_FILE, "tokenizer settings", "take it from the model's page"):
            return super().from_pretrained(name, *args, **kwargs)

    def _read_pieces(self, required: list[str]) -> None:
        """Index the vocabulary; every string of ``required`` must be a piece of it."""
        sp = self.sp_model
        pieces = sp.id_to_piece(list(range(sp.get_piece_size())))
        known = set(pieces)
        missing = [token for token in required if token not in known]
        if missing:
            raise UserError(
                f"{self.vocab_file}: not the vocabulary of ChatGLM-6B, it has no piece {', '.join(missing)} (it has "
                f"{len(pieces)} pieces); use the ice_text.model that belongs to the weights (ChatGLM2 and later have "
                "other vocabularies and are not supported)"
            )
        self._pieces: list[str] = pieces
        self._longest_piece = max(map(len, pieces))
        names = {"\n": "<n>", "\t": "<|tab|>"} | {" " * k: f"<|blank_{k}|>" for k in range(2, MAX_BLANKS + 1)}
        self._piece_of = {space: name for space, name in names.items() if name in known}
        self._sign_of = {space: f"\ufdd0{i}\ufdd1" for i, space in enumerate(self._piece_of)}
        self._space_of = {name: space for names in (self._piece_of, self._sign_of) for space, name in names.items()}
        # Pieces of the control kind, and the whitespace ones: they are the only ones written like this with score 0.
        self._reserved_ids = frozenset(
            i
            for i, piece in enumerate(pieces)
            if _MARKER.fullmatch(piece) and sp.get_score(i) == 0.0 and not (sp.is_byte(i) or sp.is_unknown(i))
        )

    def _choose_num_image_tokens(self, count: int | None, bos_token: str) -> int:
        if count is None:
            return image_tokens(self.sp_model, bos_token, _bos_id_of_config_beside(self.vocab_file))
        check_image_tokens(count, CONFIG_FILE)
        return count

    def _special_tokens(self, named: Any, added_tokens: dict[int, AddedToken] | None) -> dict[int, AddedToken]:
        """Special tokens by id. As published, ``encode`` drops the whitespace beside one that stands in a text."""
        decoder = {}
        for token in named:
            added = AddedToken(token, lstrip=True, rstrip=True, normalized=False, special=True)
            decoder[self._convert_token_to_id(token)] = added
        return decoder | (added_tokens or {})

    # --- sizes and single tokens

    @property
    def vocab_size(self) -> int:
        """Number of ids: image tokens and pieces. The model may have more rows (padding of the matrix)."""
        return self.num_image_tokens + len(self._pieces)

    @property
    def max_characters(self) -> int:
        """Characters of a text that one id stands for, at most: a run of blanks, or the longest piece. (A text may have
        more to an id only where the normaliser drops characters that nobody sees.)"""
        return max(MAX_BLANKS, self._longest_piece)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, with the image tokens ``<image_i>`` and the added tokens."""
        vocab = {f"<image_{i}>": i for i in range(self.num_image_tokens)}
        vocab.update((piece, i + self.num_image_tokens) for i, piece in enumerate(self._pieces))
        vocab.update(self.added_tokens_encoder)
        return vocab

    @property
    def gmask_token_id(self) -> int:
        """Id of ``[gMASK]``, which ends every prompt together with ``<sop>``."""
        return self._convert_token_to_id(self.gmask_token)

    @property
    def end_token_id(self) -> int:
        """Id of ``</s>``, which ChatGLM-6B does not use for chat."""
        return self._convert_token_to_id(self.end_token)

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that ``skip_special_tokens=True`` leaves out; other than the published tokenizer's with ``[gMASK]``."""
        return [*super().all_special_ids, self.gmask_token_id]

    def _convert_token_to_id(self, token: str) -> int:
        image = _IMAGE_TOKEN.fullmatch(token)
        if image and int(image[1]) < self.num_image_tokens:
            return int(image[1])
        return self.sp_model.piece_to_id(token) + self.num_image_tokens

    def _convert_id_to_token(self, index: int) -> str:
        if 0 <= index < self.num_image_tokens:
            return f"<image_{index}>"
        piece = index - self.num_image_tokens
        # The model has more rows than there are pieces; an id from there (or a label's -100) stands for no text.
        return self._pieces[piece] if 0 <= piece < len(self._pieces) else ""

    # --- text to ids

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Pieces of ``text``; with ``split_special_tokens=True`` control strings in it come out as ordinary pieces."""
        if kwargs.pop("split_special_tokens", self.split_special_tokens):
            return [self._pieces[i] for i in self._literal_ids(text)]
        return super().tokenize(text, split_special_tokens=False, **kwargs)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a user's text: no control id whatever stands in it, nothing added at either end."""
        return [i + self.num_image_tokens for i in self._literal_ids(text)]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._pieces[i] for i in self.sp_model.encode(self._mark_whitespace(text, self._piece_of))]

    def _literal_ids(self, text: str) -> list[int]:
        """SentencePiece ids of ``text`` in which the only reserved ids are those of its whitespace."""
        ids = self.sp_model.encode(self._mark_whitespace(text, self._piece_of))
        reserved = [self._pieces[i] for i in ids if i in self._reserved_ids]
        if not reserved:
            return ids
        # Most texts end here: the reserved pieces are those that were put in for whitespace. Otherwise a marker was
        # typed, perhaps in full-width letters that the normaliser folds, and the literal processor is needed.
        signed = self._mark_whitespace(text, self._sign_of)
        spaces = [self._space_of[sign] for sign in _SIGN.findall(signed) if sign in self._space_of]
        if reserved == [self._piece_of[space] for space in spaces]:
            return ids
        return self._literal().encode(signed)

    def _mark_whitespace(self, text: str, marks: dict[str, str]) -> str:
        """``text`` with newlines, tabs and runs of blanks (longest first, from the left) replaced by ``marks``."""
        if self.remove_space:
            text = " ".join(text.split())
        if self.do_lower_case:
            text = text.lower()
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, as broken JSON escapes give; pairs become their character
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = text.replace("\n", marks.get("\n", "\n")).replace("\t", marks.get("\t", "\t"))

        def mark_run(run: re.Match[str]) -> str:
            whole, rest = divmod(len(run[0]), MAX_BLANKS)
            longest, last = " " * MAX_BLANKS, " " * rest
            return marks.get(longest, longest) * whole + marks.get(last, last)

        return _BLANK_RUN.sub(mark_run, text)

    def _literal(self) -> Any:
        """The processor that matches no marker in text and a sign for each whitespace; made when first needed."""
        if self._literal_model is None:
            signs = {self.sp_model.piece_to_id(self._piece_of[space]): sign for space, sign in self._sign_of.items()}
            self._literal_model = literal_processor(self.sp_model, signs, self._reserved_ids - signs.keys())
        return self._literal_model

    # --- special tokens around ids

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``a [gMASK] <sop>``, or with a second sequence ``a [gMASK] <sop> b <eop>``."""
        ids = [*token_ids_0, self.gmask_token_id, self.bos_token_id]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for every id that :meth:`build_inputs_with_special_tokens` adds (or that is special), else 0."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        mask = [0] * len(token_ids_0) + [1, 1]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]

    # --- ids to text

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        pad = self.pad_token_id
        return super()._decode(
            [i for i in ids if i != pad],
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of a row of tokens; whitespace pieces become whitespace, image tokens vanish."""
        tokens = [token for token in tokens if token and not _IMAGE_TOKEN.fullmatch(token)]
        if not tokens:
            return ""
        text = self.sp_model.decode_pieces(tokens)
        marks = _WHITESPACE_PIECE
        if marks.findall(text) != [token for token in tokens if marks.fullmatch(token)]:
            # Somebody typed "<n>": its ordinary pieces spell the same string as the piece for a newline.
            sign_of = {self._piece_of[space]: sign for space, sign in self._sign_of.items()}
            text = self._literal().decode_pieces([sign_of.get(token, token) for token in tokens])
            marks = _SIGN
        return marks.sub(lambda mark: self._space_of.get(mark[0], mark[0]), text)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the SentencePiece file into ``save_directory``; returns its path."""
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = Path(save_directory) / name
        path.write_bytes(self.sp_model.serialized_model_proto())
        return (str(path),)


def image_tokens(processor: SentencePieceProcessor, bos_token: str, bos_id: int | None) -> int:
    """How many image ids come before the text ids, where no ``tokenizer_config.json`` says so.

    Both releases ship the same SentencePiece file, so only the model's configuration can tell them apart.

    Args:
        processor: the vocabulary.
        bos_token: that begins a reply.
        bos_id: its id in the model's configuration; None: unknown.
    """
    offset = -1 if bos_id is None else bos_id - processor.piece_to_id(bos_token)
    return offset if 0 <= offset <= MAX_IMAGE_TOKENS else EARLY_IMAGE_TOKENS


def _bos_id_of_config_beside(vocab_file: str | Path | None) -> int | None:
    """``bos_token_id`` of a ``config.json`` in the folder of ``vocab_file``, if there is a readable one."""
    path = Path(str(vocab_file)).parent / "config.json"
    try:
        bos_id = read_json(path).get("bos_token_id") if is_regular(path) else None
    except UserError:  # whoever loads the model is told what is wrong with it
        return None
    return bos_id if isinstance(bos_id, int) else None
