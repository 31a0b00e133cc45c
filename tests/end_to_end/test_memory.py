"""Where things are kept changes nothing of what a run does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.contracts.types import Rollout
from flowfactory.discovery.registry import Registry
from flowfactory.export import pair
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.plan.estimate import estimate
from flowfactory.policy import resting, streamed
from flowfactory.sampling.rollouts import Rollouts
from flowfactory.spec.structure import load_spec

Runner = Callable[..., Path]


@pytest.mark.parametrize("what", ["vae", "rewards", "trajectories", "optimizer"])
def test_offloading_changes_not_a_bit(run: Runner, what: str) -> None:
    left, right = run("a"), run("b", f'memory.offload=["{what}"]')
    assert metrics(left) == metrics(right)
    assert_same_weights(left, right)


def assert_same_weights(left: Path, right: Path) -> None:
    trained = [file.relative_to(left) for file in left.glob("checkpoints/*/*.safetensors")]
    assert trained
    for file in trained:
        assert (left / file).read_bytes() == (right / file).read_bytes()


LEAVE = streamed.Stream.leave
LORA = ("-full", "lora.rank=4", "optimizer.ema=0.5")


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_streaming_weights_changes_not_a_bit_nor_does_to_go_on_so(
    run: Runner, monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    monkeypatch.setattr(resting, "PIECE", 1000)  # so that moments are moved some after others
    how = (*LORA, f"memory.gradient_checkpointing={checkpointing}", "checkpoint.every=1")
    left, right = run("a", *how), run("b", *how, 'memory.offload=["weights", "optimizer"]')
    assert metrics(left) == metrics(right)
    assert_same_weights(left, right)
    shutil.rmtree(right / "checkpoints/epoch-0002")
    assert main(["resume", str(right)]) == 0
    assert metrics(left) == metrics(right)
    assert_same_weights(left, right)


def test_what_was_trained_by_streaming_is_sampled_from_so(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run("a", *LORA, "run.epochs=1", 'memory.offload=["weights"]')
    streams: list[streamed.Stream] = []

    def leave(stream: streamed.Stream) -> None:
        streams.append(stream)
        LEAVE(stream)

    monkeypatch.setattr(streamed.Stream, "leave", leave)
    sheets = []
    for often in ("some", "no"):
        assert main(["sample", str(folder), "a cat", "--to", str(folder.parent / often)]) == 0
        sheets.append((folder.parent / often / "sheet.png").read_bytes())
        assert bool(streams) == (often == "some")
        streams.clear()
        monkeypatch.setattr(pair, "streaming", lambda *_: None)
    assert sheets[0] == sheets[1]


def test_streamed_blocks_may_be_skipped(run: Runner) -> None:
    how = (*LORA, "trainer={name='nft'}", "scheduler={name='ode'}", "sampling.first_block_cache=0.5", "run.epochs=1")
    left, right = run("a", *how), run("b", *how, 'memory.offload=["weights"]')
    assert metrics(left) == metrics(right)


@pytest.mark.parametrize(("trainer", "means"), [("grpo", 0), ("grpo-guard", 2)])
def test_trajectories_and_conditions_are_as_large_as_planned(
    run: Runner, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, means: int
) -> None:
    collecting, rollouts = Rollouts.collect, []

    def collect(*arguments: Any) -> Any:
        made = collecting(*arguments)
        rollouts.extend(made.trajectories.parts)
        return made

    monkeypatch.setattr(Rollouts, "collect", collect)
    changes = ("sampling.storage=bf16", f"memory.cache={tmp_path / 'cache'}", f"trainer.name={trainer}")
    run("a", *changes, "run.epochs=1")
    planned = estimate(load_spec(spec, Registry(), changes))
    assert len(rollouts[0].means) == means
    kept = (*rollouts[0].latents.values(), *rollouts[0].means.values())
    assert planned["trajectories"] == sum(x.nbytes for x in kept)
    encoded = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*/*.safetensors"))
    assert 0.5 < (planned["conditions"] or 0) / encoded < 2


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trajectories_come_back_as_they_were(device: str, dtype: torch.dtype) -> None:
    latents = {i: torch.randn(5, 7, 3).to(device, dtype) for i in (2, 3, 8)}
    means = {2: torch.randn(5, 7, 3, device=device)}
    made = Rollout(torch.linspace(1, 0, 9), (2,), latents, {2: torch.randn(5, device=device)}, means)
    kept = made.to(torch.device("cpu"))
    every = (*kept.latents.values(), *kept.logprobs.values(), *kept.means.values())
    assert {x.device.type for x in every} == {"cpu"}
    back = kept[torch.tensor([4, 1])].to(torch.device(device))
    assert (back.sigmas.device.type, back.steps) == ("cpu", (2,))
    pairs = (made.latents, back.latents), (made.logprobs, back.logprobs), (made.means, back.means)
    for own, others in pairs:
        assert own.keys() == others.keys()
        for i, tensor in own.items():
            assert others[i].device.type == device
            assert torch.equal(others[i], tensor[[4, 1]])


def test_means_kept_from_sampling_are_those_of_a_replay(run: Runner) -> None:
    """In batches of one shape, where both round alike."""
    alike = ("trainer.name=grpo-guard", "run.epochs=1", "sampling.micro_batch=3", "optimizer.micro_batch=3")
    left, right = run("a", *alike), run("b", *alike, "trainer.old=replayed")
    names = ("train/ratio_deviation", "loss/policy", "train/gradient_norm")
    assert [metrics(left)[-1][name] for name in names] == [metrics(right)[-1][name] for name in names]
    assert metrics(left)[-1]["train/ratio_deviation"] > 0


def test_a_second_run_neither_encodes_nor_reads_encoders_and_is_the_same(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"memory.cache={tmp_path / 'cache'}"
    first = metrics(run("a", cache))
    assert list((tmp_path / "cache").glob("*/*.safetensors"))
    encoders: list[object] = []
    load = PipelineAdapter.load

    def watching(self: PipelineAdapter, *arguments: object) -> None:  # type: ignore[type-arg]
        load(self, *arguments)  # type: ignore[arg-type]
        encoders.extend([self.pipe.text_encoder, self.pipe.text_encoder_2])

    monkeypatch.setattr(PipelineAdapter, "load", watching)
    monkeypatch.delattr(PipelineAdapter, "encode")
    monkeypatch.setattr(PipelineAdapter, "__abstractmethods__", frozenset())
    assert metrics(run("b", cache)) == first
    assert encoders == [None, None]


@pytest.mark.filterwarnings("error:module forward hook:UserWarning")  # of one that misses what a stopped pass lacks
@pytest.mark.parametrize("offload", ["[]", "['vae']"])
def test_what_an_epoch_draws_is_encoded_when_it_begins_and_the_numbers_are_the_same(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    before = run("a", f"memory.cache={tmp_path / 'first'}")
    happened: list[str] = []

    def noting(kind: type[Any], name: str, word: str) -> None:
        own = getattr(kind, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            happened.append(word)
            return own(*arguments, **named)

        monkeypatch.setattr(kind, name, noted)

    noting(PipelineAdapter, "encode", "prompt")
    noting(PipelineAdapter, "drop_encoders", "drop")
    noting(Rollouts, "collect", "epoch")
    later = run("b", "memory.encode=between", f"memory.cache={tmp_path / 'other'}", f"memory.offload={offload}")
    assert happened == [*["prompt"] * (4 + 3), "epoch", *["prompt"] * 2, "drop", "epoch"]
    assert metrics(later) == metrics(before)
    assert_same_weights(before, later)


def test_encoders_that_stay_are_planned(spec: Path) -> None:
    plans = [
        estimate(load_spec(spec, Registry(), [f"memory.encode={when}", f"memory.offload={offload}"]))
        for offload in ("[]", "['vae']")
        for when in ("before", "between")
    ]
    encoders = plans[0]["encoders"] or 0
    assert encoders > 0
    for before, between, everywhere in ((*plans[:2], True), (*plans[2:], False)):
        more = {name: (between[name] or 0) - (before[name] or 0) for name in ("sample", "decode", "update")}
        assert more == {"sample": encoders * everywhere, "decode": encoders, "update": encoders * everywhere}


def test_a_cache_folder_must_be_absolute(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        run("a", "memory.cache=here")
    assert "cache" in capsys.readouterr().err


def test_what_is_waited_for_when_blocks_are_compiled_is_said(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    run("a", "run.epochs=0", "eval.every=0", "memory.compile=true")
    assert "blocks are compiled when they are first called" in capsys.readouterr().err
    run("b", "run.epochs=0", "eval.every=0")
    assert "compiled" not in capsys.readouterr().err
