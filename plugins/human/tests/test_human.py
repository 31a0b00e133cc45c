"""People, played by a real browser: graded, compared, absent, with hostile prompts, by the keyboard alone."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import browser, needs_chromium, prefer, serious
from flowfactory import RewardError, Score
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_human import HumanGroupSpec, HumanSpec, desk
from flowfactory_plugin_human.desk import Desk, NoAnswer, Task
from flowfactory_plugin_human.human import Human, HumanGroup, places
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CPU = torch.device("cpu")
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title="owned"</script> </p>"\'{{7*7}} \u202eelbon'


def samples(*levels: float, prompt: str = "a bright room", **row: Any) -> list[Sample]:
    return [Sample(Row(prompt, **row), torch.full((3, 16, 16), level), 0, i) for i, level in enumerate(levels)]


def loaded(reward: Any) -> Any:
    reward.load(CPU, torch.float32, lambda key, factory: factory())
    return reward


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def made() -> Iterator[Callable[..., Any]]:
    """Rewards with pages of their own."""
    running: list[Any] = []

    def make(cls: Any, **keys: Any) -> Any:
        spec = HumanSpec if cls is Human else HumanGroupSpec
        running.append(loaded(cls(spec(port=0, **{"patience": 30.0, **keys}))))
        return running[-1]

    yield make
    for reward in running:
        reward.page.server.close()


@pytest.fixture
def asking() -> Iterator[Callable[[Any, Sequence[Sample]], Future[Sequence[Score]]]]:
    with ThreadPoolExecutor(2) as pool:
        yield lambda reward, some: pool.submit(reward.score, some)


def until(driver: webdriver.Chrome, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(driver, 10, 0.05).until(lambda _: condition())


def shown(driver: webdriver.Chrome, prompt: str) -> None:
    until(driver, lambda: driver.find_element(By.ID, "prompt").text == prompt)


def press(driver: webdriver.Chrome, keys: str) -> None:
    driver.switch_to.active_element.send_keys(keys)


@needs_chromium
def test_grades_by_mouse_and_by_keyboard(person: Any, made: Any, asking: Any) -> None:
    reward = made(Human, question="Bright enough?")
    found = asking(reward, [*samples(0.1, prompt="first"), *samples(0.9, prompt="second"), *samples(0.5, prompt="3")])
    person.get(reward.page.server.url)
    shown(person, "first")
    assert person.find_element(By.ID, "question").text == "Bright enough?"
    assert person.find_element(By.ID, "status").text == "3 questions"
    picture = person.find_element(By.CSS_SELECTOR, "#shown img")
    until(person, lambda: picture.get_property("naturalWidth") == 16)
    person.find_element(By.XPATH, "//button[text()='1 (worst)']").click()
    shown(person, "second")
    press(person, "4")
    shown(person, "3")
    press(person, "s")
    assert found.result(10) == [0.0, 0.75, None]
    until(person, lambda: person.find_element(By.ID, "status").text == "Nothing to judge just now.")


@needs_chromium
def test_by_tabs_and_enter_alone(person: Any, made: Any, asking: Any) -> None:
    reward = made(Human, levels=3)
    found = asking(reward, samples(0.5))
    person.get(reward.page.server.url)
    shown(person, "a bright room")
    assert person.switch_to.active_element.get_attribute("id") == "question"  # a reader reads it out
    press(person, Keys.TAB * 3)
    assert person.switch_to.active_element.text == "3 (best)"
    press(person, Keys.ENTER)
    assert found.result(10) == [1.0]


@needs_chromium
def test_a_group_is_put_in_order_and_nobody_knows_which_is_which(person: Any, made: Any, asking: Any) -> None:
    reward = made(HumanGroup)
    group = samples(0.2, 0.8, 0.6, 0.0)
    found = asking(reward, group)
    person.get(reward.page.server.url)
    shown(person, "a bright room")
    bright = levels(person)
    order = sorted(range(4), key=lambda i: -bright[i])
    person.find_elements(By.CSS_SELECTOR, "#shown button")[order[3]].click()  # a slip
    press(person, "b")
    until(person, lambda: not person.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
    press(person, str(order[0] + 1))
    until(person, lambda: person.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
    person.find_elements(By.CSS_SELECTOR, "#shown button")[order[1]].click()
    press(person, "0")
    assert found.result(10) == pytest.approx([1 / 6, 1.0, 2 / 3, 1 / 6])


def levels(driver: webdriver.Chrome) -> list[float]:
    """How bright the pictures are, in the order of the page."""
    read = """
        const images = [...document.querySelectorAll("#shown img")];
        if (images.some((image) => !image.naturalWidth)) return null;
        return images.map((image) => {
            const canvas = document.createElement("canvas");
            const drawn = canvas.getContext("2d");
            drawn.drawImage(image, 0, 0);
            return drawn.getImageData(1, 1, 1, 1).data[0];
        });
    """
    found: list[float] = until(driver, lambda: driver.execute_script(read))
    return found


@needs_chromium
def test_hostile_prompts_and_questions_are_text(person: Any, made: Any, asking: Any) -> None:
    reward = made(Human, question=HOSTILE)
    found = asking(reward, samples(0.5, prompt=HOSTILE))
    person.get_log("browser")  # what earlier pages said when their servers went
    person.get(reward.page.server.url)
    until(person, lambda: person.find_element(By.ID, "prompt").get_property("textContent") == HOSTILE)
    assert person.find_element(By.ID, "question").get_property("textContent") == HOSTILE
    assert not person.find_elements(By.CSS_SELECTOR, "#prompt *, #question *")
    assert person.title == "flowfactory asks"
    press(person, "5")
    assert found.result(10) == [1.0]
    assert [line for line in person.get_log("browser") if line["level"] == "SEVERE"] == []


@needs_chromium
@pytest.mark.parametrize("cls", [Human, HumanGroup])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(person: Any, made: Any, asking: Any, cls: Any, scheme: str) -> None:
    reward = made(cls)
    prefer(person, scheme)
    found = asking(reward, samples(0.2, 0.8))
    person.get(reward.page.server.url)
    shown(person, "a bright room")
    assert serious(person) == []
    for _ in range(2 if cls is Human else 1):
        task, _ = reward.page.desk.next(person.execute_script("return sessionStorage.getItem('page')"), 5)
        assert reward.page.desk.answer(task.name, None)
    assert found.result(10) == [None, None]


@needs_chromium
def test_an_edit_and_a_video_are_shown(person: Any, made: Any, asking: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), "teal").save(tmp_path / "given.png")
    video = torch.rand(3, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    reward = made(Human)
    found = asking(reward, [Sample(Row("turn", images=(tmp_path / "given.png",)), video, 0, 0)])
    person.get(reward.page.server.url)
    sizes = "return [...document.images].map((one) => [one.alt, one.naturalWidth, one.naturalHeight])"
    expected = [["given picture 1", 8, 4], ["what was made", 12, 16]]
    until(person, lambda: person.execute_script(sizes) == expected)
    press(person, "1")
    assert found.result(10) == [0.0]


@pytest.mark.parametrize("cls", [Human, HumanGroup])
def test_the_run_waits_as_told_and_goes_on_without_or_fails(made: Any, cls: Any) -> None:
    before = time.monotonic()
    with pytest.raises(RewardError, match=r"of \d questions were not answered within 0.2 s; the page is http://127"):
        made(cls, patience=0.2).score(samples(0.1, 0.9))
    assert time.monotonic() - before >= 0.2
    reward = made(cls, patience=0.2, absent="skip")
    assert reward.score(samples(0.1, 0.9)) == [None, None]
    assert reward.page.desk.next("anybody") == (None, 0)


def test_what_is_answered_in_time_counts_where_the_rest_is_skipped(made: Any, asking: Any) -> None:
    reward = made(Human, patience=0.5, absent="skip")
    found = asking(reward, samples(0.1, 0.9))
    task, waiting = reward.page.desk.next("me", 5)
    assert waiting == 2
    assert reward.page.desk.answer(task.name, 4)
    assert found.result(10) == [1.0, None]
    assert not reward.page.desk.answer(task.name, 4)


def test_places() -> None:
    assert places(2, [1]) == [0.0, 1.0]
    assert places(2, []) == [0.5, 0.5]
    assert places(4, [2, 0]) == pytest.approx([2 / 3, 1 / 6, 1.0, 1 / 6])
    assert sum(places(5, [3])) == pytest.approx(2.5)


def test_a_question_is_for_one_page_until_that_has_had_it_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    own, tasks = Desk(), [Task("grade", "?", str(n), [], [b""], 3) for n in range(2)]
    asked = threading.Thread(target=own.ask, args=(tasks, 10.0))
    asked.start()
    assert own.next("one", 5)[0] is tasks[0]
    assert own.next("one")[0] is tasks[0]
    assert own.next("two")[0] is tasks[1]
    assert own.next("three")[0] is None
    monkeypatch.setattr(desk, "LEASE", -1.0)
    assert own.next("three")[0] is tasks[0]
    for task in tasks:
        assert own.answer(task.name, None)
    asked.join(10)
    assert not asked.is_alive()


@pytest.mark.parametrize("answer", [5, -1, True, 1.0, "1", [0]])
def test_what_is_no_grade_is_refused(answer: Any) -> None:
    with pytest.raises(NoAnswer):
        Task("grade", "?", "", [], [b""], 5).check(answer)


@pytest.mark.parametrize("answer", [[0, 0], [2], [-1], [True], 0, {}, "01"])
def test_what_is_no_order_is_refused(answer: Any) -> None:
    with pytest.raises(NoAnswer):
        Task("order", "?", "", [], [b"", b""]).check(answer)


def test_only_who_knows_the_address_is_answered(made: Any, asking: Any) -> None:
    reward = made(Human)
    found, url = asking(reward, samples(0.5)), reward.page.server.url
    task = json.load(urllib.request.urlopen(f"{url}task?page=me"))["task"]
    body = json.dumps({"name": task["name"], "answer": 4}).encode()
    right, root = {"Content-Type": "application/json"}, re.sub(r"[^/]+/$", "", url)

    def status(address: str, data: bytes | None, head: dict[str, str]) -> int:
        try:
            return int(urllib.request.urlopen(urllib.request.Request(address, data, head)).status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(root, None, {}) == status(f"{root}wrong/task", None, {}) == 404
    assert status(f"{root}wrong/answer", body, right) == 404
    assert status(f"{url}answer", body, {"Content-Type": "text/plain"}) == 404  # as a form elsewhere might send it
    assert status(f"{url}answer", body, right | {"Host": "evil.example:80"}) == 404
    assert status(f"{url}answer", b"[" * 9000, right) == status(f"{url}answer", b'{"name": 1}', right) == 400
    assert status(f"{url}answer", b" " * 20_000, right) == 413
    assert status(f"{url}{task['name']}/shown/7", None, {}) == 404
    assert status(f"{url}../../__init__.py", None, {}) == 404
    assert not found.done()
    assert status(f"{url}answer", body, right) == 200
    assert found.result(10) == [1.0]


def test_a_port_that_is_taken_is_told(made: Any) -> None:
    port = made(Human).page.server._server.server_port
    with pytest.raises(RewardError, match=f"port {port} for the page cannot be had"):
        loaded(Human(HumanSpec(port=port)))


def test_tables_of_one_port_share_a_page() -> None:
    pages: dict[str, Any] = {}
    for cls, spec in ((Human, HumanSpec(port=0)), (HumanGroup, HumanGroupSpec(port=0))):
        cls(spec).load(
            CPU,
            torch.float32,
            lambda key, factory: pages.setdefault(key, None) or pages.update({key: factory()}) or pages[key],
        )
    (page,) = pages.values()
    page.server.close()


def test_the_example_is_a_sound_spec() -> None:
    (entry, _) = load_spec(Path(__file__).parents[1] / "examples" / "shapes-human.toml", Registry()).rewards
    assert entry.timeout > entry.spec.patience
