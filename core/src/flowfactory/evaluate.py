"""Evaluation: held-out prompts, fixed noise, deterministic sampling, averaged weights."""

from __future__ import annotations

import math

import torch

from flowfactory.assembly import Parts, Prompts
from flowfactory.collect import chunks
from flowfactory.media import before_after, save_samples
from flowfactory.metrics import score_metrics
from flowfactory.rollout import draw_noise, rollout
from flowfactory.types import Sample

BEFORE_AFTER = "before-after.png"


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
            samples += _sample(parts, parts.held_out, numbers)
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
            before_after(folder / "eval-0000", folder / f"eval-{epoch:04d}").save(parts.folder / BEFORE_AFTER)
    return score_metrics("eval", everyone)


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
