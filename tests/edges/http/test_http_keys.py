"""Keys: blank ones that would leave a door open, letters outside of ASCII; and checkpoints that lie elsewhere."""

import json
import os
import re

import httpx
import pytest
from prefixes import save_random_prefix
from servers import running

import ptuning
from ptuning.core.errors import UserError
from ptuning.edges.cli import main
from ptuning.edges.http.middleware.access import bearer_key, keys_equal
from ptuning.edges.serve import ServerArguments
from ptuning.edges.web_command import WebArguments

KEY, ADMIN = "密码", "clé d'accès"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of checkpoints, and beside it one that must not be read."""
    top = tmp_path_factory.mktemp("top")
    config = ptuning.load_model("tiny-chatglm", device="cpu").config
    save_random_prefix(top / "root" / "inside", config, 4, 1, base_model="tiny-chatglm")
    save_random_prefix(top / "elsewhere", config, 4, 2, base_model="tiny-chatglm")
    return top / "root"


@pytest.fixture(scope="module")
def address(root):
    flags = ("--api_key", KEY, "--checkpoint_root", root)
    with running("serve", *flags, API_ADMIN_KEY=ADMIN) as (address, _):
        yield address


KEYS = [("serve", "api_key", "API_KEY"), ("serve", "admin_key", "API_ADMIN_KEY"), ("web", "api_key", "API_KEY"),
        ("web", "admin_key", "API_ADMIN_KEY"), ("web", "auth", "WEB_AUTH")]  # fmt: skip


@pytest.mark.parametrize("value", ["", " ", "\t", "\n"])
@pytest.mark.parametrize(("verb", "flag", "variable"), KEYS)
def test_a_blank_key_is_refused_and_nothing_is_started(verb, value, flag, variable, tmp_path, monkeypatch, capsys):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({flag: value}), encoding="utf-8")
    for argv in ([f"--{flag}", value], [f"--{flag}={value}"], [f"{flag}={value}"], [str(file)]):
        assert main([verb, *argv]) == 2
        assert re.search(rf"--{flag}\b.* is empty", capsys.readouterr().err)
    monkeypatch.setenv(variable, value)
    assert main([verb]) == 2
    assert f"{variable} is empty" in capsys.readouterr().err


def test_a_flag_beats_the_environment_and_what_no_header_holds_is_refused(monkeypatch):
    monkeypatch.setenv("API_KEY", "")
    assert ServerArguments(port=1, api_key="k").api_key == "k"
    for key in (" k", "k ", "a\nb", "a\x00b", "k\x7f"):
        with pytest.raises(UserError, match="no header can hold"):
            ServerArguments(port=1, api_key=key)
    monkeypatch.delenv("API_KEY")
    assert ServerArguments(port=1).api_key is None
    for auth in ("me: ", " :x", "me:\t"):
        with pytest.raises(UserError):
            WebArguments(port=1, auth=auth)


@pytest.mark.slow
def test_keys_outside_of_ascii(address):
    """In the bytes that clients send: curl UTF-8, browsers Latin-1."""

    def status_with(key, path="/v1/models"):
        return httpx.get(f"{address}{path}", headers={"authorization": b"Bearer " + key}).status_code

    assert status_with(KEY.encode()) == 200
    assert status_with(ADMIN.encode(), "/admin/prefixes") == 200
    assert status_with(ADMIN.encode("latin-1"), "/admin/prefixes") == 200
    for wrong in ("密".encode(), KEY.encode("gbk"), b"\xff\xfe", "clé".encode("latin-1")):
        assert status_with(wrong) == 401
        assert status_with(wrong, "/admin/prefixes") == 401
    assert status_with(KEY.encode(), "/admin/prefixes") == 401


def test_keys_that_python_cannot_write():
    assert keys_equal(b"\xff", os.fsdecode(b"\xff"))
    assert not keys_equal(b"?", os.fsdecode(b"\xff"))
    assert bearer_key([(b"authorization", b"Bearer a"), (b"Authorization", b"Bearer b")]) == b""
    assert bearer_key([(b"Authorization", b"bearer  a ")]) == b"a"
    assert bearer_key([(b"authorization", b"Bearer")]) == b""


def load(address, path, name="new"):
    headers = {"authorization": b"Bearer " + ADMIN.encode()}
    response = httpx.post(f"{address}/admin/prefixes", json={"name": name, "path": path}, headers=headers)
    if response.status_code == 201:
        assert httpx.delete(f"{address}/admin/prefixes/{name}", headers=headers).status_code == 200
    return response


@pytest.mark.slow
def test_links_out_of_the_root_are_not_followed(address, root):
    elsewhere = root.parent / "elsewhere"
    (root / "linked").symlink_to(elsewhere)
    (root / "loop").symlink_to("loop")
    for name in ("files", "one_file", "within", "pipe"):
        (root / name).mkdir()
    for file in elsewhere.iterdir():
        (root / "files" / file.name).symlink_to(file)
        (root / "within" / file.name).symlink_to(root / "inside" / file.name)
    weights = next(file for file in elsewhere.iterdir() if file.suffix == ".safetensors")
    (root / "one_file" / weights.name).symlink_to(os.path.relpath(weights, root / "one_file"))
    (root / "one_file" / "prefix_config.json").write_text((elsewhere / "prefix_config.json").read_text())
    os.mkfifo(root / "pipe" / "prefix_config.json")
    (root / "pipe" / weights.name).write_bytes(weights.read_bytes())
    tricks = ["linked", "files", f"files/{weights.name}", "one_file", "pipe", "loop", "../elsewhere", str(elsewhere)]
    tricks += ["nowhere", "inside/../../elsewhere", "a\x00b", "x" * 5000]
    for path in tricks:
        response = load(address, path)
        assert response.status_code == 400, path
        assert response.json()["error"]["message"] == f"path: no such checkpoint below {root}", path
    for path in ("inside", "within", str(root / "inside"), "./inside/"):
        assert load(address, path).status_code == 201, path


@pytest.mark.slow
def test_what_is_loaded_is_named_by_known_fields_only(address):
    headers = {"authorization": b"Bearer " + ADMIN.encode()}
    for body, field in (({"name": "a"}, "path"), ({"name": "a", "path": "inside", "pre_seq_len": 4}, "pre_seq_len"),
                        ({"name": 5, "path": "inside"}, "name"), ([], None)):  # fmt: skip
        response = httpx.post(f"{address}/admin/prefixes", json=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field
