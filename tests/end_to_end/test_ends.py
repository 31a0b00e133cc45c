"""However a run ends, its last finished epoch is not lost, and it goes on from there as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from end_to_end.conftest import metrics, written
from end_to_end.test_stopping import WITHOUT_EVALUATIONS, lay
from flowfactory.cli.main import main
from flowfactory.contracts.trainer import Trainer
from flowfactory.policy import finite
from flowfactory.rewards import scoring
from flowfactory.runs import archive
from flowfactory.sampling import rollouts
from flowfactory.training import evaluate
from flowfactory_plugin_flux.flux import Flux
from forks import flowfactory

QUICK = ("run.epochs=2", "run.save_samples=1", "sampling.prompts=2", "sampling.group=2", "checkpoint.every=0")
LORA = ("--unset=full", "--set=lora={rank = 2}", "--set=checkpoint.best=none")
FULL = ("--set=checkpoint.best=none",)


@attrs.frozen
class End:
    """What ends a run: the `number`-th call of something raises an error."""

    owner: Any
    name: str
    number: int
    error: BaseException
    tuning: tuple[str, ...] = FULL
    updates: int = 1


def raising(own: Callable[..., Any], end: End) -> Callable[..., Any]:
    calls = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == end.number:
            raise end.error
        return own(*arguments, **named)

    return call


REWARDED = ("trainer={name = 'refl', fraction = 0.5}", "scheduler={name = 'ode'}", "reward=[{name = 'blueness'}]")
REFL = (*FULL, *(f"--set={change}" for change in REWARDED))
FULL_DISK = OSError(28, "No space left on device")
ENDS = {
    "memory runs out in sampling": End(Flux, "velocity", 15, torch.OutOfMemoryError("CUDA out of memory")),
    "a loss cannot be computed": End(torch.Tensor, "backward", 7, RuntimeError("no kernel"), updates=2),
    "a reward fails in an update": End(scoring, "_value", 4, scoring.RewardError("x"), tuning=REFL, updates=2),
    "the gradient is infinite": End(finite, "check_step", 4, finite.Diverged("not finite"), updates=2),
    "the weights are infinite": End(finite, "check_weights", 2, finite.Diverged("not finite"), tuning=LORA),
    "a trainer fails after an update": End(Trainer, "after_update", 3, KeyError("x"), updates=2),
    "a trainer fails after an epoch": End(Trainer, "after_epoch", 2, KeyError("x"), tuning=LORA),
    "samples cannot be saved": End(rollouts, "save_samples", 2, FULL_DISK),
    "an evaluation fails": End(evaluate, "_drift", 2, ValueError("x")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Callable[[End], Path]:
    """Runs that nothing disturbs, by how they train."""
    made: dict[tuple[Any, ...], Path] = {}

    def run(end: End) -> Path:
        key = (end.tuning, end.updates)
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            assert main([*command(written(folder, checkpoint), end), f"--folder={folder / 'run'}"]) == 0
            made[key] = folder / "run"
        return made[key]

    return run


def command(spec: Path, end: End) -> list[str]:
    changes = (*QUICK, f"optimizer.updates={end.updates}")
    return ["run", str(spec), *(f"--set={change}" for change in changes), *end.tuning]


@pytest.mark.parametrize("name", ENDS)
def test_nothing_of_a_finished_epoch_is_lost(
    name: str, spec: Path, whole: Callable[[End], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    end, folder = ENDS[name], spec.parent / "run"
    undisturbed = whole(end)
    with monkeypatch.context() as patched:
        patched.setattr(end.owner, end.name, raising(getattr(end.owner, end.name), end))
        assert main([*command(spec, end), f"--folder={folder}"]) == 1
    assert [path.name for path in archive.checkpoints(folder / "checkpoints")] == ["epoch-0001"]
    assert main(["resume", str(folder)]) == 0
    assert metrics(folder) == metrics(undisturbed)
    for file in (undisturbed / "checkpoints" / "epoch-0002").glob("*.safetensors"):
        assert (folder / "checkpoints" / "epoch-0002" / file.name).read_bytes() == file.read_bytes(), file.name


FAILS_ALONE = """
import os, torch
from flowfactory_plugin_flux.flux import Flux

calls = []

def velocity(self, *arguments, own=Flux.velocity):
    calls.append(torch.is_grad_enabled())
    if os.environ.get("RANK") == "1" and calls.count(True) == 5:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return own(self, *arguments)

Flux.velocity = velocity
"""


def test_one_process_that_fails_alone_loses_nothing_either(tmp_path: Path, checkpoint: Path) -> None:
    """In the second epoch; the one that writes does not need it for that."""
    spec = lay(tmp_path / "a spec", checkpoint, FAILS_ALONE)
    folder = spec.parent / "run"
    own = ("--processes=2", "--set=sampling.prompts=4", "--set=optimizer.updates=2", *FULL, *WITHOUT_EVALUATIONS)
    changes = [f"--set={change}" for change in QUICK]
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *changes, *own)
    assert code == 1, said
    assert "CUDA out of memory" in said
    assert [path.name for path in archive.checkpoints(folder / "checkpoints")] == ["epoch-0001"]
