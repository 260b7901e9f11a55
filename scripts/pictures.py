"""Makes the pictures of the web page in docs/pictures with a tuned prefix and its report.

    bash scripts/train.sh && python -m scripts.pictures [CHECKPOINT]

Look at each picture before you commit it.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.chromium import NARROW, WIDE, chromium, missing, wait_for

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "pictures"
MAX_BYTES = 200_000
QUESTION = "类型#衬衫*颜色#蓝色*图案#碎花*细节#褶皱"
ANOTHER = "类型#外套*风格#通勤*版型#长款*材质#牛仔*细节#口袋"


def main(checkpoint: str = "output/tiny/checkpoint-240") -> None:
    """Start the page, use it, and save pictures of it."""
    if missing():
        sys.exit(missing())
    FOLDER.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "ptuning", "web", "--port", "0", "--ptuning_checkpoint", f"adgen={checkpoint}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            matches = (re.search(r"listening on (\S+)", line) for line in process.stderr or ())
            address = next(match[1] for match in matches if match)
            with chromium(WIDE, "zh-CN") as driver:
                _chat(driver, address)
            with chromium(WIDE, "en-US") as driver:
                _side_by_side(driver, address)
                _report(driver)
            with chromium(NARROW, "zh-CN") as driver:
                _phone(driver, address)
        finally:
            process.terminate()


def _open(driver: Any, address: str) -> None:
    driver.get(address)
    wait_for(lambda: driver.find_elements("css selector", "#retry[disabled]"), "the page")
    field = driver.find_element("css selector", "#temperature input[type=number]")
    field.clear()
    field.send_keys("0\t")


def _ask(driver: Any, question: str, answers: int, columns: int = 1) -> None:
    driver.find_element("css selector", "#question textarea").send_keys(question)
    driver.find_element("css selector", "#send").click()
    bots = [f"#chat-{number + 1} [data-testid=bot]" for number in range(columns)]

    def answered() -> bool:
        idle = driver.find_elements("css selector", "#send:not([disabled])")
        return bool(idle) and all(len(driver.find_elements("css selector", bot)) >= answers for bot in bots)

    wait_for(answered, "an answer")


def _save(driver: Any, name: str) -> None:
    driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    path = FOLDER / name
    driver.save_screenshot(str(path))
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}  {size} bytes")
    if size > MAX_BYTES:
        sys.exit(f"{name} is larger than {MAX_BYTES} bytes")


def _chat(driver: Any, address: str) -> None:
    _open(driver, address)
    _ask(driver, QUESTION, 1)
    _ask(driver, ANOTHER, 2)
    _save(driver, "web-chat.png")


def _side_by_side(driver: Any, address: str) -> None:
    _open(driver, address)
    driver.find_element("css selector", "#compare input").click()
    wait_for(lambda: driver.find_elements("css selector", "#chat-2"), "the second column")
    _ask(driver, QUESTION, 1, columns=2)
    _save(driver, "web-side-by-side.png")


def _report(driver: Any) -> None:
    driver.find_elements("css selector", "#tabs button[role=tab]")[-1].click()
    chosen = "#report input"
    wait_for(lambda: driver.find_element("css selector", chosen).get_attribute("value"), "a report in the list")
    driver.find_element("css selector", "#open").click()
    frame = wait_for(lambda: driver.find_elements("css selector", "iframe.report"), "the report")[0]
    driver.switch_to.frame(frame)
    wait_for(lambda: driver.find_elements("css selector", "h1"), "the report's page")
    driver.switch_to.default_content()
    _save(driver, "web-report.png")


def _phone(driver: Any, address: str) -> None:
    _open(driver, address)
    _ask(driver, QUESTION, 1)
    _save(driver, "web-phone.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
