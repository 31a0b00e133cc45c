"""What a person sees, on a terminal and in a log file."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from flowfactory.cli import ui as ui_module
from flowfactory.cli.ui import Ui, epoch_text

METRICS = {
    "reward/shapes/mean": 0.5123,
    "reward/shapes/std": 0.1,
    "reward/zero_std_groups": 0.25,
    "eval/shapes/mean": 0.61,
    "loss/policy": 0.00001234,
    "lr": 1e-4,
    "time/sample": 8.04,
    "time/train": 4.26,
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_an_epoch_in_one_line() -> None:
    text = epoch_text(3, 60, METRICS)
    assert text == "epoch 3/60  reward 0.512  eval 0.610  loss/policy 1.23e-05  12.3 s (sample 8.0, train 4.3)"


def test_several_rewards_are_told_apart() -> None:
    assert epoch_text(1, 2, {"reward/a/mean": 1.0, "reward/b/mean": 0.0}) == "epoch 1/2  reward a 1.000  reward b 0.000"


def test_the_weighted_sum_comes_first_and_what_is_watched_is_marked() -> None:
    metrics = {"reward/a/mean": 1.0, "reward/b/mean": 0.25, "reward/score": 2.0, "eval/a/mean": 3.0, "eval/score": 6.0}
    said = "reward score 2.000  reward a 1.000  reward b 0.250 (watched only)  eval score 6.000  eval 3.000"
    assert epoch_text(1, 2, metrics, {"reward/b"}) == f"epoch 1/2  {said}"
    alone = {"reward/a/mean": 1.0, "reward/score": 1.0, "reward/a/part/mean": 9.0}
    assert epoch_text(1, 2, alone) == "epoch 1/2  reward 1.000"


def test_a_log_has_plain_lines() -> None:
    err, out = io.StringIO(), io.StringIO()
    ui = Ui(err, out)
    with ui.phase("sampling", total=4, unit="samples") as phase:
        phase.advance(4)
        phase.note(reward=0.5)
    ui.epoch_line(1, 2, METRICS)
    ui.say("[bold]not markup[/bold] :smile: " + "long " * 60)
    ui.error("wrong")
    ui.data("data")
    ui.rows(("a", "b"), [("1", "two"), ("three", "4")])
    assert err.getvalue().splitlines() == [
        epoch_text(1, 2, METRICS),
        "[bold]not markup[/bold] :smile: " + "long " * 60,
        "wrong",
    ]
    assert "\x1b" not in err.getvalue() + out.getvalue()
    assert out.getvalue() == "data\na      b\n1      two\nthree  4\n"


def test_a_terminal_has_bars(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    err = Terminal()
    ui = Ui(err, io.StringIO())
    with ui.phase("sampling", total=4, unit="samples") as phase:
        phase.advance(1)
        phase.advance(3)
        phase.note(reward=0.5)
    with ui.phase("loading the model"):
        pass
    shown = err.getvalue()
    assert "sampling" in shown
    assert "4/4" in shown
    assert "samples/s" in shown
    assert "reward 0.500" in shown
    assert "loading the model" in shown


def test_where_there_is_no_terminal_a_line_says_now_and_then_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_module, "EVERY", 0.02)
    err = io.StringIO()
    ui = Ui(err, io.StringIO())
    with ui.phase("encoding prompts", total=48, unit="prompts") as phase:
        phase.advance(12)
        time.sleep(0.1)
    with ui.phase("loading the model"):
        time.sleep(0.1)
    lines = err.getvalue().splitlines()
    assert set(lines) == {"encoding prompts: 12 of 48 prompts", "loading the model"}
    time.sleep(0.05)
    assert err.getvalue().splitlines() == lines


def test_how_long_the_run_takes_is_said_once_an_epoch_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = ui_module._Pace()
    said = []
    for epoch, seconds in ((0, 100.0), (1, 700.0), (2, 1300.0), (21, 12700.0)):
        now[0] = seconds
        pace.reach(epoch, 21)
        said.append(pace.left())
    assert said == ["", "(run: about 3 h 20 min left)", "(run: about 3 h 10 min left)", ""]


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_a_bar_takes_one_line_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    err = Terminal()
    ui = Ui(err, io.StringIO())
    with ui.phase("epoch 12/60: sampling", total=1152, unit="samples") as phase:
        phase.advance(8)
        phase.note(shapes=0.512, jpeg=-1.081)
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\n\r]", err.getvalue())]
    assert 0 < max(map(len, shown)) <= columns
    assert err.getvalue().count("\x1b[1A") == 1  # at the end, when it goes away


def test_other_processes_are_quiet() -> None:
    err = io.StringIO()
    ui = Ui(err, io.StringIO(), quiet=True)
    ui.say("hello")
    ui.epoch_line(1, 2, METRICS)
    assert err.getvalue() == ""
    ui.error("but not about errors")
    assert err.getvalue() == "but not about errors\n"


HOSTILE = "\x1b]0;x\x07\x1b[2J\x9b31m\r\u202e"


def test_nothing_that_a_terminal_obeys_gets_through() -> None:
    for is_terminal in (False, True):
        make = Terminal if is_terminal else io.StringIO
        err, out = make(), make()
        ui = Ui(err, out)
        ui.say(HOSTILE)
        ui.error(HOSTILE)
        ui.trace(HOSTILE)
        ui.data(HOSTILE)
        ui.rows(("head",), [(HOSTILE,)])
        with ui.phase(HOSTILE, 3, "samples") as bar:
            bar.advance()
            bar.note(**{HOSTILE: 1.0})
        text = err.getvalue() + out.getvalue()
        assert r"\x1b]0;x\x07\x1b[2J\x9b31m" in text.replace("\n", "")
        assert "\x1b]0;" not in text
        assert not {"\x07", "\x9b", "\u202e"} & set(text)
        if not is_terminal:
            assert not {"\x1b", "\r"} & set(text)


def test_json_stays_json() -> None:
    out = io.StringIO()
    Ui(io.StringIO(), out).json({"x": HOSTILE + "\x7f\u2028"})
    assert json.loads(out.getvalue()) == {"x": HOSTILE + "\x7f\u2028"}
    assert not {"\x1b", "\x7f"} & set(out.getvalue())
