"""A headless Chromium for the tests and the pictures of the web page. Needs selenium, chromium and chromedriver."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
]
WIDE, NARROW = (1280, 860), (400, 860)
"""Window sizes of a desktop and a phone, in pixels."""


def missing() -> str:
    """What is missing for a browser on this machine; empty if nothing is. Under CI (the variable ``CI`` is set) it is always
    empty, so that tests fail there instead of being skipped."""
    if os.environ.get("CI"):
        return ""
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    try:
        import selenium  # noqa: F401
    except ImportError:
        programs.append("selenium")
    return f"needs {', '.join(programs)}" if programs else ""


@contextlib.contextmanager
def chromium(size: tuple[int, int] = WIDE, language: str = "zh-CN") -> Iterator[Any]:
    """A driver with an empty profile, which records the browser's log and its network requests."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    profile = tempfile.mkdtemp(prefix="chromium-")
    flags = [*FLAGS, f"--user-data-dir={profile}", f"--lang={language}", f"--window-size={size[0]},{size[1]}"]
    for flag in flags:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver")))
    try:
        # A window cannot be narrower than 500 pixels, but the emulated screen can.
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Wait until a condition returns something true, and return that.

    Raises:
        TimeoutError: it has not within the time.
    """
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException):  # the page has just replaced the element
            if result := condition():
                return result
        if time.monotonic() > end:
            raise TimeoutError(f"timed out waiting for: {what}")
        time.sleep(0.03)
