"""What processes send each other, and whether each has enough to do; real runs are in `test_processes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flowfactory.cli.main import main
from flowfactory.discovery.registry import Registry
from flowfactory.errors import SpecError
from flowfactory.plan.checkpoint import Part
from flowfactory.plan.plan import Plan, make_plan
from flowfactory.processes.traffic import bandwidth, starved, traffic
from flowfactory.spec.structure import load_spec
from specs import lay

LAYERS = {"transformer": Part({f"blocks.{i}.attn.to_q.weight": (30, 10) for i in range(5)}, {})}
"""Five layers of 300 numbers; LoRA of rank 4 is 5 x 4 x 40 more, in 10 tensors."""


def plan(folder: Path, world: int, *sets: str) -> Plan:
    registry, changes = Registry(), ("sampling.prompts=1024", "sampling.group=24", "trainer={name='grpo'}", *sets)
    return make_plan(load_spec(lay(folder), registry, changes), registry.versions(), world)


def test_gradients_go_round_twice_less_each_ones_own_part(tmp_path: Path) -> None:
    made = plan(tmp_path, 512)
    found = traffic(made, 1000.0, 4.0, LAYERS)
    assert found is not None
    gradients, scores = found.sent
    assert gradients.bytes == round(2 * (800 + 10) * 4 * 511 / 512)
    assert scores.bytes == round(512 * 24 * (8 + 2 * 9) * 511 / 512)
    assert found.total == gradients.bytes + scores.bytes
    assert found.seconds == found.total / 1000
    assert found.share == pytest.approx(found.seconds / (found.seconds + 24 / 4))
    assert [row[0] for row in found.rows()] == ["gradients", "scores", "total", "seconds", "share"]


@pytest.mark.parametrize(("base", "quantize"), [(1500 * 4, ()), (1500 / 2, ("model.quantize=nf4",))])
def test_divided_networks_are_put_together_in_every_call(
    tmp_path: Path, base: float, quantize: tuple[str, ...]
) -> None:
    sets = ("memory.shard=true", "model.name=flux", "optimizer.micro_batch=8", *quantize)
    weights, gradients, _ = traffic(plan(tmp_path, 512, *sets), 1.0, None, LAYERS).sent  # type: ignore[union-attr]
    calls, trained = 6 * 8 / 2, 3 * 2  # of 48 samples in eights, 8 steps, for two updates; of 24 samples, two steps
    assert weights.bytes == round((base + 800 * 4) * (calls + 2 * trained) * 511 / 512)
    assert gradients.bytes == round(800 * 4 * trained * 511 / 512)


def test_a_team_exchanges_the_tokens_of_each_layer(tmp_path: Path) -> None:
    config = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 5, "joint_attention_dim": 7}
    vae = Part({}, {"latent_channels": 4, "block_out_channels": [1, 1]})
    known = {"transformer": Part(LAYERS["transformer"].shapes, {**config, "in_channels": 4}), "vae": vae}
    sets = ("memory.ulysses=4", "model.max_sequence_length=64", "sampling.size=32", "run.precision=bf16")
    made = plan(tmp_path, 512, *sets)
    found = traffic(made, 1.0, None, known)
    assert found is not None
    _, tokens, scores = found.sent
    each = 4 * 3 * (16 * 16 + 64) // 4 * 10 * 2  # of four tensors in each of three layers, a fourth of the tokens
    assert made["teams"] == 128
    passes = (made["forward_passes"] + 2 * made["trained_passes"]) / 128 / 2  # of two updates
    assert tokens.bytes == round(each * passes * 3 / 4)
    assert scores.bytes == round(512 * 24 * 4 * (8 + 2 * 9) * 511 / 512)
    again = traffic(plan(tmp_path, 512, *sets, "memory.gradient_checkpointing=true"), 1.0, None, known)
    assert again is not None
    passes += made["trained_passes"] / 128 / 2
    assert again.sent[1].bytes == round(each * passes * 3 / 4)
    sets = (*sets[1:], "memory.ring=4", "memory.attention=flash")
    ring = traffic(plan(tmp_path, 512, *sets), 1.0, None, known)
    assert ring is not None
    passes = (made["forward_passes"] + 2 * made["trained_passes"]) / 128 / 2
    both = 2 * 3 * (16 * 16 + 64) // 4 * 10  # keys and values of a fourth of the tokens
    assert ring.sent[1].bytes == round(both * 2 * 3 * passes + both * 4 * 4 * made["trained_passes"] / 128 / 2)
    unknown = traffic(made, 1.0, None, LAYERS)
    assert unknown is not None
    assert unknown.sent[1].bytes is None


def test_what_is_not_known_is_not_added_up(tmp_path: Path) -> None:
    made = plan(tmp_path, 2)
    assert traffic(plan(tmp_path, 1), 1e9) is None
    found = traffic(made, 1e9, 1.0, {"transformer": Part({}, {}, unknown=3)})
    assert found is not None
    assert (found.sent[0].bytes, found.total, found.seconds, found.share) == (None, None, None, None)
    assert "does not say how large" in found.sent[0].reason


@pytest.mark.parametrize(
    ("text", "value"), [("50GB/s", 50e9), ("400Gbit/s", 50e9), ("1.5 MB/s", 1.5e6), ("10B/s", 10.0)]
)
def test_bandwidth(text: str, value: float) -> None:
    assert bandwidth(text) == value


@pytest.mark.parametrize("text", ["50", "0GB/s", "-1GB/s", "GB/s", "50GiB/s", "50gb"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ValueError, match="expected bytes or bits a second, as in 50GB/s"):
        bandwidth(text)


def test_processes_with_too_few_samples_are_named(tmp_path: Path) -> None:
    sets = ("sampling.micro_batch=64", "optimizer.micro_batch=16")
    few, partly = map(str, starved(plan(tmp_path, 512, *sets)))
    assert few.startswith(
        "note: [sampling] each of 512 processes has 48 samples, which fill its micro-batches of 64 to 75"
    )
    assert partly.startswith("note: [optimizer] each of 512 processes has 24 samples")
    assert "to 75 %" in partly


def test_who_is_no_worse_off_than_one_process_is_not_warned(tmp_path: Path) -> None:
    assert not [*starved(plan(tmp_path, 512, "sampling.micro_batch=8", "optimizer.micro_batch=8"))]
    small = ("sampling.prompts=2", "sampling.group=5", "sampling.micro_batch=64", "optimizer.micro_batch=64")
    assert not [*starved(plan(tmp_path, 1, *small))]


def test_more_processes_than_groups_are_told_how_many_prompts_would_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"all have work where \[sampling\] prompts is a multiple of 1024"):
        plan(tmp_path, 512, "sampling.prompts=48")


def test_plan_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(lay(tmp_path)), "--processes", "2", "--bandwidth", "400Gbit/s"]
    assert main([*command, "--rate", "2"]) == 0
    out, err = capsys.readouterr()
    assert "sent by a process, a step" in out
    assert "[optimizer] each of 2 processes has 4 samples, which fill its micro-batches of 8 to 50 %" in err
    assert main([*command, "--json"]) == 0
    between = json.loads(capsys.readouterr().out)["between"]
    assert (between["bandwidth"], between["total"], between["share"]) == (50e9, None, None)
    assert main(["plan", str(tmp_path / "spec.toml"), "--bandwidth", "fast"]) == 2
    assert "expected bytes or bits a second" in capsys.readouterr().err
