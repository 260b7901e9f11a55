"""A real headless Chromium, for tests of the page and for its pictures."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
]
# A phone and a desk.
NARROW, WIDE = (400, 860), (1280, 860)


def missing():
    """Why there is no browser here, or nothing."""
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    with contextlib.suppress(ImportError):
        import selenium  # noqa: F401

        return f"needs {' and '.join(programs)}" if programs else ""
    return "needs selenium"


@contextlib.contextmanager
def chromium(size=WIDE, language="zh-CN", dark=False):
    """A driver with a profile of its own; everything the browser logs and asks for is kept."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tempfile.mkdtemp(prefix="chromium-")
    flags = [*FLAGS, f"--user-data-dir={profile}", f"--lang={language}", f"--window-size={size[0]},{size[1]}"]
    for flag in flags:
        options.add_argument(flag)
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    # A window is never narrower than 500 pixels; the page in it may be.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600},
    )
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(Path(profile), ignore_errors=True)


def wait_for(condition, what, seconds=30):
    """Wait until a condition holds; what it gave."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException):  # the page has just drawn it anew
            if found := condition():
                return found
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.03)
