"""Runs that begin with weights of one's own, and trainers that learn from weights of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.runs import archive
from flowfactory.spec.holdings import header
from safetensors.torch import load_file

LORA = ("-full", "lora.rank=3", "lora.alpha=5.0", "lora.targets=['attn.to_q', 'ff.net.2']")
QUICK = ("run.epochs=1", "run.save_samples=0", "sampling.prompts=2", "optimizer.lr=0.03")


def last(folder: Path, name: str = "ema") -> dict[str, torch.Tensor]:
    return load_file(archive.checkpoints(folder / "checkpoints")[-1] / f"{name}.safetensors")


def test_a_chain_of_runs_ends_in_an_export(run: Callable[..., Path]) -> None:
    """A LoRA, one that goes on from its run, one that goes on from that one's export; rank and alpha are never said."""
    first = run("first", *LORA, *QUICK)
    second = run("second", "-full", f"lora.from={first}", *QUICK)
    assert main(["export", str(second)]) == 0
    third = run("third", "-full", f"lora.from={second / 'export/lora'}", "lora.reference=base", *QUICK)
    for before, after in ((first, second), (second, third)):
        begin, end = metrics(before)[-1]["eval/redness/mean"], metrics(after)[-1]["eval/redness/mean"]
        assert metrics(after)[0]["eval/redness/mean"] == pytest.approx(begin, abs=1e-6)
        assert abs(end - begin) > 1e-4
        assert {n: t.shape for n, t in last(before).items()} == {n: t.shape for n, t in last(after).items()}
    assert main(["export", str(third)]) == 0
    config = json.loads(header(third / "export/lora/pytorch_lora_weights.safetensors")[1]["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (3, 5.0)
    assert "A LoRA, begun with `lora`, of" in (third / "export/lora/README.md").read_text()
    assert main(["export", str(third), "--form", "merged"]) == 0
    assert main(["report", str(third)]) == 0
    full = run("full", f"full.from={third}", *QUICK)
    end = metrics(third)[-1]["eval/redness/mean"]
    assert metrics(full)[0]["eval/redness/mean"] == pytest.approx(end, abs=1e-5)
    again = run("again", f"full.from={full}", *QUICK)
    end = metrics(full)[-1]["eval/redness/mean"]
    assert metrics(again)[0]["eval/redness/mean"] == pytest.approx(end, abs=1e-6)


def test_a_run_that_began_elsewhere_is_resumed_and_asks_for_the_same_start(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("first", *LORA, *QUICK)
    whole = run("whole", "-full", f"lora.from={first}", *QUICK, "run.epochs=2")
    part = run("part", "-full", f"lora.from={first}", *QUICK)
    assert main(["resume", str(part), "--epochs", "2"]) == 0
    assert metrics(part) == metrics(whole)
    assert main(["report", str(first)]) == 0
    assert main(["resume", str(part)]) == 0
    assert main(["resume", str(first), "--epochs", "2"]) == 0
    capsys.readouterr()
    assert main(["resume", str(part)]) == 2
    assert "a file that" in capsys.readouterr().err


LEARNS = """
import attrs
from flowfactory import Location, Loss, Needs, Provides, Trainer, TrainerSpec, hookimpl, key, noised


@attrs.frozen(kw_only=True)
class DistilSpec(TrainerSpec):
    even_calls = True
    teacher: Location = key("Whose velocities are learnt.")
    others: tuple[Location, ...] = key("Further ones.", default=())

    @property
    def needs(self):
        others = {f"other{i}": other for i, other in enumerate(self.others)}
        return Needs(scores=False, loaded={"teacher": self.teacher, **others})


class Distil(Trainer[DistilSpec]):
    def terms(self, policy, batch, draws):
        x0 = batch.rollout.final.float()
        sigma, noise = draws.uniform().to(x0.device), draws.normal(*x0.shape[1:]).to(x0.device)
        with policy.using("teacher"):
            return [(sigma, noise, policy.velocity(noised(x0, noise, sigma), sigma, batch.conditions))]

    def loss(self, policy, batch, term):
        sigma, noise, wanted = term
        v = policy.velocity(noised(batch.rollout.final.float(), noise, sigma), sigma, batch.conditions)
        return Loss({"distance": (v - wanted).square().mean()})


@hookimpl
def flowfactory_trainers():
    yield Provides("distil", DistilSpec, Distil, "Learn what a teacher computes.")
"""


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_student_comes_nearer_to_a_teacher_that_was_a_run(
    tuning: str, run: Callable[..., Path], spec: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The distance falls; without the teacher's weights (the model itself) it is 0 from the start."""
    teacher = run("teacher", *LORA, *QUICK, "optimizer.lr=0.3")
    (spec.parent / "distil.py").write_text(LEARNS)
    plugins = [str(spec.parent / name) for name in ("distil.py", "rewards.py")]
    student = ["-trainer", "trainer.name=distil", f"plugins={plugins}", "sampling.group=1"]
    student += ["-full", "lora.rank=4"] if tuning == "lora" else []
    student += [f"trainer.teacher={teacher}", f"trainer.others=['{checkpoint}']", "run.epochs=6", "sampling.prompts=6"]
    lines = metrics(run("student", *student, "optimizer.lr=0.01", "run.save_samples=0"))
    distances = [line["loss/distance"] for line in lines[1:]]
    assert distances[-1] < 0.7 * distances[0]
    assert distances[0] > 1e-4
    memory = {part["name"]: part["bytes"] for part in plan_of(spec, student, capsys)["memory"]["parts"]}
    networks = sum(t.numel() for t in load_file(next((checkpoint / "transformer").glob("*.safetensors"))).values())
    lora = sum(t.numel() for t in last(teacher).values())
    assert memory["loaded"] == 4 * (lora + networks + (networks if tuning == "full" else 0))


def plan_of(spec: Path, changes: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    options = [f"--unset={c[1:]}" if c.startswith("-") else f"--set={c}" for c in changes]
    capsys.readouterr()
    assert main(["plan", str(spec), "--json", *options]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_best_checkpoint_of_a_run_has_a_name(
    run: Callable[..., Path], spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("first", *LORA, "run.epochs=3", "run.save_samples=0", "sampling.prompts=2", "optimizer.lr=0.03")
    values = {int(line["epoch"]): line["eval/redness/mean"] for line in metrics(first)[1:]}
    best = max(values, key=lambda epoch: values[epoch])
    assert (first / "best").resolve().name == f"epoch-{best:04d}"
    begun = ["-full", f"lora.from={first / 'best'}", "trainer.kl_beta=0.1"]
    second = run("second", *begun, *QUICK)
    assert metrics(second)[0]["eval/redness/mean"] == pytest.approx(values[best], abs=1e-6)
    numbers = sum(t.numel() for t in last(first).values())
    for reference, sets in (("start", 2), ("base", 1)):
        changes = [*begun, f"lora.reference={reference}"]
        parts = {part["name"]: part["bytes"] for part in plan_of(spec, changes, capsys)["memory"]["parts"]}
        assert (parts["trained"], parts["sets"]) == (4 * numbers, 4 * numbers * sets)
    kept = {path.stem for path in archive.checkpoints(second / "checkpoints")[-1].glob("*.safetensors")}
    assert kept == {"current", "ema", "reference", "optimizer"}
    began, reference = load_file(first / "best/ema.safetensors"), last(second, "reference")
    assert all(torch.equal(began[name], reference[name]) for name in began)
