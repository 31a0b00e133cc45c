"""The checkpoint of the best evaluation is kept, whatever happens to the run, and can be exported."""

from __future__ import annotations

import signal
from pathlib import Path

from end_to_end.conftest import metrics
from flowfactory.discovery.registry import Registry
from flowfactory.export.choosing import best_epoch
from flowfactory.runs import archive
from flowfactory.spec.structure import load_spec
from forks import flowfactory

SCORES = (0.875, 0.25, 0.5, 0.75, 0.375, 0.125)
"""What each evaluation is worth, that before training first: epoch 3 is the best of those after it."""

HELD_OUT = f"""

def held_out(samples):
    from pathlib import Path
    calls = Path(__file__).with_name("calls.txt")
    done = calls.read_text().splitlines() if calls.exists() else []
    calls.write_text("\\n".join([*done, "x"]))
    return [{SCORES}[len(done)] for _ in samples]
"""
PROVIDES = '    yield Provides("held-out", NoKeys, held_out, "What the test says.")\n'
CHANGES = (
    "--set=run.epochs=5",
    "--set=sampling.micro_batch=6",
    "--set=checkpoint.every=0",
    "--set=checkpoint.keep=1",
    '--set=eval.reward=[{name="held-out"}]',
)


def lay(spec: Path) -> None:
    rewards = spec.parent / "rewards.py"
    rewards.write_text(rewards.read_text() + PROVIDES + HELD_OUT)


def kept(folder: Path) -> list[int]:
    return [archive.epoch_of(path) for path in archive.checkpoints(folder / "checkpoints")]


def test_the_best_is_kept_through_a_stop_and_exported(spec: Path) -> None:
    lay(spec)
    folder, stop = spec.parent / "run", (signal.SIGTERM, "sample", 9)
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, *CHANGES, stop=stop)
    assert code == 75, said
    assert kept(folder) == [3, 4]  # the stop saved the fourth; of the bests before, none is left
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 0, said
    assert [line["eval/held-out/mean"] for line in metrics(folder)] == list(SCORES)
    assert kept(folder) == [3, 5]
    assert best_epoch(folder, load_spec(folder / "spec.toml", Registry())) == 3
    code, said = flowfactory(spec.parent, "export", folder, "--epoch", "best")
    assert code == 0, said
    assert "`ema` after epoch 3" in (folder / "export/merged/README.md").read_text()


def test_nothing_more_is_kept_where_nothing_is_to_be_the_best(spec: Path) -> None:
    lay(spec)
    folder = spec.parent / "run"
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, *CHANGES, "--set=checkpoint.best=none")
    assert code == 0, said
    assert kept(folder) == [5]
    code, said = flowfactory(spec.parent, "export", folder, "--epoch", "best")
    assert code == 1
    assert "has no best checkpoint: its [checkpoint] best is `none`" in said


def test_an_epoch_is_a_number_or_best(spec: Path) -> None:
    (spec.parent / "plan.json").write_text("{}")
    code, said = flowfactory(spec.parent, "export", spec.parent, "--epoch", "last")
    assert code == 2
    assert "expected the number of an epoch or `best`, not 'last'" in said
