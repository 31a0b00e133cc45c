"""Reports in a real browser: they render, step, play, and take no text for anything else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, needs_chromium, prefer, resize
from flowfactory.cli.main import main
from runs import PROMPTS, colour, lay_run
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = needs_chromium

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</script></style></title><script>window.hacked = 1</script>",
    "' onmouseover='window.hacked = 1' {{ 7 * 7 }} ${window.hacked = 1} &lt;b&gt; \u202e\u0000",
)
LABEL = '<svg onload="window.hacked = 1">&amp;$x</script>'

PIXEL = """
const canvas = document.createElement("canvas");
canvas.width = canvas.height = 1;
const context = canvas.getContext("2d");
context.drawImage(arguments[0], 0, 0);
return Array.from(context.getImageData(0, 0, 1, 1).data).slice(0, 3);
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


Show = Callable[..., webdriver.Chrome]


@pytest.fixture
def show(chromium: webdriver.Chrome, tmp_path: Path) -> Iterator[Show]:
    """Report on runs and open the page; whatever the browser complains of fails the test."""

    def show(*folders: Path) -> webdriver.Chrome:
        page = tmp_path / "page.html"
        assert main(["report", *map(str, folders), "--out", str(page)]) == 0
        prefer(chromium, "light")
        resize(chromium, 1240)
        chromium.get(page.as_uri())
        return chromium

    yield show
    assert chromium.get_log("browser") == []


def visible(driver: webdriver.Chrome, gallery: str, selector: str) -> list[Any]:
    return [e for e in driver.find_elements(By.CSS_SELECTOR, f"#{gallery} {selector}") if e.is_displayed()]


def test_a_page_needs_nothing_but_itself(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run"))
    assert driver.title == "Report: run"
    assert driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    text = (tmp_path / "page.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    headings = [h.text for h in driver.find_elements(By.TAG_NAME, "h2")]
    assert headings == [
        "Overview", "Reward", "Held-out evaluation", "Held-out samples", "Loss and updates", "Groups and samples",
        "Time", "Training samples: run", "Plan and versions",
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "page-curves").iterdir()} >= {"reward.png", "held-out-evaluation.png"}


def test_the_plan_and_versions_are_told(show: Show, tmp_path: Path) -> None:
    text = show(lay_run(tmp_path / "run")).find_element(By.ID, "plan").text
    assert "samples 16 samples per epoch: 4 prompts x groups of 4" in text
    assert "torch 2.13.0" in text


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark(show: Show, tmp_path: Path, scheme: str, dark: bool) -> None:
    driver = show(lay_run(tmp_path / "run"))
    prefer(driver, scheme)
    paper, ink = (
        sum(map(int, re.findall(r"\d+", driver.find_element(By.TAG_NAME, "body").value_of_css_property(name))[:3])) / 3
        for name in ("background-color", "color")
    )
    assert (paper < ink) == dark
    assert abs(paper - ink) > 150


def test_the_slider_steps_through_epochs(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run"))
    slider = driver.find_element(By.CSS_SELECTOR, "#held-out-samples .step")
    for epoch in (6, 4, 2, 0):
        assert driver.find_element(By.CSS_SELECTOR, "#held-out-samples output").text == str(epoch)
        images = visible(driver, "held-out-samples", "img")
        assert [driver.execute_script(PIXEL, image) for image in images] == [
            list(colour(epoch, number, 0)) for number in range(len(PROMPTS))
        ]
        scores = [e.text for e in visible(driver, "held-out-samples", ".score:first-of-type, .epoch + .score")]
        assert scores[0].split()[:2] == ["bright", f"{0.5 + (epoch - 3) / 50:.3f}"]
        slider.send_keys(Keys.ARROW_LEFT)
    assert len(visible(driver, "training-samples-run", "img")) == len(PROMPTS)


def test_the_first_can_stay_in_sight(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run"))
    driver.find_element(By.CSS_SELECTOR, "#held-out-samples .beside").click()
    assert [e.text for e in visible(driver, "held-out-samples", ".epoch")] == ["epoch 0", "epoch 6"] * len(PROMPTS)


def test_videos_play(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run", frames=5))
    film = visible(driver, "held-out-samples", ".window")[0]
    strip = film.find_element(By.TAG_NAME, "img")
    assert (film.rect["width"] / film.rect["height"]) == pytest.approx(48 / 32, rel=0.03)
    assert strip.rect["width"] == pytest.approx(5 * film.rect["width"], rel=0.03)
    frame = driver.find_element(By.CSS_SELECTOR, "#held-out-samples .frame")
    frame.send_keys(Keys.ARROW_RIGHT)
    assert film.rect["x"] - strip.rect["x"] == pytest.approx(film.rect["width"], rel=0.05)
    play = driver.find_element(By.CSS_SELECTOR, "#held-out-samples .play")
    play.click()
    seen = {frame.get_property("value")}
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        seen.add(frame.get_property("value"))
    assert len(seen) >= 3
    play.click()
    assert play.text == "Play"


def test_hostile_text_stays_text(show: Show, tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", prompts=HOSTILE, label=LABEL, metrics={f"loss/{LABEL}": 1.0})
    plan = json.loads((folder / "plan.json").read_text())
    plan["spec"]["reward"][0]["label"] = LABEL
    plan["versions"][HOSTILE[0]] = HOSTILE[2]
    (folder / "plan.json").write_text(json.dumps(plan))
    driver = show(folder)
    driver.find_element(By.CSS_SELECTOR, "#held-out-samples .step").send_keys(Keys.ARROW_LEFT)
    ActionChains(driver).move_to_element(driver.find_element(By.TAG_NAME, "svg")).perform()
    assert driver.execute_script("return window.hacked === undefined")
    assert driver.execute_script("return document.scripts.length") == 1
    handlers = "return [...document.all].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length"
    assert driver.execute_script(handlers) == 0
    prompts = driver.execute_script(
        "return [...document.querySelectorAll('#held-out-samples .prompt')].map(e => e.textContent)"
    )
    assert prompts == [prompt.replace("\0", "") for prompt in HOSTILE]
    charts = [e.text for e in driver.find_elements(By.CSS_SELECTOR, ".chart figcaption")]
    assert f"loss/{LABEL}" in charts
    assert f"reward/{LABEL}" in charts


def test_runs_are_laid_over_each_other(show: Show, tmp_path: Path) -> None:
    one, two = lay_run(tmp_path / "one"), lay_run(tmp_path / "two", epochs=12)
    driver = show(one, two)
    chart = driver.find_element(By.CSS_SELECTOR, "#reward .chart")
    assert [e.get_attribute("data-label") for e in chart.find_elements(By.CSS_SELECTOR, ".curve")] == ["one", "two"]
    assert chart.find_element(By.CSS_SELECTOR, ".keys").text.split() == ["one", "two"]
    assert "run.epochs 6 12" in driver.find_element(By.ID, "overview").text
    driver.find_element(By.CSS_SELECTOR, "#held-out-samples .step").send_keys(Keys.END)
    epochs = [e.text for e in visible(driver, "held-out-samples", ".epoch")]
    assert epochs == ["epoch 6", "epoch 12"] * len(PROMPTS)


def test_charts_tell_their_numbers(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run"))
    svg = driver.find_element(By.CSS_SELECTOR, "#held-out-evaluation svg")
    ActionChains(driver).move_to_element_with_offset(svg, int(svg.size["width"] / 2) - 12, 0).perform()
    assert driver.find_element(By.CSS_SELECTOR, "#held-out-evaluation .told").text == "epoch 6\nrun  0.62"


@pytest.mark.parametrize("width", [400, 1240])
def test_nothing_sticks_out(show: Show, tmp_path: Path, width: int) -> None:
    long = "x" * 300
    driver = show(lay_run(tmp_path / "run", prompts=[long, "words " * 80]), lay_run(tmp_path / ("long-" * 20)))
    resize(driver, width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_real_run(show: Show, run: Callable[..., Path]) -> None:
    folder = run("real")
    driver = show(folder)
    assert "2 of 2" in driver.find_element(By.ID, "overview").text
    assert len(visible(driver, "held-out-samples", "img")) == 3
    assert len(driver.find_elements(By.CSS_SELECTOR, "#loss-and-updates .chart")) >= 4
