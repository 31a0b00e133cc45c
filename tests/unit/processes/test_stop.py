"""Being asked to stop: by which signals, and what follows in each phase."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from flowfactory.processes import stop as module
from flowfactory.processes.stop import Stopped, listening


class Alone:
    accompanied = False

    """A run of one process."""

    def any(self, flag: bool) -> bool:
        return flag

    def told(self, flag: bool) -> bool:
        return flag

    told_together = told


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "AGAIN", 0.1)
    before = {number: signal.getsignal(number) for number in module.NUMBERS}
    yield
    assert {number: signal.getsignal(number) for number in module.NUMBERS} == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated"), (signal.SIGINT, "interrupted")],
)
def test_a_signal_is_noted_where_it_is_asked_for_and_ends_what_does_not_ask(
    number: signal.Signals, outcome: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening() as request, request.deferred():
        assert not request.asked(Alone())
        send(number)
        assert request.asked(Alone())
        with pytest.raises(Stopped, match=number.name) as caught:
            request.check(Alone())
        assert (caught.value.outcome, caught.value.saved) == (outcome, True)
    assert f"{number.name}: it stops, with a checkpoint" in capfd.readouterr().err
    with listening() as request, pytest.raises(Stopped) as caught:
        send(number)
    assert not caught.value.saved


def test_a_second_signal_says_something_and_ends_it_unless_it_is_the_same_request(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with listening() as request, request.deferred():
        send(signal.SIGINT)
        send(signal.SIGTERM)  # as when a terminal and a launcher both pass it on
        time.sleep(0.15)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert "SIGINT again: it ends at once" in capfd.readouterr().err


def test_a_hang_up_that_is_to_be_ignored_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as request:
            send(signal.SIGHUP)
            assert request.received is None
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_listens_within_listens_to_the_same() -> None:
    with listening() as outer, listening() as inner:
        assert outer is inner


def test_no_library_can_take_it_for_a_fault_of_its_own() -> None:
    assert not issubclass(Stopped, Exception)
