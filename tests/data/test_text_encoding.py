"""Encodings of row files: read with the flag, guessed without it."""

import pytest

from ptuning.core.errors import UserError
from ptuning.data.rows import read_rows
from ptuning.data.text_encoding import decode_text, guess_encoding

SIMPLIFIED = '{"content": "类型#裙*颜色#红色", "summary": "这款裙子选用亚麻面料，手感柔软，穿着舒适。"}\n'
TRADITIONAL = '{"content": "類型#裙*顏色#紅色", "summary": "這款裙子選用亞麻面料，手感柔軟，穿著舒適，也很適合日常出門。"}\n'
RARE = '{"content": "㐀𠮷", "summary": "这是我们的字"}\n'  # outside GBK


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        (SIMPLIFIED, "gbk", "GBK"),
        (RARE, "gb18030", "GB18030"),
        (TRADITIONAL, "big5", "BIG5"),
        (SIMPLIFIED, "utf-16", "UTF-16"),
        (SIMPLIFIED, "utf-16-le", "UTF-16LE"),
        (SIMPLIFIED, "utf-16-be", "UTF-16BE"),
        (SIMPLIFIED, "utf-32", "UTF-32"),
        ('{"content": "café à la crème", "summary": "naïve"}\n', "latin-1", "LATIN1"),
    ],
)
def test_the_guess_is_named_and_works_as_the_flag(tmp_path, text, encoding, guess):
    path = tmp_path / "train.json"
    path.write_bytes((text * 3).encode(encoding))
    assert guess_encoding(path.read_bytes()) == guess
    message = rf"train\.json:1: invalid UTF-8 .*looks like {guess}\); give --encoding {guess.lower()}"
    with pytest.raises(UserError, match=message):
        read_rows(path)
    rows = read_rows(path, encoding=guess.lower())
    assert len(rows) == 3
    assert f'"content": "{rows[0].prompt}"' in text


def test_one_line_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "train.json"
    path.write_bytes(SIMPLIFIED.encode() * 5 + SIMPLIFIED.encode("gbk") + SIMPLIFIED.encode())
    with pytest.raises(UserError, match=r"train\.json:6: invalid UTF-8 \(byte 0x\w\w; this line looks like GBK, the others"):
        read_rows(path)


def test_a_wrong_flag_is_named_with_the_right_one(tmp_path):
    data = TRADITIONAL.encode("big5") + "\x80".encode("latin-1")
    with pytest.raises(UserError, match=r"x\.json:1: not ascii \(byte 0x.*give --encoding"):
        decode_text(tmp_path / "x.json", SIMPLIFIED.encode("gbk"), "ascii")
    with pytest.raises(UserError, match="not utf-8"):
        decode_text(tmp_path / "x.json", data, "utf-8")
    with pytest.raises(UserError, match="--encoding gkb: no such encoding"):
        decode_text(tmp_path / "x.json", data, "gkb")


def test_utf8_is_read_as_such_whatever_the_flag_says(tmp_path, caplog):
    assert decode_text(tmp_path / "a.json", ("\ufeff" + SIMPLIFIED).encode(), "gbk") == SIMPLIFIED
    assert "is UTF-8: it is read as such, without --encoding gbk" in caplog.text
    caplog.clear()
    assert decode_text(tmp_path / "a.json", b"plain", "gbk") == "plain"
    assert decode_text(tmp_path / "a.json", SIMPLIFIED.encode(), "utf8") == SIMPLIFIED
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'{"content": "ab\0cd"}', "1:16"),
        (SIMPLIFIED.encode() * 200 + b"\0", "201:1"),
        ("类型\0裙".encode(), "1:3"),
        (b"ok\n" + b"\0" * 10_000, "2:1"),
        (b"\0" * 100, "1:1"),
        (b"a,b\n\0\0,c\n" + b"x" * 100, "2:1"),
    ],
)
def test_a_nul_byte_is_called_so_with_its_place(tmp_path, data, place):
    with pytest.raises(UserError, match=rf"x\.json:{place}: a NUL byte \(0x00\)"):
        decode_text(tmp_path / "x.json", data)
    with pytest.raises(UserError, match=rf"x\.json:{place}: a NUL byte"):
        decode_text(tmp_path / "x.json", data, "gbk")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", [SIMPLIFIED, "content,summary\na,b\n", "类型,裙子\n裙子衣服好,衣服\n"])
def test_text_that_is_wide_is_not_called_damaged(tmp_path, text, encoding):
    with pytest.raises(UserError, match=r"x\.csv:\d: invalid UTF-8 .*looks like (UTF-16|UTF-32)"):
        decode_text(tmp_path / "x.csv", text.encode(encoding))
    assert decode_text(tmp_path / "x.csv", text.encode(encoding), encoding) == text
    with pytest.raises(UserError, match="a NUL byte"):
        decode_text(tmp_path / "x.csv", (text + "\0").encode(encoding), encoding)
