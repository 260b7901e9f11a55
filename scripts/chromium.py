"""A real headless Chromium, for the tests of the page and for its pictures. Needs selenium, chromium and chromedriver."""

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
"""A desk and a phone, in pixels."""


def missing() -> str:
    """Why there is no browser here, or nothing. Under CI (the variable ``CI`` is set) nobody may skip for want of one: the
    tests run, and fail."""
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
    """A driver with an empty profile; what the browser logs and what it asks of the network can be read from it."""
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
        # A window is never narrower than 500 pixels; the page in it may be.
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Wait until a condition holds; what it gave.

    Raises:
        TimeoutError: it does not.
    """
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException):  # the page has just drawn it anew
            if found := condition():
                return found
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain: {what}")
        time.sleep(0.03)
