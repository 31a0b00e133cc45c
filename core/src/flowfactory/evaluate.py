"""Evaluation: held-out prompts, fixed noise, deterministic sampling, averaged weights."""

from __future__ import annotations

import math

import torch

from flowfactory.assembly import Parts
from flowfactory.collect import chunks
from flowfactory.media import before_after, save_samples
from flowfactory.metrics import score_metrics
from flowfactory.rollout import Noise, rollout
from flowfactory.seeds import Draws
from flowfactory.types import Sample


def evaluate(parts: Parts, epoch: int) -> dict[str, float]:
    """Sample every held-out prompt once and score it; nothing if there are none.

    Each process takes every `world`-th prompt; the metrics are exact whatever their number.
    """
    if parts.held_out is None:
        return {}
    spec, processes = parts.spec, parts.processes
    mine = range(processes.rank, len(parts.held_out.rows), processes.world)
    samples: list[Sample] = []
    with (
        parts.clock("evaluate"),
        parts.ui.phase("evaluating", total=len(mine)) as bar,
        parts.weights.using("ema" if spec.optimizer.ema else "current"),
        torch.no_grad(),
    ):
        for numbers in chunks(mine, spec.eval.micro_batch or spec.sampling.micro_batch):
            samples += _sample(parts, numbers)
            bar.advance(len(numbers))
        scores = parts.held_out_judge.score(samples)
    longest = math.ceil(len(parts.held_out.rows) / processes.world)
    everyone = {}
    for label, own in scores.items():
        padded = torch.cat([own, own.new_full((longest - len(own),), math.nan)])
        # Rank-major to prompt order, so that the sums do not depend on the world size.
        everyone[label] = processes.gather(padded).reshape(processes.world, longest).T.flatten()
    if processes.main:
        listed = {label: values.tolist() for label, values in scores.items()}
        folder = parts.folder / "samples"
        save_samples(folder / f"eval-{epoch:04d}", samples[: spec.run.save_samples], listed)
        if epoch > 0 and spec.run.save_samples:
            before_after(folder / "eval-0000", folder / f"eval-{epoch:04d}").save(parts.folder / "before-after.png")
    return score_metrics("eval", everyone)


def _sample(parts: Parts, numbers: range) -> list[Sample]:
    spec, held_out = parts.spec, parts.held_out
    assert held_out is not None
    size, steps = spec.eval.size or spec.sampling.size, spec.eval.steps or spec.sampling.steps
    device, shape = parts.processes.device, parts.adapter.latent_shape(size)
    start = Draws([(spec.eval.seed, "evaluation", number) for number in numbers]).normal(*shape).to(device)
    made = rollout(
        parts.policy.at(size),
        parts.scheduler,
        parts.adapter.sigmas(steps, size),
        (),
        Noise(start, start[:, None, ...][:, :0]),
        held_out.conditions.batch(list(numbers), device),
        torch.float32,
    )
    media = parts.adapter.decode(made.final, size).float().cpu()
    return [Sample(held_out.rows[n], image, slot=n, replica=0) for n, image in zip(numbers, media, strict=True)]
