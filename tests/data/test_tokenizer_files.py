"""A tokenizer made of files that were read is the one that transformers makes of the folder."""

import pytest
from checkpoints import edit_json, make_checkpoint, write_json

import ptuning
from ptuning.data.tokenizer import ChatGLMTokenizer

TEXTS = ["你好，世界", "<sop>a <extra> b</s>", "  两格\n\t<eop>[gMASK]", "<added>x<x1>", "ABC <n> [sMASK]"]


def token(content, **switches):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | switches


VARIANTS = {
    "as published": {},
    "no settings": {"tokenizer_config.json": None},
    "no settings, early release": {"tokenizer_config.json": None, "early": True},
    "other values": {"tokenizer_config.json": {
        "do_lower_case": True, "remove_space": True, "model_max_length": 77, "padding_side": "right",
        "clean_up_tokenization_spaces": False, "truncation_side": "left", "split_special_tokens": True, "note": [1],
    }},
    "tokens": {"tokenizer_config.json": {
        "additional_special_tokens": ["<extra>", "[sMASK]"], "sep_token": "[sMASK]", "some_token": "<x1>",
    }},
    "tokens of newer files": {"tokenizer_config.json": {"extra_special_tokens": {"first_token": "<x1>"}}},
    "tokens as objects": {"tokenizer_config.json": {
        "cls_token": token("[sMASK]", lstrip=True) | {"__type": "AddedToken"}, "extra_special_tokens": ["<extra>"],
    }},
    "a decoder": {"tokenizer_config.json": {
        "added_tokens_decoder": {"700": token("<added>", special=True), "89": token("<sop>", special=True)},
    }, "special_tokens_map.json": {"bos_token": "<ENC>"}},
    "a map": {"special_tokens_map.json": {
        "bos_token": token("<sop>"), "pad_token": "<pad>", "additional_special_tokens": ["<extra>"],
        "extra_special_tokens": [token("<x1>"), "<extra>"],
    }},
    "a map of names": {"special_tokens_map.json": {"extra_special_tokens": {"first_token": "<x1>"}}},
    "added tokens": {
        "added_tokens.json": {"<added>": 700, "<x1>": 701}, "tokenizer_config.json": {"extra_special_tokens": ["<x1>"]},
    },
    "a template": {"chat_template.jinja": "{{ messages }}"},
}  # fmt: skip


def folder_of(tmp_path, variant):
    early = variant.get("early", False)
    folder = make_checkpoint(tmp_path / "m", early=early)
    for name, content in variant.items():
        if content is None:
            (folder / name).unlink()
        elif name == "tokenizer_config.json":
            edit_json(folder / name, **content)
        elif name.endswith(".json"):
            write_json(folder / name, content)
        elif name != "early":
            (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_both_ways_make_the_same_tokenizer(tmp_path, name, monkeypatch):
    folder = folder_of(tmp_path, VARIANTS[name])
    theirs = ChatGLMTokenizer.from_pretrained(folder)
    if name != "a template":
        monkeypatch.setattr(ChatGLMTokenizer, "from_pretrained", lambda *_: pytest.fail("transformers read the folder"))
    ours = ptuning.load_tokenizer(folder)
    assert ours.init_kwargs == theirs.init_kwargs
    for key, value in vars(theirs).items():
        if key not in ("sp_model", "_literal_model", "tokens_trie"):
            assert vars(ours)[key] == value, key
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
    assert ours.special_tokens_map == theirs.special_tokens_map
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids
        assert ours.encode_text(text) == theirs.encode_text(text)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    for made, place in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        made.save_pretrained(place)
    saved = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == saved
