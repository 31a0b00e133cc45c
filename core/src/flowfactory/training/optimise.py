"""The second half of an epoch: terms, losses, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Batch, Update
from flowfactory.metrics.instruments import Instruments
from flowfactory.metrics.means import Means, merge
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.runs.checkpoint import Progress
from flowfactory.sampling.collect import Collected, chunks
from flowfactory.spec.tables import Spec


@attrs.frozen(eq=False)
class Learner:
    """What the second half of an epoch is made with."""

    spec: Spec
    processes: Processes
    instruments: Instruments
    conditions: ConditionStore
    policy: ModelPolicy
    scheduler: Scheduler[Any]
    trainer: Trainer[Any]
    weights: Weights
    optimizer: torch.optim.Optimizer


@attrs.frozen(eq=False)
class MicroBatch:
    """The numbers of some of a process's samples, and what their trainer wants to train on.

    surplus: it only keeps this process in step with the others, which have more, and counts for nothing.
    """

    samples: Sequence[int]
    on_policy: bool
    terms: Sequence[Any]
    surplus: bool


def optimise(learner: Learner, progress: Progress, epoch: int, made: Collected) -> tuple[Progress, dict[str, float]]:
    """The optimizer steps of an epoch; returns how far the run has come, and the metrics of training.

    All terms are made before the first step, under the weights that sampled.
    """
    spec, means, step = learner.spec, Means(), progress.step
    with learner.instruments.clock("terms"), torch.no_grad():
        updates = [prepare(learner, epoch, made, index) for index in range(spec.optimizer.updates)]
    with (
        learner.instruments.display.phase(
            f"epoch {epoch}/{spec.run.epochs}: training", len(made.members), "samples"
        ) as bar,
        learner.instruments.clock("update"),
    ):
        for index, batches in enumerate(updates):
            step += 1
            if accumulate(learner, made, batches, means, bar.advance):
                take_step(learner, step, means)
            learner.trainer.after_update(learner.policy, Update(epoch, index, step, last=index == len(updates) - 1))
    metrics = merge(learner.processes.gather_objects([means.totals()]))
    return Progress(epoch, step), metrics | learner.policy.read_counts() | {"lr": learning_rate(spec, step)}


def prepare(learner: Learner, epoch: int, made: Collected, update: int) -> list[MicroBatch]:
    """The micro-batches of one update. Samples without an advantage are left out.

    Where weights are divided there are as many on every process: what is missing is made up for by single samples.
    """
    size = len(made.members) // learner.spec.optimizer.updates
    usable = [i for i in range(update * size, (update + 1) * size) if not math.isnan(made.advantages[i])]
    on_policy = update == 0 and learner.trainer.needs.rollout == "current"
    pieces = list(chunks(usable, learner.spec.optimizer.micro_batch))
    own, batches = len(pieces), []
    pieces += [[*usable, update * size][:1]] * (learner.processes.most(own) - own)
    for number, chunk in enumerate(pieces):
        members = [made.members[i] for i in chunk]
        draws = Draws([(learner.spec.run.seed, "terms", epoch, m.group.slot, m.replica) for m in members])
        terms = learner.trainer.terms(learner.policy, batch_of(learner, made, chunk, on_policy), draws)
        batches.append(MicroBatch(chunk, on_policy, terms, surplus=number >= own))
    return batches


def batch_of(learner: Learner, made: Collected, samples: Sequence[int], on_policy: bool) -> Batch:
    """What the trainer sees of some samples; made anew when needed, since conditions are large.

    Only surplus micro-batches may hold a sample without an advantage; there it is 0.
    """
    device, chosen = learner.processes.device, torch.tensor(samples)
    return Batch(
        made.rollout[chosen].to(device),
        learner.conditions.batch([made.members[i].group.row for i in samples], device),
        made.advantages[chosen].nan_to_num(0.0).to(device),
        on_policy,
        learner.scheduler,
    )


def accumulate(
    learner: Learner, made: Collected, batches: Sequence[MicroBatch], means: Means, advance: Callable[[int], None]
) -> bool:
    """Gradients of one update: the mean over all its samples, on all processes, and over each one's terms.

    Returns whether there was any sample to learn from.
    """
    learner.optimizer.zero_grad()
    total = learner.processes.sum(sum(len(micro.samples) for micro in batches if not micro.surplus))
    for micro in batches:
        batch = batch_of(learner, made, micro.samples, micro.on_policy)
        counted = 0 if micro.surplus else len(micro.samples)
        weight = counted / total / len(micro.terms)
        for term in micro.terms:
            loss = learner.trainer.loss(learner.policy, batch, term)
            with learner.instruments.stopwatch.backward():
                learner.processes.backward(torch.stack(list(loss.parts.values())).sum() * weight)
            if counted:
                means.add({f"loss/{name}": value for name, value in loss.parts.items()}, weight)
                means.add({f"train/{name}": value for name, value in loss.metrics.items()}, weight)
        advance(counted)
    learner.processes.sum_gradients(learner.weights.parameters.values())
    return total > 0


def take_step(learner: Learner, step: int, means: Means) -> None:
    """One optimizer step, and the average after it."""
    norm = learner.processes.clip(learner.weights.parameters.values(), learner.spec.optimizer.clip_norm)
    means.add({"train/gradient_norm": norm}, 1.0)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(learner.spec, step)
    learner.optimizer.step()
    if learner.spec.optimizer.ema:
        learner.weights.move("ema", ema_decay(learner.spec.optimizer.ema, step))


def ema_decay(largest: float, step: int) -> float:
    """The decay of the average at optimizer step `step`: `min(largest, (1 + step) / (10 + step))`, as Flow-GRPO has it.

    Young averages move fast, so that the first evaluations do not show the initial weights.
    """
    return min(largest, (1 + step) / (10 + step))


def learning_rate(spec: Spec, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 1; a pure function, so nothing about it is stored."""
    table, total = spec.optimizer, spec.run.epochs * spec.optimizer.updates
    if step <= table.warmup:
        return table.lr * step / table.warmup
    done = (step - 1 - table.warmup) / max(1, total - table.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return table.lr * shapes[table.lr_schedule]
