"""Evaluation: held-out prompts, fixed noise, deterministic sampling, averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowfactory.contracts.types import Conditions, Sample
from flowfactory.metrics.metrics import score_metrics
from flowfactory.rewards.failures import check_losses, check_rewards, recording
from flowfactory.runs.files import writing
from flowfactory.runs.media import before_after, save_samples
from flowfactory.sampling.collect import chunks
from flowfactory.sampling.rollout import draw_noise, rollout
from flowfactory.spec.tables import Lora
from flowfactory.training.assembly import Parts, Prompts

BEFORE_AFTER = "before-after.png"


def evaluate(parts: Parts, epoch: int) -> dict[str, float]:
    """Sample every held-out prompt once and score it; nothing if there are none.

    Each process takes every `world`-th prompt; the metrics are exact whatever their number. Where weights are divided
    every process makes as many micro-batches, and what is too much is thrown away.

    Raises:
        RewardError: a reward failed past what its table allows.
    """
    if parts.held_out is None:
        return {}
    spec, processes = parts.spec, parts.processes
    mine = range(processes.rank, len(parts.held_out.rows), processes.world)
    pieces = list(chunks(mine, spec.eval.micro_batch or spec.sampling.micro_batch))
    surplus = processes.most(len(pieces)) - len(pieces)
    kept = spec.run.save_samples if processes.main else 0
    gallery: list[Sample] = []
    drifts: list[Tensor] = []
    with (
        parts.clock("evaluate"),
        parts.ui.phase("evaluating", len(mine), "samples") as bar,
        parts.held_out_judge.session(len(parts.held_out.rows), spec.sampling.overlap) as scoring,
        recording(scoring, parts.folder, epoch),
    ):
        with parts.weights.using("ema" if spec.optimizer.ema else "current"), torch.no_grad():
            for numbers in pieces:
                samples, drift = _sample(parts, parts.held_out, numbers)
                drifts.append(drift)
                gallery += samples[: max(0, kept - len(gallery))]
                scoring.submit(samples)
                bar.advance(len(numbers))
            for _ in range(surplus):
                _sample(parts, parts.held_out, range(1))
        scored = scoring.finish()
        check_rewards(processes, scoring)
    everyone = {label: _gathered(parts, column, math.nan) for label, column in scored.values.items()}
    failed = {label: _gathered(parts, column, False) for label, column in scored.failed.items()}
    entries = [asked.entry for asked in parts.held_out_judge.rewards]
    check_losses(processes, entries, failed, torch.arange(len(parts.held_out.rows)))
    if processes.main:
        listed = {label: values[: len(gallery)].tolist() for label, values in scored.values.items()}
        folder = parts.folder / "samples"
        save_samples(folder / f"eval-{epoch:04d}", gallery, listed)
        if epoch > 0 and spec.run.save_samples:
            sheet = before_after(folder / "eval-0000", folder / f"eval-{epoch:04d}")
            with writing(parts.folder / BEFORE_AFTER):
                sheet.save(parts.folder / BEFORE_AFTER)
    metrics = score_metrics("eval", everyone)
    metrics |= {f"eval/{label}/failed": float(column.sum()) for label, column in failed.items() if column.any()}
    drift = _gathered(parts, torch.cat([torch.empty(0, dtype=torch.float64), *drifts]), math.nan)
    return metrics if drift.isnan().all() else metrics | {"eval/drift": float(drift.nanmean())}


def _gathered(parts: Parts, own: Tensor, missing: float) -> Tensor:
    """A column of all processes in the order of the prompts, so that sums do not depend on the world size."""
    assert parts.held_out is not None
    world, total = parts.processes.world, len(parts.held_out.rows)
    longest = math.ceil(total / world)
    padded = torch.cat([own, own.new_full((longest - len(own),), missing)])
    return parts.processes.gather(padded).reshape(world, longest).T.flatten()[:total]


def _sample(parts: Parts, held_out: Prompts, numbers: range) -> tuple[list[Sample], Tensor]:
    """The samples of some held-out prompts, and how far the weights that made them have drifted `(B,)`."""
    spec, policy, device = parts.spec, parts.held_out_policy, parts.processes.device
    keys = [(spec.eval.seed, "evaluation", number) for number in numbers]
    noise = draw_noise(keys, keys, policy.latent_shape(), 0).to(device)
    conditions = held_out.conditions.batch(list(numbers), device)
    sigmas = policy.sigmas(spec.eval.steps or spec.sampling.steps)
    final = rollout(policy, parts.scheduler, sigmas, (), noise, conditions, torch.float32).final
    sigma = sigmas[len(sigmas) // 2].to(device)
    drift = _drift(parts, (1 - sigma) * final + sigma * noise.start, sigma.expand(len(final)), conditions)
    media = policy.decode(final)
    return [Sample(held_out.rows[n], one, slot=n, replica=0) for n, one in zip(numbers, media, strict=True)], drift


def _drift(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
    """Squared distance `(B,)` float64 of the velocity from the reference's, in units of the latter's square.

    The divergence between steps of a stochastic sampler is this times a factor of the scheduler's. NaN where no
    reference is kept: full fine-tuning by a trainer that does not ask for one.
    """
    if not isinstance(parts.spec.tuning, Lora) and "reference" not in parts.weights.sets:
        return torch.full((len(x),), math.nan, dtype=torch.float64)
    v = parts.held_out_policy.velocity(x, sigma, conditions)
    with parts.weights.using("reference"):
        reference = parts.held_out_policy.velocity(x, sigma, conditions)
    squares = [(y.double() ** 2).flatten(1).mean(1) for y in (v - reference, reference)]
    return (squares[0] / squares[1]).cpu()
