"""Real runs in a real browser: their report, and their page while they go on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import browser, drawn, lines, needs_chromium, prefer, resize, serious, until, visible
from flowfactory.cli.main import main
from selenium import webdriver
from selenium.webdriver.common.by import By

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        prefer(driver, "light")
        resize(driver, 1240)
        yield driver


def test_a_real_run_has_a_page(chromium: webdriver.Chrome, run: Callable[..., Path]) -> None:
    folder = run("real")
    assert main(["report", str(folder)]) == 0
    chromium.get((folder / "report.html").as_uri())
    assert "2 of 2" in chromium.find_element(By.ID, "overview").text
    assert len(visible(chromium, "held-out-samples", "img")) == 3
    assert len(chromium.find_elements(By.CSS_SELECTOR, "#loss-and-updates .chart")) >= 4
    assert len(lines(chromium, drawn(chromium, "held-out-evaluation"))[0]) == 3


def test_a_run_is_watched_as_it_goes_on(chromium: webdriver.Chrome, spec: Path, tmp_path: Path) -> None:
    """What is open, chosen and zoomed stays as it is, and the newest epochs come by themselves."""
    command = [sys.executable, "-m", "flowfactory", "run", str(spec), "--watch", "--runs", str(tmp_path / "runs")]
    options = ["--set=run.epochs=300", "--set=eval.every=2"]  # it is stopped long before
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        try:
            said = iter(running.stderr.readline, "")
            address = next(found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
            chromium.get(address)
            # The first epochs bring sections of the page, with which it is loaded anew.
            told = lambda: chromium.find_element(By.ID, "now").text  # noqa: E731
            until(chromium, lambda: re.match(r"running: epoch ([4-9]|\d\d+) of 300, about \d+ min left", told()), 90)
            chromium.execute_script("document.querySelector('#time details').open = true; window.kept = 1")
            plot = drawn(chromium, "reward")
            some = len(lines(chromium, plot)[0])
            until(chromium, lambda: len(lines(chromium, plot)[0]) > some, 60)
            assert "training redness" in told()
            assert "held-out redness" in told()
            assert chromium.execute_script("return window.kept") == 1
            assert chromium.execute_script("return document.querySelector('#time details').open")
            samples = "[id^=training-samples]"
            newest = int(chromium.find_element(By.CSS_SELECTOR, f"{samples} output").text)
            assert newest >= len(lines(chromium, plot)[0]) - 1
            shown = "return [...document.querySelectorAll(arguments[0])].every(e => e.complete && e.naturalWidth > 0)"
            until(chromium, lambda: chromium.execute_script(shown, f"{samples} .tile:not([hidden]) img"))
            assert serious(chromium) == []
        finally:
            running.terminate()
            running.wait(60)
        assert [line for line in said if line.startswith("stopped by")] == [
            f"stopped by SIGTERM; go on with: flowfactory resume {tmp_path / 'runs' / 'tiny'}\n"
        ]
    until(chromium, lambda: "no longer renewed" in chromium.find_element(By.ID, "link").text)
    chromium.get("about:blank")
    chromium.get_log("browser")  # that nobody listens any more is no fault of the page
