"""A headless Chromium for rendering the notebooks' figures and testing the report."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.webdriver import WebDriver

from gptlab.errors import GptlabError

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
"""Paths of the programs; None if not installed (Debian: chromium, chromium-driver)."""

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-prefers-reduced-motion --window-size=1400,1200"
)


@contextmanager
def headless() -> Iterator[WebDriver]:
    """A browser with a temporary profile and a log of console messages. It quits when the context ends.

    Raises:
        GptlabError: Chromium or its driver is not installed.
    """
    if BROWSER is None or DRIVER is None:
        raise GptlabError("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()
