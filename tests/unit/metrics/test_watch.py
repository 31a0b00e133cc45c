"""A warning when a trained reward rises while a held-out one falls, and none otherwise."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from flowfactory.metrics.watch import Watch
from flowfactory.spec.tables import RewardEntry


def entry(label: str, weight: float = 1.0) -> RewardEntry:
    return RewardEntry(name=label, label=label, weight=weight, spec=None)


def spec(*rewards: RewardEntry, held_out: tuple[RewardEntry, ...] = ()) -> Any:
    return SimpleNamespace(
        rewards=rewards, sampling=SimpleNamespace(prompts=10, group=10), eval=SimpleNamespace(rewards=held_out)
    )


def line(prefix: str, std: float = 1.0, **means: float) -> dict[str, float]:
    found = {f"{prefix}/{label}/mean": mean for label, mean in means.items()}
    return found | {f"{prefix}/{label}/std": std for label in means}


def warnings(
    watch: Watch, lines: list[dict[str, float]], caplog: pytest.LogCaptureFixture, start: int = 0
) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "flowfactory"):
        for epoch, one in enumerate(lines, start):
            watch.log(one, epoch)
    return [record.getMessage() for record in caplog.records]


def evaluated(trained: list[float], held: list[float]) -> list[dict[str, float]]:
    return [line("eval", trained=a, held=b) for a, b in zip(trained, held, strict=True)]


def on_evaluation() -> Watch:
    """Errors are 1 / sqrt(100) = 0.1, so a difference counts beyond 0.283."""
    return Watch(spec(entry("trained"), held_out=(entry("trained"), entry("held"))), prompts={"": 100})


def test_ratios_that_are_off_before_any_update_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"train/first_deviation": share} for share in (0.0, 0.1, 0.35, 0.7)]
    (found,) = warnings(Watch(spec(entry("trained")), prompts={}), lines, caplog)
    assert found == (
        "epoch 2: before any update, probability ratios were off 1 by 0.35 of the clip width: sampling and updates "
        'round differently, and what is clipped is in part rounding. Set [trainer] old to "replayed", or the same '
        "micro_batch in [sampling] and [optimizer]"
    )
    resumed = Watch(spec(entry("trained")), prompts={}, past=[{"epoch": 1.0, "train/first_deviation": 0.35}])
    assert warnings(resumed, lines, caplog) == []


def test_rising_and_falling_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    found = warnings(on_evaluation(), evaluated([0, 1, 2, 3], [0.0, 0.5, 0.1, 0.0]), caplog)
    assert found == [
        "epoch 2: since epoch 1 the trained reward 'trained' has risen while the held-out 'held' has fallen; "
        "the policy may be exploiting 'trained'"
    ]


@pytest.mark.parametrize(
    ("trained", "held"),
    [
        ([0, 1, 2], [0, 0.5, 1]),  # both rise
        ([2, 1, 0], [2, 1, 0]),  # both fall
        ([0, 1, 2], [0, -0.1, -0.2]),  # within the error
        ([0, 0.1, 0.2], [0, -1, -2]),  # the rise is
        ([0], [0]),
    ],
)
def test_anything_else_is_no_reason(trained: list[float], held: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings(on_evaluation(), evaluated(trained, held), caplog)


def test_a_second_fall_after_a_recovery_warns_again(caplog: pytest.LogCaptureFixture) -> None:
    lines = evaluated([0, 1, 2, 3, 4], [1, 0.5, 1.0, 0.5, 0.4])
    assert [text.split(":")[0] for text in warnings(on_evaluation(), lines, caplog)] == ["epoch 1", "epoch 3"]


def test_a_reward_of_weight_0_is_held_out(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(spec(entry("trained"), entry("held", 0.0)), prompts={})
    lines = [line("reward", trained=a, held=b) for a, b in [(0, 1), (1, 0.5), (2, 0)]]
    assert len(warnings(watch, lines, caplog)) == 1


def test_a_reward_of_negative_weight_improves_by_falling(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(spec(entry("trained", -1.0), held_out=(entry("trained"), entry("held"))), prompts={"": 100})
    assert not warnings(watch, evaluated([0, 1, 2], [2, 1, 0]), caplog)
    watch = Watch(spec(entry("trained", -1.0), held_out=(entry("trained"), entry("held"))), prompts={"": 100})
    assert len(warnings(watch, evaluated([2, 1, 0], [2, 1, 0]), caplog)) == 1


def test_a_resumed_run_remembers(caplog: pytest.LogCaptureFixture) -> None:
    lines = [line | {"epoch": epoch} for epoch, line in enumerate(evaluated([0, 1, 2], [1, 1, 0]))]
    past = spec(entry("trained"), held_out=(entry("trained"), entry("held")))
    assert len(warnings(Watch(past, {"": 100}, lines[:2]), lines[2:], caplog, start=2)) == 1
    assert not warnings(Watch(past, {"": 100}), lines[2:], caplog, start=2)


def test_trained_only_on_training_prompts_and_held_out_only_on_the_others(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(spec(entry("trained"), held_out=(entry("held"),)), prompts={"": 100})
    lines = [
        line("eval", held=1.0),
        line("reward", trained=0.0),
        line("reward", trained=1.0) | line("eval", held=0.0),
    ]
    assert len(warnings(watch, lines, caplog)) == 1


def test_a_reward_that_scores_nobody_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    both = spec(entry("bright"), entry("dark"))
    known = {"reward/bright/mean": 1.0, "reward/bright/std": 1.0, "eval/bright/mean": 1.0, "eval/bright/std": 1.0}
    watch = Watch(both, {"": 4})
    with caplog.at_level(logging.WARNING, "flowfactory"):
        watch.log({**known, "time/evaluate": 1.0}, 0)
        watch.log({**known, "time/sample": 1.0}, 1)
        watch.log({**known, "time/evaluate": 1.0}, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 0: reward 'dark' has no score for any held-out prompt",
        "epoch 1: reward 'dark' has no score for any sample; nothing is learned from it",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "flowfactory"):
        past = [{**known, "epoch": 1.0, "time/sample": 1.0}]
        Watch(both, {"": 4}, past, ["dark"]).log({**known, "time/evaluate": 1.0, "time/sample": 1.0}, 2)
        Watch(both, {}).log({**known, "reward/dark/failed_groups": 2.0, "time/sample": 1.0}, 1)
    assert not caplog.records
