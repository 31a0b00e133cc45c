"""Bounded attempts with growing pauses."""

import pytest
from flowfactory.rewards import retry
from flowfactory.rewards.retry import retried


class Flaky:
    """Fails as often as told, then answers."""

    def __init__(self, failures: int, error: type[Exception] = ValueError) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"attempt {self.calls}")
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


def test_pauses_double(pauses: list[float]) -> None:
    assert retried(Flaky(3), retries=5, pause=0.5) == "done"
    assert pauses == [0.5, 1.0, 2.0]


def test_the_last_error_is_raised_and_every_one_is_told(pauses: list[float]) -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="attempt 3"):
        retried(Flaky(9), retries=2, pause=1.0, failed=lambda error: told.append(str(error)))
    assert told == ["attempt 1", "attempt 2", "attempt 3"]
    assert pauses == [1.0, 2.0]


def test_what_is_not_transient_is_raised_at_once(pauses: list[float]) -> None:
    flaky = Flaky(1, KeyError)
    with pytest.raises(KeyError):
        retried(flaky, retries=3, pause=1.0, transient=(ValueError,))
    assert flaky.calls == 1
    assert not pauses
