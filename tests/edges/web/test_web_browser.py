"""The page in a real headless Chromium, as somebody sits before it."""

import contextlib
import itertools
import json

import httpx
import pytest
from echo_page import echo_page
from prefixes import save_random_prefix
from servers import running

import ptuning
from scripts.chromium import NARROW, chromium, missing, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")]
BASE, ADMIN = "tiny-chatglm", {"Authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("browser")
    config = ptuning.load_model(BASE, device="cpu").config
    for seed, name in enumerate(("one", "two")):
        save_random_prefix(top / name, config, 24, seed + 1, base_model=BASE)
    (top / "output" / "run").mkdir(parents=True)
    evil = "<h1>a report</h1><script>parent.hacked = 1; document.body.append('ran')</script>${parent.hacked=2}{{1+1}}"
    (top / "output" / "run" / "report.html").write_text(evil, encoding="utf-8")
    return top


@pytest.fixture(scope="module")
def address(place):
    flags = ("--ptuning_checkpoint", place / "one", "--admin_key", "admin", "--checkpoint_root", place)
    with running("web", *flags, "--report_root", place / "output", "--max_rows", 4) as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


class Page:
    """What somebody sees and presses."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        self.load()

    def load(self):
        self.driver.get(self.address)
        wait_for(lambda: self.all("#question textarea") and self.all("#send"), "the page")
        # Not before its first answer from the server, which sets what has words on it.
        wait_for(lambda: self.all("#retry[disabled]"), "the page's first answer")

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return wait_for(lambda: self.all(selector), selector)[0]

    def press(self, selector):
        def pressed():
            with contextlib.suppress(Exception):  # it is covered, disabled or just drawn anew
                self.one(selector).click()
                return True

        wait_for(pressed, f"press {selector}")

    def send(self, text):
        self.one("#question textarea").send_keys(text)
        self.press("#send")

    def paste(self, text):
        """The same for a text of several lines."""
        self.driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self.one("#question textarea"), text,
        )  # fmt: skip
        self.press("#send")

    def texts(self, column=1, who="bot"):
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText.trim())"
        return self.driver.execute_script(script, f"#chat-{column} [data-testid={who}]")

    def note(self, column=1):
        return self.one(f"#note-{column}").text

    def idle(self, column=1):
        return bool(self.all("#send:not([disabled])")) and "正在回答" not in self.note(column)

    def answer(self, number=1, column=1):
        wait_for(lambda: len(self.texts(column)) >= number and self.idle(column), "an answer")
        return self.texts(column)[number - 1]

    def number(self, name, value):
        field = self.one(f"#{name} input[type=number]")
        field.clear()
        field.send_keys(f"{value}\t")

    def more(self):
        self.press("#more > button")
        self.one("#repetition_penalty input")

    def choose(self, name, value):
        self.press(f"#{name} input")
        wait_for(lambda: [one for one in self.all("[role=option]") if value in one.text], f"{value} in the list")
        next(one for one in self.all("[role=option]") if value in one.text).click()

    def endless(self):
        """What stands there already is preferred: <eop> never comes."""
        self.more()
        self.number("repetition_penalty", 0.3)
        self.number("temperature", 0)


def running_now(address):
    return httpx.get(f"{address}/health").json()["running"]


def published(address, query, model, history=()):
    body = {"prompt": query, "model": model, "history": list(history), "temperature": 0}
    return httpx.post(address, json=body, timeout=60).json()["response"]


def requests_elsewhere(driver, address):
    """Everything the page asked of other hosts."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith((address, "data:", "blob:", "chrome:", "about:"))]


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_tokens_arrive_and_stop_frees_the_row(browser, address):
    page = Page(browser, address)
    page.endless()
    page.choose("model", BASE)
    page.send("你好")
    seen = []
    wait_for(lambda: seen.append("".join(page.texts())) or len(set(seen)) > 3, "a growing answer")
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    assert page.one("#question textarea").get_attribute("value") == ""
    assert running_now(address) == 1
    page.press("#stop")
    wait_for(lambda: running_now(address) == 0, "the row is free", seconds=3)
    answer = page.answer()
    assert answer
    assert "已停止" in page.note()
    assert page.texts(who="user") == ["你好"]
    assert page.all("#stop[disabled]")


def test_a_conversation_with_two_prefixes_retry_and_clear(browser, address):
    page = Page(browser, address)
    page.number("temperature", 0)
    page.send("类型#裙*颜色#红")
    first = page.answer()
    assert first == published(address, "类型#裙*颜色#红", "one")
    assert page.texts(who="user") == ["类型#裙*颜色#红"]  # as typed, not as markdown
    page.choose("model", BASE)
    page.send("讲个故事")
    second = page.answer(2)
    assert second == published(address, "讲个故事", BASE, [("类型#裙*颜色#红", first)])
    assert BASE in page.note()
    page.choose("model", "one")
    page.press("#retry")
    wait_for(lambda: page.idle() and "one" in page.note(), "another answer")
    assert page.texts() == [first, published(address, "讲个故事", "one", [("类型#裙*颜色#红", first)])]
    page.press("#clear")
    wait_for(lambda: not page.texts(who="user"), "an empty conversation")
    page.send("   \n")
    page.one("#question textarea").send_keys("你好")
    # A press while the one before is on its way counts for nothing, and nothing shows that the empty one has arrived.
    wait_for(lambda: page.texts(who="user") or page.press("#send"), "the question")
    page.answer()
    assert page.texts(who="user") == ["你好"]


def test_side_by_side_in_one_batch(browser, address):
    page = Page(browser, address)
    page.endless()
    page.press("#compare input")
    page.one("#chat-2")
    page.send("你好")
    wait_for(lambda: running_now(address) == 2 and all("".join(page.texts(column)) for column in (1, 2)), "both answer")
    page.press("#stop")
    wait_for(lambda: running_now(address) == 0, "both rows are free", seconds=3)
    wait_for(lambda: page.idle() and page.idle(2), "both stopped")
    assert "one" in page.note(1)
    assert BASE in page.note(2)
    page.press("#clear")
    page.number("repetition_penalty", 1)
    wait_for(lambda: not page.texts(1), "an empty conversation")
    page.send("讲个故事")
    wait_for(lambda: page.texts(1, "user"), "the question")
    assert [page.texts(column, "user") for column in (1, 2)] == [["讲个故事"], ["讲个故事"]]
    assert [page.answer(1, column) for column in (1, 2)] == [published(address, "讲个故事", name) for name in ("one", BASE)]


@pytest.mark.parametrize("how", ["reload", "leave"])
def test_leaving_cancels_the_answer(browser, address, how):
    page = Page(browser, address)
    page.endless()
    page.send("你好")
    wait_for(lambda: running_now(address) == 1, "an answer is being made")
    if how == "reload":
        page.load()
        assert page.texts(who="user") == []
    else:
        browser.get("about:blank")
    wait_for(lambda: running_now(address) == 0, "the row is free", seconds=5)


def test_two_pages_do_not_mix(browser, address):
    page = Page(browser, address)
    page.send("你好")
    page.answer()
    mine = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        other = Page(browser, address)
        other.send("再见")
        other.answer()
        assert other.texts(who="user") == ["再见"]
    finally:
        browser.close()
        browser.switch_to.window(mine)
    page.send("你是谁")
    page.answer(2)
    assert page.texts(who="user") == ["你好", "你是谁"]


def test_mistakes_are_messages_and_the_question_comes_back(browser, address):
    page = Page(browser, address)
    page.number("max_length", 0)
    page.send("你好")
    wait_for(lambda: "最大长度 0 容不下任何回答" in page.one("#message").text, "a message")
    wait_for(lambda: page.one("#question textarea").get_attribute("value") == "你好", "the question")
    assert page.texts(who="user") == []


def test_what_a_field_lets_through_is_told_on_the_page(browser, address):
    page = Page(browser, address)
    browser.get_log("browser")  # what the pages before it left there
    page.more()
    for name, value in (("top_k", -3), ("seed", "1e30"), ("top_k", 2.5)):
        page.number(name, value)
        page.send("你好")
        wait_for(lambda name=name: f"{name} " in page.one("#message").text, f"a message on {name}")
        wait_for(lambda: page.one("#question textarea").get_attribute("value") == "你好", "the question")
        page.one("#question textarea").clear()
        page.number(name, {"top_k": 50, "seed": 0}[name])
    page.paste("长" * 100_000)
    wait_for(lambda: "个字符" in page.one("#message").text, "a message on the length")
    assert len(page.one("#question textarea").get_attribute("value")) == 100_000
    page.paste("你好")
    page.answer()
    assert page.texts(who="user") == ["你好"]
    assert complaints(browser) == []


def test_a_prefix_that_was_loaded_meanwhile_appears_after_refresh(browser, address, place):
    page = Page(browser, address)
    body = {"name": "late", "path": str(place / "two")}
    assert httpx.post(f"{address}/admin/prefixes", json=body, headers=ADMIN).status_code == 201
    page.press("#refresh")
    wait_for(lambda: "2" in page.one("#heading p").text, "two prefixes")
    page.choose("model", "late")
    page.send("你好")
    page.answer()
    assert "late" in page.note()
    assert httpx.delete(f"{address}/admin/prefixes/late", headers=ADMIN).status_code == 200
    page.send("再见")
    wait_for(lambda: "选中的前缀已不在" in page.one("#message").text, "a message")


def test_the_language_can_be_switched(browser, address):
    page = Page(browser, address)  # zh-CN, as this browser is
    assert page.one("#send").text == "发送"
    page.press("#language label:last-of-type")
    wait_for(lambda: page.one("#send").text == "Send", "English")
    wait_for(lambda: page.one("#question textarea").get_attribute("placeholder").startswith("Type a question"), "English")
    page.press("#language label:first-of-type")
    wait_for(lambda: page.one("#send").text == "发送", "Chinese")


def test_enter_sends_and_with_shift_makes_a_line(browser, address):
    page = Page(browser, address)
    field = page.one("#question textarea")
    field.send_keys("你好\ue008\ue007\ue000再见")  # Shift+Enter, and Shift let go
    assert field.get_attribute("value") == "你好\n再见"
    field.send_keys("\ue007")
    page.answer()
    assert page.texts(who="user") == ["你好\n再见"]


def test_a_report_opens_and_nothing_in_it_runs(browser, address):
    page = Page(browser, address)
    next(one for one in page.all("#tabs button[role=tab]") if one.text == "评测").click()
    wait_for(lambda: page.one("#report input").get_attribute("value") == "run", "the newest folder is chosen")
    page.press("#open")
    frame = page.one("iframe.report")
    browser.switch_to.frame(frame)
    wait_for(lambda: browser.find_elements("css selector", "h1"), "the report")
    assert "ran" not in browser.find_element("css selector", "body").text
    browser.switch_to.default_content()
    assert browser.execute_script("return window.hacked") is None


ANSWERS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>\n\n<svg onload=window.hacked=1><a xlink:href='javascript:window.hacked=1'>x</a>"
    "</svg>\n\n<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "[press](javascript:window.hacked=1) [press](<javascript:window.hacked=1>) <a href=javascript:window.hacked=1>x</a>\n"
    "![x](http://192.0.2.1/x.png) ![x][r] <img src=http://192.0.2.1/y.png>\n\n[r]: http://192.0.2.1/z.png",
    "```mermaid\ngraph TD\nA[\"<img src=x onerror='window.hacked=1'>\"]\nclick A \"javascript:window.hacked=1\"\n```\n"
    "$$\\href{javascript:window.hacked=1}{x} \\includegraphics{http://192.0.2.1/f.png} <img src=x onerror=hacked=1>$$",
    "<style>body { display: none }</style><link rel=stylesheet href=http://192.0.2.1/s.css>\n\n"
    "<form action=http://192.0.2.1/><button>press</button></form><meta http-equiv=refresh content='0;url=http://192.0.2.1/'>",
    "`` ` `` <details open ontoggle=window.hacked=1> ```x``` <b onmouseover=window.hacked=1>press</b>\n\n"
    "\\<img src=x onerror=window.hacked=1> &lt;img src=x onerror=window.hacked=1&gt; `<img src=x onerror=window.hacked=1>",
    "```\n<script>window.hacked = 1</script>\n",
]


def test_nothing_in_an_answer_runs_or_is_fetched(browser, tmp_path):
    """The model is replaced by one that says what it is asked (see echo_page.py)."""
    with echo_page(tmp_path) as address:
        browser.get_log("performance")
        browser.get_log("browser")
        page = Page(browser, address)
        for number, answer in enumerate(ANSWERS, 1):
            page.paste(answer)
            page.answer(number)
        browser.execute_script(
            "for (const one of document.querySelectorAll('#chat-1 [data-testid=bot] :not(a, a *, button, button *)'))"
            "{ one.dispatchEvent(new Event('mouseover')); one.click?.() }"
        )
        links = browser.execute_script(
            "return [...document.querySelectorAll('#chat-1 [data-testid=bot] a')].map(one => [one.protocol, one.target])"
        )
        assert {tuple(link) for link in links} <= {("http:", "_blank"), (":", "_blank")}  # ":": it leads nowhere
        assert browser.execute_script("return window.hacked") is None
        assert browser.current_url.startswith(address)
        texts = page.texts()
        assert texts[0] == ANSWERS[0]
        assert texts[1].startswith("<img src=x onerror='window.hacked = 1'>")
        inside = "#chat-1 [data-testid=bot] :is(script, iframe, img, svg image, form, style, link, meta, details, .mermaid)"
        assert browser.find_elements("css selector", inside) == []
        assert page.one("#send").is_displayed()
        assert requests_elsewhere(browser, address) == []
        assert complaints(browser) == []


def test_markdown_code_and_formulas_are_shown(browser, tmp_path):
    with echo_page(tmp_path) as address:
        page = Page(browser, address)
        text = "**粗体** 与 `a < b && <c>`\n\n```python\nprint(\"<b>\")\n```\n\n| 甲 | 乙 |\n|---|---|\n| 1 | 2 |\n\n$$a<b$$"
        page.paste(text)
        page.answer()
        bot = "#chat-1 [data-testid=bot]"
        # The page draws the finished answer once more: what is looked at may be gone the next moment.
        wait_for(lambda: page.one(f"{bot} strong").text == "粗体", "bold text")
        wait_for(lambda: page.one(f"{bot} p code").text == "a < b && <c>", "code in a line")
        wait_for(lambda: 'print("<b>")' in page.one(f"{bot} pre code").text, "a block of code")
        wait_for(lambda: [one.text for one in page.all(f"{bot} td")] == ["1", "2"], "a table")
        assert page.one(f"{bot} .katex")
        assert complaints(browser) == []


def test_a_password_opens_the_page(place):
    with running("web", "--auth", "me:secret", "--report_root", place / "output") as (address, _), chromium() as driver:
        driver.get(address)
        user, password = wait_for(lambda: driver.find_elements("css selector", "input"), "the login")
        user.send_keys("me")
        password.send_keys("wrong\ue007")
        wait_for(lambda: driver.find_elements("css selector", ".creds"), "a refusal")
        user.send_keys("me")  # gradio has emptied both
        password.send_keys("secret\ue007")
        wait_for(lambda: driver.find_elements("css selector", "#question textarea"), "the page")
        page = Page(driver, address)
        page.send("你好")
        page.answer()
        assert page.texts(who="user") == ["你好"]
        assert requests_elsewhere(driver, address) == []


def test_the_page_fits_a_phone_and_asks_nobody_else(address):
    with chromium(NARROW, "en-US") as driver:
        page = Page(driver, address)
        page.press("#compare input")
        page.one("#chat-2")
        page.send("你好，" * 30)
        wait_for(lambda: page.all("#send:not([disabled])") and page.texts(2), "an answer")
        assert page.one("#send").text == "Send"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= NARROW[0]
        assert requests_elsewhere(driver, address) == []
        assert complaints(driver) == []
