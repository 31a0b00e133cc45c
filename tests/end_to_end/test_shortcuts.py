"""Runs whose samples are made faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.discovery.registry import Registry
from flowfactory.plan.estimate import estimate
from flowfactory.spec.structure import load_spec

Runner = Callable[..., Path]

NFT = ("-full", "lora={rank=2}", "trainer={name='nft'}", "scheduler={name='ode'}", "eval.every=2")


@pytest.mark.slow
def test_merged_rollouts_learn_what_others_do_within_rounding(run: Runner) -> None:
    left, right = metrics(run("a", *NFT))[-1], metrics(run("b", *NFT, "sampling.merged=true"))[-1]
    assert left != right  # LoRA has an effect from the second epoch on
    assert right == {name: pytest.approx(value, rel=2e-3, abs=1e-5) for name, value in left.items()}


@pytest.mark.slow
def test_skipped_blocks_change_samples_and_not_evaluations(run: Runner) -> None:
    changes = (*NFT, "run.epochs=1")
    left, right = metrics(run("a", *changes)), metrics(run("b", *changes, "sampling.first_block_cache=0.9"))
    assert left[0] == right[0]
    assert left[1]["reward/redness/mean"] != right[1]["reward/redness/mean"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("sampling.merged=true", "model.quantize=nf4"), "LoRA cannot be added to weights in nf4 without rounding"),
        (
            ("sampling.first_block_cache=0.1", "memory.shard=true"),
            "first_block_cache does not go together",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    spec: Path, capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], said: str
) -> None:
    sets = [f"--set={change}" for change in (*NFT[1:], *changes)]
    assert main(["check", str(spec), "--unset=full", *sets]) == 2
    assert said in capsys.readouterr().err


def test_the_adapted_weights_are_planned_once_more_while_sampling(spec: Path, checkpoint: Path) -> None:
    spec.write_text(spec.read_text().replace("[full]", ""))
    changes = [*(change for change in NFT if not change.startswith("-")), "lora.targets=['to_q', 'proj_out']"]
    apart, together = (
        estimate(load_spec(spec, Registry(), (*changes, f"sampling.merged={merged}"))) for merged in ("false", "true")
    )
    network = FluxTransformer2DModel.from_pretrained(checkpoint / "transformer")
    adapted = [m.weight.nbytes for path, m in network.named_modules() if path.endswith(("to_q", ".proj_out"))]
    adapted += [network.proj_out.weight.nbytes]
    assert together["merged"] == sum(adapted)
    assert (together["sample"] or 0) - (apart["sample"] or 0) == sum(adapted)
    assert (together["decode"], together["update"]) == (apart["decode"], apart["update"])
