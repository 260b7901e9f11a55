"""docs/pains.md: forty rows, and every test it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pains.md").read_text(encoding="utf-8")


def test_all_forty_have_a_row():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", PAGE, re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 41))
    for number, pain, cell in rows:
        assert pain, number
        assert "::" in cell or cell.startswith("none yet: "), number


def test_the_tests_that_it_names_exist():
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 60
    assert PAGE.count("::") == len(named)
    for file, test in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", text, re.M), f"{file}::{test}"
