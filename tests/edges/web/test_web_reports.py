"""Which reports can be opened, and which paths cannot."""

import os

import pytest

from ptuning.core.errors import UserError
from ptuning.edges.web.reports import MAX_BYTES, framed, read_report, reports_below


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(["old", "new", "group/inside", ".hidden", "new/checkpoint-3"]):
        folder = tmp_path / "root" / name
        folder.mkdir(parents=True)
        (folder / "report.html").write_text(f"report of {name}", encoding="utf-8")
        os.utime(folder / "report.html", (number, number))
    (tmp_path / "root" / "empty").mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "report.html").write_text("secret", encoding="utf-8")
    return tmp_path / "root"


def test_folders_with_a_report_are_found_the_newest_first(root):
    assert reports_below(root) == ["group/inside", "new", "old"]
    assert reports_below(root / "old") == ["."]
    assert reports_below(root / "nowhere") == []


def test_a_report_is_read(root):
    assert read_report(root, "new") == "report of new"
    assert read_report(root, " group/inside ") == "report of group/inside"
    assert read_report(root / "old", ".") == "report of old"


@pytest.mark.parametrize(
    "folder",
    [
        "../secret", "new/../../secret", "/etc", "~", "empty", "nowhere", "new/report.html", "a\0b", "x" * 5000, "link",
        "file-link",
    ],
)
def test_nothing_else_is_opened(root, folder):
    if hasattr(os, "symlink"):
        os.symlink(root.parent / "secret", root / "link")
        (root / "file-link").mkdir()
        os.symlink(root.parent / "secret" / "report.html", root / "file-link" / "report.html")
    with pytest.raises(UserError, match=r"there is no report\.html in"):
        read_report(root, folder)
    with pytest.raises(UserError, match=r"there is no report\.html in"):
        read_report(root, str(root.parent / "secret"))


def test_links_that_stay_below_the_root_are_followed_and_others_not_even_listed(root):
    (root / "again").mkdir()
    os.symlink(root / "old" / "report.html", root / "again" / "report.html")
    (root / "outside").mkdir()
    os.symlink(root.parent / "secret" / "report.html", root / "outside" / "report.html")
    os.symlink(root.parent, root / "up")
    assert read_report(root, "again") == "report of old"
    assert set(reports_below(root)) == {"group/inside", "new", "old", "again"}
    for folder in ("outside", "up/secret", "new/../up/secret"):
        with pytest.raises(UserError, match=r"there is no report\.html in"):
            read_report(root, folder)


def test_a_link_that_is_put_there_while_a_report_is_opened_is_not_followed(root, monkeypatch):
    """Somebody who may write below the root swaps the folder between the look and the reading."""
    genuine = os.open

    def swapped(path, *more, **others):
        os.rename(root / "new", root / "aside")
        os.symlink(root.parent / "secret", root / "new")
        return genuine(path, *more, **others)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(UserError, match=r"there is no report\.html in"):
        read_report(root, "new")


def test_what_is_no_file_is_not_waited_for(root):
    os.remove(root / "old" / "report.html")
    os.mkfifo(root / "old" / "report.html")
    with pytest.raises(UserError, match=r"there is no report\.html in"):
        read_report(root, "old")


def test_a_name_that_is_no_text_is_left_out(root):
    folder = os.path.join(os.fsencode(root), b"\xff\xfe")
    os.mkdir(folder)
    with open(os.path.join(folder, b"report.html"), "w") as file:
        file.write("x")
    assert set(reports_below(root)) == {"group/inside", "new", "old"}


@pytest.mark.parametrize("folder", ["x" * 100_000, "\ud800", "a\x1b[2Jb"])
def test_a_message_repeats_no_more_than_can_be_read(root, folder):
    with pytest.raises(UserError) as raised:
        read_report(root, folder)
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


def test_a_huge_file_is_not_sent(root):
    with (root / "old" / "report.html").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="is larger than"):
        read_report(root, "old")


def test_a_report_stands_in_a_frame_in_which_nothing_runs():
    frame = framed('"><script>alert(1)</script>${alert(2)}', 'a" onload="x')
    assert 'sandbox=""' in frame
    assert "<script" not in frame
    assert frame.count('"') == 8
