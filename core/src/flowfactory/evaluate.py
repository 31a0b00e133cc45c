"""Evaluation: held-out prompts, fixed noise, deterministic sampling, averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowfactory.assembly import Parts, Prompts
from flowfactory.collect import check_rewards, chunks
from flowfactory.failures import record_failures
from flowfactory.media import before_after, save_samples
from flowfactory.metrics import score_metrics
from flowfactory.rollout import draw_noise, rollout
from flowfactory.types import Sample

BEFORE_AFTER = "before-after.png"


def evaluate(parts: Parts, epoch: int) -> dict[str, float]:
    """Sample every held-out prompt once and score it; nothing if there are none.

    Each process takes every `world`-th prompt; the metrics are exact whatever their number.

    Raises:
        RewardError: a reward failed past what its table allows.
    """
    if parts.held_out is None:
        return {}
    spec, processes = parts.spec, parts.processes
    mine = range(processes.rank, len(parts.held_out.rows), processes.world)
    kept = spec.run.save_samples if processes.main else 0
    gallery: list[Sample] = []
    with (
        parts.clock("evaluate"),
        parts.ui.phase("evaluating", total=len(mine)) as bar,
        parts.held_out_judge.session(len(parts.held_out.rows), spec.sampling.overlap) as scoring,
    ):
        with parts.weights.using("ema" if spec.optimizer.ema else "current"), torch.no_grad():
            for numbers in chunks(mine, spec.eval.micro_batch or spec.sampling.micro_batch):
                samples = _sample(parts, parts.held_out, numbers)
                gallery += samples[: max(0, kept - len(gallery))]
                scoring.submit(samples)
                bar.advance(len(numbers))
        scored = scoring.finish()
        record_failures(parts.folder, epoch, scored.failures)
        check_rewards(parts, scoring)
    everyone = {label: _gathered(parts, column, math.nan) for label, column in scored.values.items()}
    failed = {label: _gathered(parts, column, False) for label, column in scored.failed.items()}
    if processes.main:
        listed = {label: values[: len(gallery)].tolist() for label, values in scored.values.items()}
        folder = parts.folder / "samples"
        save_samples(folder / f"eval-{epoch:04d}", gallery, listed)
        if epoch > 0 and spec.run.save_samples:
            before_after(folder / "eval-0000", folder / f"eval-{epoch:04d}").save(parts.folder / BEFORE_AFTER)
    lost = {f"eval/{label}/failed": float(column.sum()) for label, column in failed.items() if column.any()}
    return score_metrics("eval", everyone) | lost


def _gathered(parts: Parts, own: Tensor, missing: float) -> Tensor:
    """A column of all processes in the order of the prompts, so that sums do not depend on the world size."""
    assert parts.held_out is not None
    world = parts.processes.world
    longest = math.ceil(len(parts.held_out.rows) / world)
    padded = torch.cat([own, own.new_full((longest - len(own),), missing)])
    return parts.processes.gather(padded).reshape(world, longest).T.flatten()


def _sample(parts: Parts, held_out: Prompts, numbers: range) -> list[Sample]:
    spec, policy, device = parts.spec, parts.held_out_policy, parts.processes.device
    keys = [(spec.eval.seed, "evaluation", number) for number in numbers]
    made = rollout(
        policy,
        parts.scheduler,
        policy.sigmas(spec.eval.steps or spec.sampling.steps),
        (),
        draw_noise(keys, keys, policy.latent_shape(), 0).to(device),
        held_out.conditions.batch(list(numbers), device),
        torch.float32,
    )
    media = policy.decode(made.final)
    return [Sample(held_out.rows[n], image, slot=n, replica=0) for n, image in zip(numbers, media, strict=True)]
