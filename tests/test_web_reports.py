"""Which reports can be opened, and which paths cannot."""

import os

import pytest

from ptuning.edges.web.reports import MOST_BYTES, framed, read_report, reports_below
from ptuning.plain.errors import UserError


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


def test_a_huge_file_is_not_sent(root):
    with (root / "old" / "report.html").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UserError, match="is larger than"):
        read_report(root, "old")


def test_a_report_stands_in_a_frame_in_which_nothing_runs():
    made = framed('"><script>alert(1)</script>${alert(2)}', 'a" onload="x')
    assert 'sandbox=""' in made
    assert "<script" not in made
    assert made.count('"') == 8
