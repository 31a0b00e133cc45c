"""A real browser without a window, for pages. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="chromium and chromedriver are not installed (Debian: chromium, chromium-driver)",
)

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1240,900",
)


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """Chromium with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def prefer(driver: webdriver.Chrome, scheme: str) -> None:
    """Ask pages for "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def resize(driver: webdriver.Chrome, width: int, height: int = 900) -> None:
    """Show pages in this many pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


# --- pages of reports ----------------------------------------------------------------------------------------------


def until(driver: webdriver.Chrome, holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    gone = [NoSuchElementException, StaleElementReferenceException]  # while a page is loaded anew
    WebDriverWait(driver, seconds, 0.05, gone).until(lambda _: holds())


def drawn(driver: webdriver.Chrome, section: str) -> WebElement:
    """The first chart of a section, once it is drawn."""
    plot = driver.find_element(By.CSS_SELECTOR, f"#{section} .plot")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    until(driver, lambda: bool(plot.find_elements(By.CSS_SELECTOR, ".main-svg .trace")))
    return plot


def lines(driver: webdriver.Chrome, plot: WebElement, axis: str = "x") -> list[list[float]]:
    """What is drawn in a chart, without bands and stars."""
    script = f"return (arguments[0].data || []).filter(t => t.meta !== undefined).map(t => t.{axis})"
    found: list[list[float]] = driver.execute_script(script, plot)
    return found


def titles(driver: webdriver.Chrome) -> list[str]:
    """Of all charts."""
    texts: list[str] = driver.execute_script(
        "return [...document.querySelectorAll('.chart h3')].map(e => e.textContent)"
    )
    return texts


def point(driver: webdriver.Chrome, plot: WebElement, share: float = 0.5) -> None:
    """Move the pointer over a chart, to this share of its width."""
    x = int((share - 0.5) * plot.size["width"])
    ActionChains(driver).move_to_element_with_offset(plot, x, 0).move_by_offset(-1, 0).perform()
    told = plot.find_element(By.XPATH, "../div[@role='status']")
    until(driver, told.is_displayed)


def slide(driver: webdriver.Chrome, slider: WebElement, value: float) -> None:
    """Move a slider as a hand would."""
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    driver.execute_script(script, slider, value)


def serious(driver: webdriver.Chrome) -> list[tuple[str, str]]:
    """What axe finds against WCAG 2.2 A and AA that is serious or critical: the rule, and where."""
    found = Axe().run(driver, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
    return [
        (one["id"], node["html"][:200])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def visible(driver: webdriver.Chrome, gallery: str, selector: str) -> list[Any]:
    """What is seen of a gallery."""
    return [e for e in driver.find_elements(By.CSS_SELECTOR, f"#{gallery} {selector}") if e.is_displayed()]
