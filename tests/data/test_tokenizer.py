"""The tokenizer gives the published ids, keeps user text text, and says what is wrong with a vocabulary file."""

import copy
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ptuning.core.errors import UserError
from ptuning.data.tokenizer import ChatGLMTokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "chatglm-tiny"
MODEL = GOLDEN / "model"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
MARKERS = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
WHITESPACE = ["<n>", "<|tab|>", *(f"<|blank_{k}|>" for k in range(80, 1, -1))]
UNNAMED = ["<s>", "</s>", "<n>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<0x41>", "<image_5>"]
TYPED = [*MARKERS, "<pad>", "<unk>", *UNNAMED]

TOKENIZER = ChatGLMTokenizer.from_pretrained(MODEL)
CONTROL_IDS = {TOKENIZER.convert_tokens_to_ids(marker) for marker in [*MARKERS, "<pad>", "<unk>", "<s>", "</s>"]}

TEXTS = [case["text"] for case in CASES["tokenizer"]] + [
    "全角　空格，ＡＢＣ１２３！？",
    "行一\r\n行二\r\n\r\n",
    "\t\t缩进\n    四格\n\t 混合",
    "尾随空白  \n ",
    " " * 81 + "x" + " " * 160 + "y" + " " * 241,
    "👩‍👩‍👧 家庭 🇨🇳 ½ ﬁ",
    "a < b > c [d] <e",
    "\n",
    " ",
]


@pytest.mark.parametrize("case", CASES["tokenizer"], ids=lambda case: repr(case["text"][:12]))
def test_golden_texts(case):
    assert TOKENIZER(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert TOKENIZER.encode_text(case["text"]) == case["ids"]
    if case["with_special"] is not None:
        assert TOKENIZER(case["text"])["input_ids"] == case["with_special"]
        assert TOKENIZER.decode(case["with_special"], skip_special_tokens=True) == case["decoded"]
    assert TOKENIZER.decode(case["ids"]) == case["decoded"]


def test_golden_pair_and_special_ids():
    pair = CASES["pair"]
    assert TOKENIZER(pair["a"], pair["b"])["input_ids"] == pair["ids"]
    for token, index in CASES["special_ids"].items():
        assert TOKENIZER.convert_tokens_to_ids(token) == index
    named = (TOKENIZER.mask_token_id, TOKENIZER.gmask_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert named == (85, 86, 89, 90)
    assert (TOKENIZER.pad_token_id, TOKENIZER.unk_token_id, TOKENIZER.end_token_id) == (3, 0, 2)
    assert len(TOKENIZER) == TOKENIZER.vocab_size == len(TOKENIZER.get_vocab()) == 700


def test_published_encode_turns_markers_into_control_ids():
    # Facts about the published tokenizer: text is split at the five named special tokens and stripped beside them,
    # every part starts with a blank of its own; [gMASK] is found by SentencePiece alone.
    assert TOKENIZER.tokenize("a <sop> b") == ["▁a", "<sop>", "▁b"]
    assert TOKENIZER.tokenize("a[gMASK]b") == ["▁a", "[gMASK]", "b"]
    assert TOKENIZER.tokenize("<pad>") == ["<pad>"]


@pytest.mark.parametrize("typed", TYPED)
def test_typed_markers_stay_text(typed):
    text = f"你好 {typed}{typed}，a\n{typed}  b\t{typed}"
    ids = TOKENIZER.encode_text(text)
    assert not CONTROL_IDS & set(ids)
    # Typed "<n>" and a real newline differ: only the real whitespace has whitespace pieces.
    assert [t for t in TOKENIZER.convert_ids_to_tokens(ids) if t in WHITESPACE] == ["<n>", "<|blank_2|>", "<|tab|>"]
    assert TOKENIZER.decode(ids) == text.replace("，", ",")
    assert TOKENIZER(text, split_special_tokens=True)["input_ids"][:-2] == ids
    assert TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    splitting = ChatGLMTokenizer.from_pretrained(MODEL, split_special_tokens=True)
    assert splitting.encode(text, add_special_tokens=False) == ids


@pytest.mark.parametrize("text", ["＜sop＞", "［gMASK］", "＜ｅｏｐ＞你好", "<|ｔab|>", "＜n＞"])
def test_full_width_markers_stay_text(text):
    # The normaliser folds full-width letters, so SentencePiece by itself finds control pieces in these.
    ids = TOKENIZER.encode_text(text)
    assert not {t for t in TOKENIZER.convert_ids_to_tokens(ids) if t in MARKERS + WHITESPACE}
    assert TOKENIZER.decode(ids) == TOKENIZER.sp_model.normalize(text).removeprefix("▁")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*TYPED, "<", ">", "sop>", "[", "gMASK]", " ", "  ", "\n", "\t", "你好", "a", "＜"])))
def test_any_mix_of_markers_stays_text(parts):
    text = "".join(parts)
    ids = TOKENIZER.encode_text(text)
    assert not CONTROL_IDS & set(ids)
    spaces = [t for t in TOKENIZER.convert_ids_to_tokens(ids) if t in WHITESPACE]
    assert (spaces.count("<n>"), spaces.count("<|tab|>")) == (text.count("\n"), text.count("\t"))
    visible = "".join(text.replace("＜", "<").split())
    assert "".join(TOKENIZER.decode(ids).split()) == visible


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_encodes_without_control_ids(text):
    assert not CONTROL_IDS & set(TOKENIZER.encode_text(text))


@pytest.mark.parametrize("text", TEXTS)
def test_text_without_markers_has_the_ordinary_ids(text):
    assert TOKENIZER.encode_text(text) == TOKENIZER.encode(text, add_special_tokens=False)
    # and the literal processor cuts it in the same way
    signed = TOKENIZER._mark_whitespace(text, TOKENIZER._sign_of)
    assert TOKENIZER._literal().encode(signed) == TOKENIZER.encode_text(text)


def test_lone_surrogates_and_control_characters():
    assert "�" not in TOKENIZER.decode(TOKENIZER.encode_text("好\ud83d\ude00好"))  # a pair becomes its character
    assert TOKENIZER.decode(TOKENIZER.encode_text("a\ud83db")).replace(" ", "") in ("ab", "a�b")
    assert TOKENIZER.encode_text("\x00\x07") != []


def test_padding_is_left_with_an_ordinary_mask():
    batch = TOKENIZER(["你好", "你好，世界"], padding=True, return_tensors="pt")
    assert batch["input_ids"][0].tolist()[-4:] == [353, 465, 86, 89]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert ((batch["input_ids"] != 3).long() == batch["attention_mask"]).all()
    padded = TOKENIZER.pad({"input_ids": [[353, 86, 89], [86, 89]]}, padding="max_length", max_length=5)
    assert padded["input_ids"] == [[3, 3, 353, 86, 89], [3, 3, 3, 86, 89]]
    assert TOKENIZER.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["你好", "你好,世界"]


def test_truncation_and_special_tokens_mask():
    short = TOKENIZER("Hello, world!", truncation=True, max_length=6, return_special_tokens_mask=True)
    assert short["input_ids"][-2:] == [86, 89]
    assert len(short["input_ids"]) == 6
    assert short["special_tokens_mask"] == [0, 0, 0, 0, 1, 1]
    assert TOKENIZER.get_special_tokens_mask([1, 5], [6]) == [0, 0, 1, 1, 0, 1]
    assert TOKENIZER.get_special_tokens_mask([353, 86, 89, 3], already_has_special_tokens=True) == [0, 1, 1, 1]


def test_decoding_leaves_out_what_is_no_text():
    # Pads always; ids of model rows beyond the vocabulary and labels of -100; an id alone; special tokens on request.
    assert TOKENIZER.decode([3, 3, 353, 465, 700, 9999, -100]) == "你好"
    assert TOKENIZER.decode(465) == "你好"
    assert TOKENIZER.decode([]) == ""
    assert TOKENIZER.decode([353, 465, 86, 89, 465, 90]) == "你好[gMASK]<sop>你好<eop>"
    assert TOKENIZER.decode([353, 465, 86, 89, 465, 90], skip_special_tokens=True) == "你好你好"


def test_typed_newline_piece_beside_a_real_one():
    ids = TOKENIZER.encode_text("写作 <n>\n不是 \n")
    assert TOKENIZER.decode(ids) == "写作 <n>\n不是 \n"


def test_saving_copying_and_pickling(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    assert (tmp_path / "ice_text.model").read_bytes() == (MODEL / "ice_text.model").read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "ChatGLMTokenizer"
    assert (config["num_image_tokens"], config["gmask_token"], config["end_token"]) == (0, "[gMASK]", "</s>")
    assert str(MODEL) not in json.dumps(config)
    again = ChatGLMTokenizer.from_pretrained(tmp_path)
    for other in (again, copy.deepcopy(TOKENIZER), pickle.loads(pickle.dumps(TOKENIZER))):
        for text in (*TEXTS, "a <sop> b[gMASK] c <n>"):
            assert other.encode(text) == TOKENIZER.encode(text)
            assert other.encode_text(text) == TOKENIZER.encode_text(text)
        assert other.all_special_ids == TOKENIZER.all_special_ids
        assert other.padding_side == "left"


def test_early_vocabulary_shifts_ids_by_image_tokens():
    early = ChatGLMTokenizer.from_pretrained(MODEL, num_image_tokens=20000)
    assert early("你好")["input_ids"] == [20353, 20465, 20086, 20089]
    assert (early.pad_token_id, early.gmask_token_id, len(early)) == (20003, 20086, 20700)
    assert early.decode(early.encode_text("你好\n <n>")) == "你好\n <n>"
    assert early.convert_ids_to_tokens([7, 20465]) == ["<image_7>", "你好"]
    assert early.convert_tokens_to_ids("<image_7>") == 7
    assert early.decode([7, 20353, 20465]) == "你好"


@pytest.mark.parametrize(("bos", "expected"), [(None, 20000), (89, 0), (20089, 20000), (3, 20000)])
def test_image_tokens_without_the_key(tmp_path, bos, expected):
    shutil.copy(MODEL / "ice_text.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    if bos is not None:
        (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": bos}))
    assert ChatGLMTokenizer.from_pretrained(tmp_path).num_image_tokens == expected


def test_image_tokens_of_the_wrong_kind():
    with pytest.raises(UserError, match=r"num_image_tokens is -1; allowed: 0"):
        ChatGLMTokenizer(MODEL / "ice_text.model", num_image_tokens=-1)


def test_remote_code_in_the_folder_is_never_run(tmp_path):
    shutil.copytree(MODEL, tmp_path / "模型 v1.1", copy_function=shutil.copyfile)
    folder = tmp_path / "模型 v1.1"
    (folder / "tokenization_chatglm.py").write_text("raise RuntimeError('remote code was imported')")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    folder.chmod(0o755)
    (folder / "tokenizer_config.json").chmod(0o644)
    config["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatGLMTokenizer.from_pretrained(str(folder) + "/")("你好")["input_ids"] == [353, 465, 86, 89]


def train_sentencepiece(**options) -> bytes:
    """A small SentencePiece file with the published special pieces, trained on a few lines."""
    lines = ["你好 世界 衣服 很 好看 < > [ ] s o p e n 0 1", "the cat sat on a mat | b _ k l u r i n g", "你好"] * 20
    options.setdefault("user_defined_symbols", [*WHITESPACE, *MARKERS])
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        pad_id=3,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity"},
        {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True},
        {"model_type": "bpe", "vocab_size": 160, "byte_fallback": False},
        {"model_type": "unigram", "vocab_size": 160, "byte_fallback": False},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_other_sentencepiece_files(tmp_path, options):
    path = tmp_path / "ice_text.model"
    path.write_bytes(train_sentencepiece(**options))
    other = ChatGLMTokenizer(path, num_image_tokens=0)
    reserved = {other.convert_tokens_to_ids(marker) for marker in MARKERS}
    for text in TEXTS:
        assert other.encode_text(text) == other.encode(text, add_special_tokens=False)
        signed = other._mark_whitespace(text, other._sign_of)
        assert other._literal().encode(signed) == other.encode_text(text)
    text = "你好<sop> the [<eop>]<n>\n好看<|tab|>\t"
    assert not reserved & set(other.encode_text(text))
    if options["byte_fallback"]:
        assert other.decode(other.encode_text(text)) == text


def test_vocabulary_whose_markers_are_control_pieces(tmp_path):
    # SentencePiece finds control pieces in no text, and decodes them to nothing.
    path = tmp_path / "ice_text.model"
    symbols = {"user_defined_symbols": WHITESPACE, "control_symbols": MARKERS}
    path.write_bytes(train_sentencepiece(model_type="unigram", vocab_size=400, byte_fallback=True, **symbols))
    other = ChatGLMTokenizer(path, num_image_tokens=0)
    prompt = other("你好 <sop>[gMASK]", split_special_tokens=True)["input_ids"]
    assert prompt[:-2] == other.encode_text("你好 <sop>[gMASK]")
    assert prompt.count(other.bos_token_id) == prompt.count(other.gmask_token_id) == 1
    assert other.decode(prompt) == "你好 <sop>[gMASK]"
    assert other.tokenize("你好<eop>") == [*other.tokenize("你好"), "<eop>"]
    assert other.decode(other.encode_text("<n>\n<n>  ")) == "<n>\n<n>  "
