"""Reports in a real browser: they render, step, play, and take no text for anything else."""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import browser, drawn, lines, needs_chromium, point, prefer, resize, serious, slide, titles, until, visible
from flowfactory import main
from runs import PROMPTS, colour, lay_run
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

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


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A page about runs laid with these options, by their names; the same one for the same options."""

    @functools.cache
    def made(**runs: int) -> Path:
        folder = tmp_path_factory.mktemp("page")
        folders = [lay_run(folder / name, **({"frames": n} if n < 6 else {"epochs": n})) for name, n in runs.items()]
        assert main(["report", *map(str, folders), "--out", str(folder / "page.html")]) == 0
        return folder / "page.html"

    return made


@pytest.fixture
def show(chromium: webdriver.Chrome, pages: Callable[..., Path], tmp_path: Path) -> Iterator[Show]:
    """Open the page about runs; whatever the browser complains of fails the test.

    Folders of runs, or names with a number: of epochs, or of frames where it is under 6.
    """

    def show(*folders: Path, **runs: int) -> webdriver.Chrome:
        page = pages(**runs) if runs else tmp_path / "page.html"
        assert runs or main(["report", *map(str, folders), "--out", str(page)]) == 0
        prefer(chromium, "light")
        resize(chromium, 1240)
        chromium.get(page.as_uri())
        return chromium

    yield show
    assert chromium.get_log("browser") == []


def test_a_page_needs_nothing_but_itself(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run"))
    drawn(driver, "reward")
    assert driver.title == "Report: run"
    assert driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    text = (tmp_path / "page.html").read_text()
    assert re.findall(r"https?://[^\s\"'<]+", text) == []
    assert "default-src 'none'" in text
    headings = [h.text for h in driver.find_elements(By.TAG_NAME, "h2")]
    assert headings == [
        "Overview", "Reward", "Held-out evaluation", "Held-out samples", "Loss and updates", "Groups and samples",
        "Time", "Training samples: run", "Plan and versions",
    ]  # fmt: skip
    names = {path.name for path in (tmp_path / "page-curves").iterdir()}
    assert names >= {"reward.png", "reward.pdf", "held-out-evaluation.png", "held-out-evaluation.pdf"}


def test_the_plan_and_versions_are_told(show: Show) -> None:
    text = show(run=6).find_element(By.ID, "plan").text
    assert "samples 16 samples per epoch: 4 prompts x groups of 4" in text
    assert "torch 2.13.0" in text


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark(show: Show, scheme: str, dark: bool) -> None:
    driver = show(run=6)
    prefer(driver, scheme)
    paper, ink = (
        sum(map(int, re.findall(r"\d+", driver.find_element(By.TAG_NAME, "body").value_of_css_property(name))[:3])) / 3
        for name in ("background-color", "color")
    )
    assert (paper < ink) == dark
    assert abs(paper - ink) > 150


def test_the_slider_steps_through_epochs(show: Show) -> None:
    driver = show(run=6)
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


def test_the_first_can_stay_in_sight(show: Show) -> None:
    driver = show(run=6)
    driver.find_element(By.CSS_SELECTOR, "#held-out-samples .beside").click()
    assert [e.text for e in visible(driver, "held-out-samples", ".epoch")] == ["epoch 0", "epoch 6"] * len(PROMPTS)


def test_videos_play(show: Show) -> None:
    driver = show(film=5)
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
    assert play.text == "Play video"
    film.click()
    viewer = driver.find_element(By.XPATH, "//dialog[@open]//button[text()='Play video']")
    at = frame.get_property("value")
    viewer.click()
    until(driver, lambda: frame.get_property("value") != at)
    ActionChains(driver).send_keys("v").perform()
    assert (viewer.text, play.text) == ("Play video",) * 2


def test_a_run_of_few_epochs_has_no_marks_between_them(show: Show) -> None:
    driver = show(run=6)
    plot = drawn(driver, "held-out-evaluation")
    marks = [e.get_attribute("textContent") for e in plot.find_elements(By.CSS_SELECTOR, ".xtick text")]
    assert marks == [str(epoch) for epoch in range(7)]


def test_a_prompt_above_a_training_sample_takes_the_lines_it_needs(show: Show) -> None:
    """And pictures lie side by side, whatever their prompts."""
    driver = show(run=6)
    heights = {e.size["height"] for e in visible(driver, "training-samples-run", ".prompt")}
    tops = {e.rect["y"] for e in visible(driver, "training-samples-run", ".window")}
    assert len(heights) == len(tops) == 1
    (height,) = heights
    assert height < 25


def test_pictures_lie_side_by_side_however_long_the_names_and_changes_under_them(show: Show, tmp_path: Path) -> None:
    label = "jpeg-compressibility"
    folder = lay_run(tmp_path / "run", label=label, prompts=["short", "a prompt of three lines " * 3, "short again"])
    table = folder / "samples" / "eval-0006" / "samples.jsonl"
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for line, value in zip(lines, (0.5 + 1e-5, -12.3456, 7.0), strict=True):
        line["scores"] = {label: value}
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    driver = show(folder)
    assert len({e.rect["y"] for e in visible(driver, "held-out-samples", ".window")}) == 1
    name, value = (visible(driver, "held-out-samples", f".score > {what}")[0].rect for what in ("span", "b"))
    assert value["y"] >= name["y"] + name["height"]


def test_reasons_can_be_read_on_a_phone(show: Show) -> None:
    driver = show(run=6)
    resize(driver, 390)
    reason = driver.find_element(By.CSS_SELECTOR, "#plan td:nth-child(3)")
    assert reason.size["width"] > 150
    visible(driver, "held-out-samples", ".window")[0].click()
    close = driver.find_element(By.XPATH, "//dialog[@open]//button[text()='Close']")
    assert close.rect["x"] + close.rect["width"] <= driver.execute_script("return document.documentElement.clientWidth")


def test_hostile_text_stays_text(show: Show, tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", prompts=HOSTILE, label=LABEL, metrics={f"loss/{LABEL}": 1.0})
    plan = json.loads((folder / "plan.json").read_text())
    plan["spec"]["reward"][0]["label"] = LABEL
    plan["versions"][HOSTILE[0]] = HOSTILE[2]
    (folder / "plan.json").write_text(json.dumps(plan))
    driver = show(folder)
    driver.find_element(By.CSS_SELECTOR, "#held-out-samples .step").send_keys(Keys.ARROW_LEFT)
    point(driver, drawn(driver, "reward"))
    assert LABEL in driver.find_element(By.CSS_SELECTOR, "#reward .told").text + "".join(titles(driver))
    visible(driver, "held-out-samples", ".window")[0].click()
    assert driver.find_element(By.CSS_SELECTOR, "dialog .whole").text
    assert driver.execute_script("return window.hacked === undefined")
    assert driver.execute_script("return document.querySelectorAll('script:not([type])').length") == 1
    handlers = "return [...document.all].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length"
    assert driver.execute_script(handlers) == 0
    prompts = driver.execute_script(
        "return [...document.querySelectorAll('#held-out-samples .card > .prompt')].map(e => e.textContent)"
    )
    assert prompts == [*HOSTILE]
    charts = titles(driver)
    assert f"loss/{LABEL}" in charts
    assert f"reward/{LABEL}" in charts


def test_runs_are_laid_over_each_other(show: Show) -> None:
    driver = show(one=6, two=12)
    plot = drawn(driver, "reward")
    chart = driver.find_element(By.CSS_SELECTOR, "#reward .chart")
    assert chart.find_element(By.CSS_SELECTOR, ".keys").text.split() == ["one", "two"]
    assert lines(driver, plot) == [[*range(1, 7)], [*range(1, 13)]]
    assert "run.epochs 6 12" in driver.find_element(By.ID, "overview").text
    driver.find_element(By.CSS_SELECTOR, "#held-out-samples .step").send_keys(Keys.END)
    epochs = [e.text for e in visible(driver, "held-out-samples", ".epoch")]
    assert epochs == ["epoch 6", "epoch 12"] * len(PROMPTS)


def test_charts_tell_their_numbers(show: Show) -> None:
    driver = show(run=6)
    plot = drawn(driver, "held-out-evaluation")
    point(driver, plot, 0.97)
    told = driver.find_element(By.CSS_SELECTOR, "#held-out-evaluation .told")
    assert told.text.split("\n") == ["epoch 6", "run 0.62 0.52 … 0.72 best"]
    assert "run: 0.5 at epoch 0, 0.62 at epoch 6" in str(plot.get_attribute("aria-label"))


def test_charts_are_read_with_the_keyboard(show: Show) -> None:
    driver = show(run=6)
    plot = drawn(driver, "held-out-evaluation")
    driver.execute_script("arguments[0].focus()", plot)
    told = driver.find_element(By.CSS_SELECTOR, "#held-out-evaluation .told")
    for key, epoch in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 2), (Keys.END, 6), (Keys.ARROW_LEFT, 4)):
        plot.send_keys(key)
        assert told.text.startswith(f"epoch {epoch}\n")


def test_a_run_is_hidden_in_all_charts_by_its_name(show: Show) -> None:
    driver = show(one=6, two=12)
    plots = [drawn(driver, name) for name in ("reward", "held-out-evaluation")]
    driver.find_element(By.CSS_SELECTOR, "#reward .keys .key").click()
    until(driver, lambda: [len(lines(driver, plot)) for plot in plots] == [1, 1])
    pressed = [e.get_attribute("aria-pressed") for e in driver.find_elements(By.CSS_SELECTOR, "#charts-bar .key")]
    assert pressed == ["false", "true"]
    driver.find_element(By.CSS_SELECTOR, "#charts-bar .key").click()
    until(driver, lambda: [len(lines(driver, plot)) for plot in plots] == [2, 2])


def test_a_part_of_a_stack_is_hidden_by_its_name(show: Show) -> None:
    driver = show(run=6)
    driver.find_element(By.CSS_SELECTOR, "#time summary").click()
    plot = drawn(driver, "time")
    assert len(lines(driver, plot)) == 3
    driver.find_elements(By.CSS_SELECTOR, "#time .keys .key")[1].click()
    until(driver, lambda: len(lines(driver, plot)) == 2)


def test_curves_are_smoothed_as_tensorboard_does(show: Show) -> None:
    driver = show(run=6)
    plot = drawn(driver, "reward")
    slide(driver, driver.find_element(By.CSS_SELECTOR, "#charts-bar .smooth"), 0.5)
    raw = [0.4 + epoch / 40 + 0.03 * math.sin(epoch) for epoch in range(1, 7)]
    last, smooth = 0.0, []
    for count, value in enumerate(raw, 1):
        last = 0.5 * last + 0.5 * value
        smooth.append(last / (1 - 0.5**count))
    until(driver, lambda: lines(driver, plot, "y")[0] == pytest.approx(smooth, rel=1e-4))


def test_a_logarithmic_scale_and_the_spread(show: Show) -> None:
    driver = show(run=6)
    plot = drawn(driver, "reward")
    scale, count = "return arguments[0].layout.yaxis.type", "return arguments[0].data.length"
    assert (driver.execute_script(scale, plot), driver.execute_script(count, plot)) == ("linear", 2)
    driver.find_element(By.CSS_SELECTOR, "#charts-bar .log").click()
    until(driver, lambda: driver.execute_script(scale, plot) == "log")
    driver.find_element(By.CSS_SELECTOR, "#charts-bar .spread").click()
    until(driver, lambda: driver.execute_script(count, plot) == 1)


def test_charts_zoom_and_come_back(show: Show) -> None:
    driver = show(run=6)
    plot = drawn(driver, "reward")
    width = "const [low, high] = arguments[0].layout.xaxis.range; return high - low"
    before = driver.execute_script(width, plot)
    ActionChains(driver).move_to_element(plot).click_and_hold().move_by_offset(150, 0).release().perform()
    until(driver, lambda: driver.execute_script(width, plot) < before / 2)
    button = driver.find_element(By.XPATH, "//*[@id='reward']//button[text()='Zoom out']")
    button.click()
    until(driver, lambda: driver.execute_script(width, plot) == pytest.approx(before))
    assert not button.is_displayed()


def test_a_chart_fills_the_page_when_asked(show: Show) -> None:
    driver = show(run=6)
    small = drawn(driver, "reward")
    driver.find_element(By.XPATH, "//*[@id='reward']//button[text()='Enlarge']").click()
    large = driver.find_element(By.CSS_SELECTOR, "dialog .plot")
    until(driver, lambda: lines(driver, large) == lines(driver, small))
    assert large.size["height"] > 1.5 * small.size["height"]
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "dialog .plot") == [])


def test_charts_are_found_by_name(show: Show) -> None:
    driver = show(run=6)
    query = driver.find_element(By.CSS_SELECTOR, "#charts-bar .query")
    query.send_keys("RATIO")
    seen = [e.text for e in driver.find_elements(By.CSS_SELECTOR, ".chart h3") if e.is_displayed()]
    assert seen == ["train/ratio"]
    query.send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    assert driver.find_element(By.ID, "reward").is_displayed()


def cards(driver: webdriver.Chrome) -> list[str]:
    return [e.text for e in visible(driver, "held-out-samples", ".card h3")]


@pytest.mark.parametrize(
    ("order", "places"),
    [("gain", [2, 1, 0]), ("loss", [0, 1, 2]), ("high", [2, 1, 0]), ("low", [0, 1, 2]), ("", [0, 1, 2])],
)
def test_samples_are_ordered_by_their_change(show: Show, order: str, places: list[int]) -> None:
    driver = show(run=6)
    Select(driver.find_element(By.CSS_SELECTOR, "#held-out-samples .order")).select_by_value(order)
    assert cards(driver) == [PROMPTS[place] for place in places]


def test_samples_are_found_by_words_and_by_scores(show: Show) -> None:
    driver = show(run=6)
    query, least = (driver.find_element(By.CSS_SELECTOR, f"#held-out-samples .{name}") for name in ("query", "least"))
    query.send_keys("squares blue")
    assert cards(driver) == [PROMPTS[1]]
    query.send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    least.send_keys("0.6")
    assert cards(driver) == [PROMPTS[1], PROMPTS[2]]
    least.send_keys("9")
    assert cards(driver) == []
    assert "No sample is like that." in driver.find_element(By.ID, "held-out-samples").text


def test_epochs_play(show: Show) -> None:
    driver = show(run=6)
    play = driver.find_element(By.CSS_SELECTOR, "#held-out-samples .epochs")
    output = driver.find_element(By.CSS_SELECTOR, "#held-out-samples output")
    play.click()
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.add(output.text)
        return len(seen) == 4

    until(driver, all_seen)
    assert play.text == "Pause epochs"
    play.click()
    assert play.text == "Play epochs"


def test_a_sample_is_enlarged_compared_and_linked(show: Show, tmp_path: Path) -> None:
    driver = show(lay_run(tmp_path / "run"))
    small = visible(driver, "held-out-samples", ".window")[1]
    small.click()
    dialog = driver.find_element(By.CSS_SELECTOR, "dialog[open]")
    assert dialog.find_element(By.CSS_SELECTOR, ".whole").text == PROMPTS[1]
    before, after = (
        dialog.find_element(By.CSS_SELECTOR, f".stage .window{end} img") for end in (".first", ":not(.first)")
    )
    assert after.size["width"] > 2 * small.size["width"]
    assert [driver.execute_script(PIXEL, image) for image in (before, after)] == [
        list(colour(epoch, 1, 0)) for epoch in (0, 6)
    ]
    first = dialog.find_element(By.CSS_SELECTOR, ".window.first")
    clip = "return getComputedStyle(arguments[0]).clipPath"
    assert driver.execute_script(clip, first) == "inset(0px 100% 0px 0px)"
    slide(driver, dialog.find_element(By.CSS_SELECTOR, ".wipe"), 50)
    assert driver.execute_script(clip, first) == "inset(0px 50% 0px 0px)"
    (link,) = dialog.find_elements(By.CSS_SELECTOR, ".links a")
    assert str(link.get_attribute("href")) == (tmp_path / "run/samples/eval-0006/0001.png").as_uri()


def test_samples_are_walked_with_the_keyboard(show: Show) -> None:
    driver = show(run=6)
    button = visible(driver, "held-out-samples", ".window")[0]
    driver.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    dialog = driver.find_element(By.CSS_SELECTOR, "dialog[open]")
    whole, output = dialog.find_element(By.CSS_SELECTOR, ".whole"), dialog.find_element(By.TAG_NAME, "output")
    assert (whole.text, output.text) == (PROMPTS[0], "6")
    for key, then in (
        (Keys.ARROW_DOWN, (PROMPTS[1], "6")),
        (Keys.ARROW_LEFT, (PROMPTS[1], "4")),
        (Keys.ARROW_UP, (PROMPTS[0], "4")),
        (Keys.ARROW_UP, (PROMPTS[2], "4")),
        (Keys.ARROW_RIGHT, (PROMPTS[2], "6")),
    ):
        ActionChains(driver).send_keys(key).perform()
        assert (whole.text, output.text) == then
    ActionChains(driver).send_keys("b").perform()
    assert dialog.find_element(By.CSS_SELECTOR, ".wipe").get_property("value") == "100"
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert not dialog.is_displayed()
    assert driver.execute_script("return document.activeElement === arguments[0]", button)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1240), ("dark", 400)])
def test_axe_finds_nothing_serious(show: Show, scheme: str, width: int) -> None:
    driver = show(one=6, film=5)
    prefer(driver, scheme)
    resize(driver, width)
    drawn(driver, "reward")
    for folded in driver.find_elements(By.CSS_SELECTOR, "details"):
        driver.execute_script("arguments[0].open = true", folded)
    assert serious(driver) == []
    visible(driver, "held-out-samples", ".window")[0].click()
    assert serious(driver) == []


def test_nothing_sticks_out(show: Show, tmp_path: Path) -> None:
    long = "x" * 300
    driver = show(lay_run(tmp_path / "run", prompts=[long, "words " * 80]), lay_run(tmp_path / ("long-" * 20)))
    for width in (400, 1240):
        resize(driver, width)
        until(driver, lambda width=width: driver.execute_script("return document.documentElement.scrollWidth") <= width)
