"""Answers as markdown that shows text, code and formulas, and nothing else.

What a browser makes of it: test_web_browser.py.
"""

import re
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.edges.web.safe_markdown import literal, safe_markdown


@pytest.mark.parametrize(("text", "shown"), [
    ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
    ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
    ("<!-- x --> <?php", "&lt;!-- x --> &lt;?php"),
    ("![x](http://example.com/x.png)", "!\\[x](http://example.com/x.png)"),
    ("&lt;b&gt; &#60;", "&amp;lt;b&amp;gt; &amp;#60;"),
    ("```mermaid\ngraph TD\n```", "``` mermaid\ngraph TD\n```"),
    ("`a` <b> `c", "`a` &lt;b> `c"),
    ("```a`b <i>", "```a`b &lt;i>"),  # no fence: backticks in what would be its language
    ("a ` b\n\n<i> ` c", "a ` b\n\n&lt;i> ` c"),  # no code: a blank line lies between
    ("```x<y>\n<a>\n```", "```x&lt;y>\n<a>\n```"),
])  # fmt: skip
def test_html_pictures_and_diagrams_are_text(text, shown):
    assert safe_markdown(text) == shown


@pytest.mark.parametrize("text", [
    "", "你好，世界。", "a < b & c > d", "**bold** _x_ [a](http://b.c/?d=1&e=2)", "$$a<1$$", "1. x\n2. y\n\n- z",
    "`<b>` and ``<i> ` <u>``", "```html\n<b>&amp;</b>\n```", "~~~\n<b>\n~~~", "- x\n  ```\n  <b>\n  ```", "`a\n<b>`",
    "```\n<b> unfinished",
])  # fmt: skip
def test_plain_text_and_code_stay_as_they_are(text):
    assert safe_markdown(text) == text


def test_after_a_fence_html_is_text_again():
    assert safe_markdown("````\n```\n<a>\n````\n<b>") == "````\n```\n<a>\n````\n&lt;b>"


@given(st.text(alphabet="<>a`~ \n![]&;#-", max_size=60))
def test_outside_of_code_no_tag_is_left(text):
    """Whatever stands there: without any backtick and tilde nothing is code, and so nothing may be left."""
    bare = text.replace("`", "").replace("~", "")
    assert not re.search(r"<[A-Za-z/!?]|!\[", safe_markdown(bare))
    safe_markdown(text)


def test_long_rows_of_marks_take_no_time():
    begun = time.monotonic()
    for text in ("> " * 5000 + "x", "1. " * 5000 + "x", "`" * 20000 + "x", "`a" * 3000, "```" * 10000, "<" * 50000):
        safe_markdown(text)
    assert time.monotonic() - begun < 20  # not a measurement: a wrong pattern would take years


@given(st.text(alphabet=string.printable + "你好。", max_size=40))
def test_a_literal_text_has_no_mark_left(text):
    """Nothing that markdown knows is in it, and undoing the numbers gives the text back."""
    markdown = literal(text)
    assert not re.search(r"[*_`#\[\]()<>!|~$\\]", re.sub(r"&#\d+;", "", markdown))
    decoded = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), markdown.replace("&nbsp;", ""))
    assert decoded == re.sub(r"(?m)(?<![^\n])[ \t]+", "", text)


def test_a_question_of_the_task_shows_as_typed():
    assert literal("类型#裙*颜色") == "类型&#35;裙&#42;颜色"
    assert literal("  a\n\tb") == "&nbsp;&nbsp;a\n&nbsp;&nbsp;&nbsp;&nbsp;b"
