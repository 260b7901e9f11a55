"""docs/architecture.md: the files it names exist, its picture is the rooms' order, and every row of its table is proved."""

import re
from pathlib import Path

from test_layers import ORDER

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = {path.relative_to(ROOT).as_posix() for part in ("ptuning", "tests") for path in (ROOT / part).rglob("*")}


def is_there(name: str) -> bool:
    """A path from the checkout or from the package, or the end of one."""
    name = name.rstrip("/")
    return name in FILES or f"ptuning/{name}" in FILES or any(file.endswith(f"/{name}") for file in FILES)


def test_every_file_that_it_names_is_there():
    named = re.findall(r"`([\w./]+(?:\.py|\.c|\.h|/))`", PAGE)
    assert len(named) > 100
    assert not [name for name in named if name not in ("ptuning/", "tests/") and not is_there(name)]


def test_the_picture_shows_the_rooms_in_their_order():
    picture = PAGE.split("```")[1]
    places = [frozenset(re.findall(r"(?:^|\s{3,})([a-z]+)  +\w", level, re.M)) for level in picture.split("│")]
    rooms = {room for place in ORDER for room in place}
    drawn = [{name for name in place if name in rooms} for place in places]
    assert drawn == [set(place) for place in ORDER]


def test_every_way_to_add_something_has_its_proof():
    table = PAGE.split("## Where to add what")[1].split("##")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 12
    for what, places, where, proof in rows:
        assert places.strip().isdigit(), what
        assert "`" in where, what
        assert "test" in proof or "case" in proof, what
