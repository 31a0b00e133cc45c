"""The arithmetic of a run, with reasons; versions; and a digest that knows what decides results."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.errors import SpecError
from flowfactory.plan.counts import cuts
from flowfactory.plan.plan import Plan, make_plan
from flowfactory.spec.holdings import fingerprint
from flowfactory.spec.structure import load_spec
from specs import SOURCES, TOY, edited, lay


def plan(path: Path, *sets: str, world: int = 1) -> Plan:
    registry = Registry()
    return make_plan(load_spec(path, registry, sets), registry.versions(), world)


def test_numbers(spec: Path) -> None:
    sets = ("sampling.prompts=12", "sampling.group=6", "sampling.micro_batch=10", "optimizer.updates=3")
    made = plan(spec, *sets, "optimizer.micro_batch=5", "run.epochs=7", "eval.every=3", "checkpoint.every=2", world=2)
    assert {number.name: number.value for number in made.numbers} == {
        "samples": 72,
        "samples_per_process": 36,
        "sampling_batches": 4,
        "sampling_calls": 32,
        "stochastic_steps": 2,
        "updates": 3,
        "groups_per_update": 4,
        "effective_batch": 24,
        "samples_per_update_per_process": 12,
        "accumulation": 3,
        "epochs": 7,
        "optimizer_steps": 21,
        "evaluations": 4,
        "checkpoints": 4,
    }
    assert made["samples"] == 72
    assert all(number.reason for number in made.numbers)
    reasons = {number.name: number.reason for number in made.numbers}
    assert reasons["samples"] == "samples per epoch: 12 prompts x groups of 6"


GRPO, REPLAYED = "trainer={name='grpo'}", "trainer={name='grpo', old='replayed'}"


def test_equal_micro_batches_are_recommended_where_probabilities_are_compared(spec: Path) -> None:
    def reason(*sets: str) -> str:
        return next(number.reason for number in plan(spec, *sets).numbers if number.name == "accumulation")

    unlike = (GRPO, "sampling.micro_batch=8", "optimizer.micro_batch=4")
    assert reason(*unlike).endswith("; 8 at a time are sampled: first ratios are exactly 1 where the two are the same")
    for alike in ((*unlike, "sampling.micro_batch=4"), (*unlike, REPLAYED)):
        assert "are sampled" not in reason(*alike)


def test_replays_are_counted_for_every_update_but_the_first(spec: Path) -> None:
    sets = ("sampling.prompts=12", "sampling.group=6", "optimizer.updates=3", REPLAYED)
    assert plan(spec, *sets)["replay_passes"] == 2 * 24 * 2  # updates x samples of each x steps
    assert plan(spec, *sets, "optimizer.updates=1")["replay_passes"] == 0


def test_groups_with_steps_of_their_own_may_not_share_a_micro_batch(spec: Path) -> None:
    sets = ("sampling.prompts=12", "sampling.group=6", "sampling.micro_batch=10", "optimizer.updates=3")
    own = "scheduler.window={rule='random', size=2, per='prompt'}"
    made = plan(spec, *sets, own, "optimizer.micro_batch=5", world=2)
    assert (made["sampling_batches"], made["accumulation"], made["stochastic_steps"]) == (6, 4, 2)
    reasons = {number.name: number.reason for number in made.numbers}
    assert all(
        "at most, since groups have steps of their own" in reasons[n] for n in ("sampling_batches", "accumulation")
    )


def test_shares_of_sources_are_counted(tmp_path: Path) -> None:
    path = lay(tmp_path, edited(SOURCES))
    made = plan(path, "sampling.prompts=6")
    assert (made["prompts_signs"], made["prompts_other"], made["evaluations"]) == (2, 4, 4)
    reasons = {number.name: number.reason for number in made.numbers}
    assert reasons["prompts_other"] == "of an epoch's 6: share 2 of 3"
    made = plan(path, "sampling.prompts=4")
    assert (made["prompts_signs"], made["prompts_other"]) == (1, 3)
    reasons = {number.name: number.reason for number in made.numbers}
    assert reasons["prompts_signs"] == "of an epoch's 4: share 1 of 3, which is 1.333: epochs take turns"
    assert not any(number.name.startswith("prompts_") for number in plan(lay(tmp_path)).numbers)


def test_sources_count_in_the_digest(tmp_path: Path) -> None:
    path = lay(tmp_path, edited(SOURCES))
    changes = ("data.source[0].share=3", "data.source[0].name=x", "reward[0].sources=['other']", "run.seed=1")
    digests = [plan(path).digest, *(plan(path, change).digest for change in changes)]
    (tmp_path / "train.txt").write_text("something else\n")
    assert len({*digests, plan(path).digest}) == len(changes) + 2


@pytest.mark.parametrize(("source", "each"), [("media", 1), ("pairs", 2)])
def test_media_are_counted_once_for_each_row_that_is_drawn(tmp_path: Path, source: str, each: int) -> None:
    shown = '"media": "a.png"' if each == 1 else '"chosen": "a.png", "rejected": "a.png"'
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", {shown}}}\n' * 10)
    toy = TOY.replace("Needs(", f'Needs(source="{source}", scores=False, ')
    registry, path = Registry(), lay(tmp_path, edited(("train.txt", "a.jsonl")), toy)

    def media(*sets: str) -> int:
        return make_plan(load_spec(path, registry, sets, ("sampling.group", "reward")), registry.versions())["media"]

    assert media() == 10 * each  # three epochs of four
    assert media("run.epochs=2") == 8 * each
    assert media("run.epochs=0") == 4 * each  # a run without epochs loads what the first one would need
    (tmp_path / "b.jsonl").write_text(f'{{"prompt": "b", {shown}}}\n' * 2)
    two = (
        SOURCES[1]
        .replace('prompts = "eval', 'prompts = "b', 1)
        .replace("b.txt", "b.jsonl")
        .replace("train.txt", "a.jsonl")
    )
    lay(tmp_path, edited((SOURCES[0], two)), toy)
    assert media() == (2 + 8) * each  # of twelve, four are from the first, which has two


def test_evaluations_need_prompts(spec: Path) -> None:
    registry = Registry()
    made = make_plan(load_spec(spec, registry, (), ("eval", "data.eval_prompts")), registry.versions())
    assert made["evaluations"] == 0
    assert plan(spec, "eval.every=0")["evaluations"] == 0
    assert plan(spec, "run.epochs=0")["evaluations"] == 1


def test_a_world_that_does_not_divide_is_refused(spec: Path) -> None:
    with pytest.raises(SpecError, match=r"5 processes cannot share the 12 groups .* are 3, 4, 6"):
        plan(spec, "sampling.prompts=24", world=5)
    assert plan(spec, "sampling.prompts=24", world=6)["groups_per_update"] == 12


def test_processes_of_a_team_have_the_same_samples(spec: Path) -> None:
    alone, one = plan(spec, "sampling.prompts=24"), plan(spec, "sampling.prompts=24", "memory.ulysses=4")
    assert one.numbers == alone.numbers  # one process is no team of four
    two, made = (plan(spec, "sampling.prompts=24", *s, world=w) for s, w in (((), 2), (("memory.ulysses=4",), 8)))
    assert [(n.name, n.value) for n in made.numbers] == [("teams", 2), *((n.name, n.value) for n in two.numbers)]
    assert made.numbers[0].reason == "8 processes / 4 that share the tokens of each sample: [memory] ulysses = 4"
    assert next(n.reason for n in made.numbers if n.name == "samples_per_process").endswith("/ 2 teams of 4 processes")
    assert made.digest == alone.digest
    both = plan(spec, "sampling.prompts=24", "memory.ulysses=2", "memory.ring=2", "memory.attention=flash", world=8)
    assert [(n.name, n.value) for n in both.numbers] == [(n.name, n.value) for n in made.numbers]
    assert both.numbers[0].reason.endswith(": [memory] ulysses x ring = 4")


def test_teams_that_cannot_be_made_or_cannot_share_are_refused(spec: Path) -> None:
    with pytest.raises(
        SpecError, match=r"6 processes cannot make teams of 4, as \[memory\] ulysses = 4 asks; start a multiple"
    ):
        plan(spec, "memory.ulysses=4", world=6)
    with pytest.raises(SpecError, match=r"20 processes in 5 teams cannot share the 12 groups .* are 12, 16, 24"):
        plan(spec, "sampling.prompts=24", "memory.ulysses=4", world=20)


def test_versions_are_those_in_use(spec: Path) -> None:
    versions = plan(spec).versions
    assert list(versions) == ["flowfactory", "toy.py"]
    assert versions["toy.py"].startswith("sha256:")


SAME = [
    "run.name=other",
    "run.save_samples=0",
    "sampling.micro_batch=3",
    "optimizer.micro_batch=3",
    "memory.gradient_checkpointing=true",
    "checkpoint.keep=7",
    "track.project=other",
]
OTHER = [
    "run.seed=1",
    "run.epochs=4",
    "run.precision=bf16",
    "model.path=other/model",
    "lora.rank=5",
    "sampling.group=5",
    "scheduler.eta=0.6",
    "trainer.beta=0.2",
    "reward[0].weight=0.9",
    "reward[0].target=0.9",
    "optimizer.lr=1e-3",
    "eval.seed=3",
    "data.prompts=eval.txt",
    "eval.reward=[{name='bright', label='x'}]",
]


@pytest.mark.parametrize("change", SAME)
def test_what_has_no_effect_on_results_leaves_the_digest(spec: Path, change: str) -> None:
    assert plan(spec, change).digest == plan(spec).digest


def test_whatever_else_changes_changes_the_digest(spec: Path) -> None:
    digests = [plan(spec).digest, *(plan(spec, change).digest for change in OTHER)]
    assert len(set(digests)) == len(digests)


def test_of_a_pipelines_folder_counts_what_its_index_names(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text('{"_class_name": "X", "vae": ["diffusers", "Y"]}')
    before = fingerprint(str(tmp_path))
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_text("for others")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "vae" / "config.json").write_text('{"latent_channels": 4}')
    assert fingerprint(str(tmp_path)) != before


def test_files_count_by_content_not_by_place(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = lay(tmp_path_factory.mktemp("elsewhere"))
    for folder in (spec.parent, elsewhere.parent):
        (folder / "weights").mkdir()
        (folder / "weights" / "model.safetensors").write_bytes(b"x" * 200_000)
    change = "model.path=weights"
    for folder in (spec, elsewhere):
        folder.write_text(folder.read_text().replace("some-org/some-model", "./weights"))
    before = plan(spec).digest
    assert plan(elsewhere).digest == before
    (elsewhere.parent / "weights" / "model.safetensors").write_bytes(b"x" * 199_999 + b"y")
    assert plan(elsewhere).digest != before
    (spec.parent / "train.txt").write_text("something else\n")
    assert plan(spec).digest != before
    assert change


def test_written_plans_read_back(spec: Path) -> None:
    made = plan(spec)
    folder = spec.parent / "runs" / "test"
    made.write(folder)
    assert json.loads((folder / "plan.json").read_text()) == made.as_json()
    again = plan(folder / "spec.toml")
    assert (again.digest, again.versions) == (made.digest, made.versions)


def test_groups_that_micro_batches_cut_are_counted_without_counting_them() -> None:
    """Against counting, and where counting would take days."""
    for samples, size, group in itertools.product(range(1, 30), range(1, 35), range(1, 15)):
        assert cuts(samples, size, group) == sum(end % group > 0 for end in range(size, samples, size))
    assert cuts(10**18, 7, 10**12) == -(-(10**18) // 7) - 1 - (10**18 - 1) // (7 * 10**12)


def test_a_plan_of_huge_numbers_is_made_at_once(spec: Path) -> None:
    huge = ("sampling.group=1000000000000000", "sampling.micro_batch=1", "run.epochs=1000000000000000")
    for sets in (huge, (*huge, "sampling.shared_noise=true", 'scheduler.window.per="prompt"')):
        begun = time.process_time()
        assert plan(spec, *sets)["samples"] == 4 * 10**15
        assert time.process_time() - begun < 2
