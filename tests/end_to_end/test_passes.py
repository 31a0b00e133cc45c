"""How often the network is passed, for every trainer: not once more than the algorithm needs.

12 samples, made in 4 steps. Both the run's own counters and the transformer's real calls are held to the number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from end_to_end.conftest import metrics
from flowfactory.sampling.rollouts import Rollouts

SAMPLES, STEPS = 12, 4
ALL, TWO, THIRD = "{rule='all'}", "{rule='random', size=2}", "{rule='list', steps=[2]}"
BLUE = "reward=[{name='blueness'}]"
TWICE = "trainer.times={rule='discrete', fraction=0.9, count=2}"
FIRST = STEPS * SAMPLES
"""Passes of sampling: each sample's every step, whoever trains."""


def case(name: str, trainer: str, updates: int, changes: Sequence[str], forward: int, trained: int) -> Any:
    """`forward` and `trained`: passes of one epoch without a backward pass, and with one."""
    changed = [f"trainer.name={trainer}", f"optimizer.updates={updates}", *changes]
    return pytest.param(changed, forward, trained, id=name)


REPLAYED = "trainer.old=replayed"
THREE = (f"scheduler.window={TWO}", "sampling.prompts=6", "sampling.group=2")
FAN = ("scheduler.window={rule='list', steps=[0, 1]}", "trainer.width=3")
TREE = ("scheduler.window={rule='all'}", "trainer.splits=[0, 2]", "sampling.group=1")


def window(rule: str) -> str:
    return f"scheduler.window={rule}"


CASES = (
    # Every step but the last is stochastic, and each is trained once. Log-probabilities are kept from sampling.
    case("grpo", "grpo", 1, [window(ALL)], FIRST, 3 * SAMPLES),
    # Two of the steps are stochastic.
    case("grpo-window", "grpo", 1, [window(TWO)], FIRST, 2 * SAMPLES),
    # One of each prompt's steps is, and groups with other steps are sampled and trained apart.
    case("grpo-step-per-prompt", "grpo", 1, [window("{rule='random', size=1, per='prompt'}")], FIRST, SAMPLES),
    # A second update does not ask the sampling weights again: their log-probabilities are stored.
    case("grpo-second-update", "grpo", 2, [window(TWO)], FIRST, 2 * SAMPLES),
    # The reference says its velocity once for each trained step, whichever of the divergences is taken.
    case("grpo-kl", "grpo", 2, [window(TWO), "trainer.kl_beta=0.1"], FIRST + 2 * SAMPLES, 2 * SAMPLES),
    case(
        "grpo-kl-v", "grpo", 2, [window(TWO), "trainer.kl_beta=0.1", "trainer.kl=v"], FIRST + 2 * SAMPLES, 2 * SAMPLES
    ),
    # Step 2 is stochastic, so the 4 groups of 3 make steps 0 and 1 once each, and 2 and 3 for every sample.
    case("grpo-shared-prefix", "grpo", 1, [window(THIRD), "sampling.shared_noise=true"], 2 * 4 + 2 * SAMPLES, SAMPLES),
    # Nothing is before the window: nothing is shared but the noise.
    case(
        "grpo-shared-noise",
        "grpo",
        1,
        [window("{rule='list', steps=[0]}"), "sampling.shared_noise=true"],
        FIRST,
        SAMPLES,
    ),
    # In the first update the old mean is the current one.
    case("guard", "grpo-guard", 1, [window(TWO)], FIRST, 2 * SAMPLES),
    # In the second it is the one that was kept from sampling.
    case("guard-second-update", "grpo-guard", 2, [window(TWO)], FIRST, 2 * SAMPLES),
    # Replayed, it is asked for in the shape of the update, under the weights that sampled: both steps of half the
    # samples, since the first update's own numbers are the old ones.
    case("guard-replayed", "grpo-guard", 2, [window(TWO), REPLAYED], FIRST + 2 * SAMPLES // 2, 2 * SAMPLES),
    case("grpo-replayed", "grpo", 1, [window(TWO), REPLAYED], FIRST, 2 * SAMPLES),
    case("grpo-replayed-thrice", "grpo", 3, [*THREE, REPLAYED], FIRST + 2 * SAMPLES * 2 // 3, 2 * SAMPLES),
    case(
        "guard-kl",
        "grpo-guard",
        2,
        [window(TWO), "trainer.kl_beta=0.1"],
        FIRST + 2 * SAMPLES,
        2 * SAMPLES,
    ),
    # As for Guard: nothing but what is trained.
    case("dppo", "dppo", 1, [window(TWO)], FIRST, 2 * SAMPLES),
    case("dppo-second-update", "dppo", 2, [window(TWO)], FIRST, 2 * SAMPLES),
    case("dppo-replayed", "dppo", 2, [window(TWO), REPLAYED], FIRST + 2 * SAMPLES // 2, 2 * SAMPLES),
    # Of each of the 4 groups of 3, two samples: the reference's velocity and the trained one, at one level and at two.
    case("dpo", "dpo", 1, [], FIRST + 4 * 2, 4 * 2),
    case("dpo-levels", "dpo", 2, [TWICE], FIRST + 2 * 4 * 2, 2 * 4 * 2),
    # At each level the old weights are asked for the clip, the reference for the group's weight and the divergence.
    case("dgpo", "dgpo", 1, [TWICE], FIRST + 4 * SAMPLES, 2 * SAMPLES),
    case("dgpo-second-update", "dgpo", 2, [TWICE], FIRST + 4 * SAMPLES, 2 * SAMPLES),
    # Without a divergence the reference still is the baseline; where the old weights are, nobody asks it.
    case("dgpo-baseline", "dgpo", 1, [TWICE, "trainer.kl_beta=0"], FIRST + 4 * SAMPLES, 2 * SAMPLES),
    case("dgpo-old", "dgpo", 1, [TWICE, "trainer.kl_beta=0", "trainer.baseline=old"], FIRST + 2 * SAMPLES, 2 * SAMPLES),
    # The old weights' velocity is part of the loss, and the reference's where it has a weight.
    case("crd", "crd", 2, [TWICE], FIRST + 4 * SAMPLES, 2 * SAMPLES),
    case("crd-alone", "crd", 1, [TWICE, "trainer.kl_beta=0"], FIRST + 2 * SAMPLES, 2 * SAMPLES),
    # The old policy's velocity is part of the loss, at each of the 3 noise levels and in every update.
    case("nft", "nft", 1, ["trainer.kl_beta=0"], FIRST + 3 * SAMPLES, 3 * SAMPLES),
    case("nft-second-update", "nft", 2, ["trainer.kl_beta=0"], FIRST + 3 * SAMPLES, 3 * SAMPLES),
    # And the reference's, where it has a weight.
    case("nft-kl", "nft", 1, [], FIRST + 6 * SAMPLES, 3 * SAMPLES),
    # The first update's ratio is 1 by construction: nothing is asked but what is trained.
    case("awm", "awm", 1, [TWICE, "trainer.kl_beta=0", "trainer.average_beta=0"], FIRST, 2 * SAMPLES),
    # The second update's samples need the log-probability of the weights that sampled.
    case(
        "awm-second-update",
        "awm",
        2,
        [TWICE, "trainer.kl_beta=0", "trainer.average_beta=0"],
        FIRST + 2 * SAMPLES // 2,
        2 * SAMPLES,
    ),
    # What is sampled is sampled without a gradient, and its last steps once more with one.
    case("draft", "draft", 1, [BLUE], FIRST, SAMPLES),
    case("draft-three", "draft", 2, [BLUE, "trainer.steps=3"], FIRST, 3 * SAMPLES),
    # As many as there are.
    case("draft-all", "draft", 1, [BLUE, "trainer.steps=9"], FIRST, FIRST),
    # One drawn step, whichever it is.
    case("refl", "refl", 1, [BLUE, "trainer.fraction=1.0"], FIRST, SAMPLES),
    # Of the states before steps 0 and 2, three steps and one are left; the first of each is the sample's own.
    case("stepgrpo", "stepgrpo", 1, [window("{rule='list', steps=[0, 2]}")], FIRST + (3 + 1) * SAMPLES, 2 * SAMPLES),
    case("stepgrpo-all", "stepgrpo", 2, [window(ALL)], FIRST + (3 + 2 + 1) * SAMPLES, 3 * SAMPLES),
    # Estimates are of velocities that sampling asks for.
    case("stepgrpo-estimated", "stepgrpo", 1, [window(ALL), "trainer.looks=estimated"], FIRST, 3 * SAMPLES),
    # Of each of 4 prompts one start: two steps of the trunk, and three branches of each, which leave at steps 0 and 1.
    case("tempflow", "tempflow", 1, [*FAN, "sampling.group=1"], 4 * (2 + 3 * (3 + 2)), 4 * 3 * 2),
    # Replayed, the second update's branches are asked about once more.
    case("tempflow-replayed", "tempflow", 2, [*FAN, "sampling.group=2", REPLAYED], 8 * 17 + 8 * 6 // 2, 8 * 3 * 2),
    case("tempflow-starts", "tempflow", 2, [*FAN, "sampling.group=2"], 8 * (2 + 3 * (3 + 2)), 8 * 3 * 2),
    case("tempflow-kl", "tempflow", 1, [*FAN, "sampling.group=1", "trainer.kl_beta=0.1"], 4 * 17 + 4 * 6, 4 * 3 * 2),
    # Trees that part at steps 0 and 2: one state, then two, two, and four; branches at each but the last step.
    case("branchgrpo", "branchgrpo", 1, TREE, 4 * (1 + 2 + 2 + 4), 4 * (2 + 2 + 4)),
    # Heun's method looks twice at each step but the last; of what a gradient goes through, too.
    case("heun", "draft", 1, [BLUE, "scheduler={name='heun'}", "trainer.steps=2"], 7 * SAMPLES, 3 * SAMPLES),
    case("sa-solver", "draft", 1, [BLUE, "scheduler={name='sa-solver'}", "trainer.steps=2"], FIRST, 2 * SAMPLES),
    # The reference and the average are asked once each for each noise level.
    case("awm-kl", "awm", 1, [TWICE], FIRST + 4 * SAMPLES, 2 * SAMPLES),
)


@pytest.mark.parametrize(("changes", "forward", "trained"), CASES)
def test_passes_of_an_epoch(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, changes: Sequence[str], forward: int, trained: int
) -> None:
    rows = watched(monkeypatch)
    folder = run("a", "run.epochs=1", "run.save_samples=0", "eval.every=0", *changes)
    line = metrics(folder)[-1]
    assert (line["network/forward"], line["network/trained"]) == (forward, trained)
    assert rows == {False: forward, True: trained}
    planned = {number["name"]: number["value"] for number in json.loads((folder / "plan.json").read_text())["numbers"]}
    again = planned.get("replay_passes", 0)
    assert (again > 0) == (REPLAYED in changes and "optimizer.updates=1" not in changes)
    if REPLAYED in changes and "branches" not in planned:
        assert forward == FIRST + again
    assert (planned["forward_passes"], planned["trained_passes"]) == (forward, trained)
    if "branches" in planned:
        assert planned["branch_passes"] == forward - again - (trained if "kl_beta=0.1" in str(changes) else 0)
        assert planned["branches"] == trained
    assert planned.get("look_passes", 0) == (forward - FIRST if "stepgrpo" in str(changes) else 0)
    assert ("gradient_passes" in planned) == (BLUE in changes)
    assert planned.get("gradient_passes", trained) == trained
    if "sampling_batches" in planned:
        each = 7 if "scheduler={name='heun'}" in changes else STEPS
        assert planned["sampling_calls"] == planned["sampling_batches"] * each


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[bool, int]:
    """How many samples have passed the transformer since the first epoch began: without gradients, and with them."""
    rows: dict[bool, int] = {}
    passing, collecting = FluxTransformer2DModel.forward, Rollouts.collect

    def forward(self: FluxTransformer2DModel, **inputs: Any) -> Any:
        enabled = torch.is_grad_enabled()
        rows[enabled] = rows.get(enabled, 0) + len(inputs["hidden_states"])
        return passing(self, **inputs)

    def collect(*arguments: Any) -> Any:
        rows.clear()
        return collecting(*arguments)

    monkeypatch.setattr(FluxTransformer2DModel, "forward", forward)
    monkeypatch.setattr(Rollouts, "collect", collect)
    return rows


def test_recomputed_activations_are_no_passes(run: Callable[..., Path]) -> None:
    plain, checkpointed = (
        metrics(run(name, "run.epochs=1", "eval.every=0", f"memory.gradient_checkpointing={on}"))[-1]
        for name, on in (("a", "false"), ("b", "true"))
    )
    for name in ("network/forward", "network/trained"):
        assert plain[name] == checkpointed[name]


@pytest.mark.parametrize(
    "changes",
    [
        ["trainer.name=stepgrpo", window("{rule='list', steps=[0, 2]}")],
        ["trainer.name=tempflow", *FAN, "sampling.group=1"],
        ["trainer.name=branchgrpo", *TREE],
        ["trainer.name=draft", BLUE, "trainer.steps=2"],
        ["trainer={name='dmd', fake_steps=2, guidance=4.0}", "scheduler={name='ode'}", "-reward"],
    ],
    ids=["looks", "fan", "tree", "gradients", "roles"],
)
def test_with_negative_prompts_each_pass_is_two_of_the_transformer(
    run: Callable[..., Path], spec: Path, monkeypatch: pytest.MonkeyPatch, changes: Sequence[str]
) -> None:
    rows = [json.dumps({"prompt": f"a cat {i}", "negative_prompt": "a dog"}) for i in range(6)]
    (spec.parent / "train.jsonl").write_text("\n".join(rows) + "\n")
    data = (f"data.prompts={spec.parent}/train.jsonl", "model.true_cfg=2.0", "sampling.guidance=3.5")
    passed = watched(monkeypatch)
    folder = run("a", "run.epochs=1", "run.save_samples=0", "eval.every=0", *data, *changes)
    line = metrics(folder)[-1]
    planned = {number["name"]: number["value"] for number in json.loads((folder / "plan.json").read_text())["numbers"]}
    assert (line["network/forward"], line["network/trained"]) == (planned["forward_passes"], planned["trained_passes"])
    assert passed == {False: 2 * planned["forward_passes"], True: 2 * planned["trained_passes"]}
