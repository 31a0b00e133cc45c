"""Evaluation: held-out prompts, fixed noise, deterministic sampling, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.hooks import Run
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.types import Conditions, Sample
from flowfactory.data.sources import counted
from flowfactory.metrics import merit
from flowfactory.metrics.display import Display
from flowfactory.metrics.instruments import Instruments
from flowfactory.metrics.scores import score_metrics, source_metrics
from flowfactory.policy.finite import check_samples
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.failures import check_losses, check_rewards, recording
from flowfactory.rewards.scoring import Judge
from flowfactory.rewards.session import Scored, all_parts, of_team
from flowfactory.runs.files import writing
from flowfactory.runs.media import before_after, save_samples
from flowfactory.sampling.rollout import draw_noise, rollout
from flowfactory.sampling.source import chunks
from flowfactory.spec.tables import Lora, Spec

BEFORE_AFTER = "before-after.png"


@attrs.frozen(eq=False)
class Evaluator:
    """What held-out prompts are sampled and scored with; its policy makes samples of the size `[eval]` asks for."""

    spec: Spec
    run: Run
    processes: Processes
    instruments: Instruments
    conditions: ConditionStore
    policy: ModelPolicy
    scheduler: Scheduler[Any]
    weights: Weights
    judge: Judge


def say_left_out(spec: Spec, judge: Judge, display: Display) -> None:
    """Say which rewards evaluation does not ask, and what follows."""
    for label in judge.left_out:
        why = f"reward {label!r} compares the samples of a group, and evaluation makes one sample of each prompt"
        best = "; [checkpoint] best counts it, so no evaluation is the best" if label in merit.weights(spec) else ""
        display.say(f"{why}: it is left out there{best}")


def evaluate(evaluator: Evaluator, epoch: int, stop: StopRequest) -> dict[str, float]:
    """Sample every held-out prompt once and score it.

    Each team of processes takes every prompt whose turn it is; the metrics are exact whatever their number. Where
    weights are divided every process makes as many micro-batches, and what is too much is thrown away.

    Raises:
        Stopped: a signal arrived; nothing has changed.
        RewardError: a reward failed past what its table allows.
        Diverged: the weights give samples that are not finite.
    """
    spec, processes, rows = evaluator.spec, evaluator.processes, evaluator.conditions.rows
    total, counts = len(rows), counted(rows)
    scored, gallery, drifts = _scored(evaluator, epoch, stop, counts)
    everyone = {label: _gathered(processes, total, column, math.nan) for label, column in scored.values.items()}
    failed = {label: _gathered(processes, total, column, False) for label, column in scored.failed.items()}
    names = all_parts(processes, scored)
    parts = {name: _gathered(processes, total, scored.part(name), math.nan) for name in names}
    entries = [asked.entry for asked in evaluator.judge.rewards if asked.alone]
    check_losses(processes, entries, failed, torch.arange(total), counts)
    if processes.main:
        keep(evaluator, epoch, gallery, scored)
    metrics = score_metrics("eval", everyone) | source_metrics(everyone, [row.source for row in rows], "eval/")
    metrics |= merit.score("eval", merit.evaluated(spec), metrics)
    metrics |= score_metrics("eval", parts)
    metrics |= {f"eval/{label}/failed": float(column.sum()) for label, column in failed.items() if column.any()}
    drift = _gathered(processes, total, torch.cat([torch.empty(0, dtype=torch.float64), *drifts]), math.nan)
    return metrics if drift.isnan().all() else metrics | {"eval/drift": float(drift.nanmean())}


def _scored(
    evaluator: Evaluator, epoch: int, stop: StopRequest, counts: Mapping[str, int]
) -> tuple[Scored, list[Sample], list[Tensor]]:
    """What this process's prompts scored, the first of its samples, and how far the weights drifted on each batch."""
    spec, processes, total = evaluator.spec, evaluator.processes, len(evaluator.conditions.rows)
    mine = range(processes.team.number, total, processes.team.count)
    size = spec.eval.micro_batch or spec.sampling.micro_batch
    pieces = list(chunks(mine, size))
    most = math.ceil(math.ceil(total / processes.team.count) / size)  # of any process: all ask as often whether to stop
    kept = spec.run.save_samples if processes.main else 0
    gallery: list[Sample] = []
    sound = True, True
    drifts: list[Tensor] = []
    with (
        evaluator.instruments.clock("evaluate"),
        evaluator.instruments.display.phase("evaluating", len(mine), "samples") as bar,
        evaluator.judge.session(
            counts, spec.sampling.overlap, lambda: stop.asked(processes), single=True, asks=processes.team.leads
        ) as scoring,
        recording(processes, scoring, evaluator.run.folder, epoch),
    ):
        with evaluator.weights.using("ema" if spec.optimizer.ema else "current"), torch.no_grad():
            for number in range(most):
                stop.check(processes)
                numbers = pieces[number] if number < len(pieces) else range(0)
                looked_at = bool(numbers) and (evaluator.judge.reads("media") or len(gallery) < kept)
                with stop.abandoning(processes):
                    if numbers or processes.sharded:
                        samples, final, drift = _sample(evaluator, numbers or range(1), looked_at)
                if not numbers:
                    continue
                drifts.append(drift)
                gallery += samples[: max(0, kept - len(gallery))]
                finite = bool(final.isfinite().all()), all(bool(s.media.isfinite().all()) for s in samples)
                sound = sound[0] and finite[0], sound[1] and finite[1]
                if all(sound):
                    scoring.submit(samples)
                bar.advance(len(numbers))
        check_samples(processes, f"the evaluation after epoch {epoch}", *sound, trained=epoch > 0)
        scored = of_team(processes, scoring.finish())
        stop.check(processes)
        check_rewards(processes, scoring)
    return scored, gallery, drifts


def keep(evaluator: Evaluator, epoch: int, gallery: Sequence[Sample], scored: Scored) -> None:
    """Save the first samples, and after the first epoch a sheet of them beside those from before training."""
    folder, sheet = evaluator.run.folder / "samples", evaluator.run.folder / BEFORE_AFTER
    columns = {**scored.values, **scored.parts}
    listed = {name: column[: len(gallery)].tolist() for name, column in columns.items()}
    save_samples(folder / f"eval-{epoch:04d}", gallery, listed, scored.words)
    if epoch > 0 and evaluator.spec.run.save_samples:
        made = before_after(folder / "eval-0000", folder / f"eval-{epoch:04d}")
        if made is not None:
            with writing(sheet):
                made.save(sheet)


def _gathered(processes: Processes, total: int, own: Tensor, missing: float) -> Tensor:
    """A column of all processes in the order of the prompts, so that sums do not depend on the world size."""
    longest = math.ceil(total / processes.team.count)
    padded = torch.cat([own, own.new_full((longest - len(own),), missing)])
    return processes.gather(padded).reshape(processes.team.count, longest).T.flatten()[:total]


def _sample(evaluator: Evaluator, numbers: range, looked_at: bool) -> tuple[list[Sample], Tensor, Tensor]:
    """The samples of some held-out prompts, their latents, and how far the weights have drifted on them `(B,)`.

    Args:
        looked_at: whether anybody reads media; they are not decoded otherwise.
    """
    spec, policy, device = evaluator.spec, evaluator.policy, evaluator.processes.device
    keys = [(spec.eval.seed, "evaluation", number) for number in numbers]
    noise = draw_noise(keys, keys, policy.latent_shape(), 0).to(device)
    conditions = evaluator.conditions.batch(list(numbers), device)
    sigmas = policy.sigmas(spec.eval.steps or spec.sampling.steps)
    with policy.sampling(evaluator.weights.active, exactly=True):
        final = rollout(policy, evaluator.scheduler, sigmas, (), noise, conditions, torch.float32).final
    sigma = sigmas[len(sigmas) // 2].to(device)
    drift = _drift(evaluator, (1 - sigma) * final + sigma * noise.start, sigma.expand(len(final)), conditions)
    media = policy.decode(final, evaluator.judge.scores_on(device)) if looked_at else final.new_empty((len(final), 0))
    rows = [evaluator.conditions.rows[n] for n in numbers]
    return evaluator.judge.samples(rows, [(n, 0) for n in numbers], media, final, conditions), final, drift


def _drift(evaluator: Evaluator, x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
    """Squared distance `(B,)` float64 of the velocity from the reference's, in units of the latter's square.

    The divergence between steps of a stochastic sampler is this times a factor of the scheduler's. NaN where no
    reference is kept: full fine-tuning by a trainer that does not ask for one.
    """
    if not isinstance(evaluator.spec.tuning, Lora) and "reference" not in evaluator.weights.sets:
        return torch.full((len(x),), math.nan, dtype=torch.float64)
    v = evaluator.policy.velocity(x, sigma, conditions)
    with evaluator.weights.using("reference"):
        reference = evaluator.policy.velocity(x, sigma, conditions)
    squares = [(y.double() ** 2).flatten(1).mean(1) for y in (v - reference, reference)]
    return (squares[0] / squares[1]).cpu()
