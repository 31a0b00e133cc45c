"""The second half of an epoch: terms, losses, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch, Update
from flowfactory.metrics.metrics import Means, merge
from flowfactory.runs.checkpoint import Progress
from flowfactory.sampling.collect import Collected, chunks
from flowfactory.spec.tables import Spec
from flowfactory.training.assembly import Parts


@attrs.frozen(eq=False)
class MicroBatch:
    """The numbers of some of a process's samples, and what their trainer wants to train on.

    surplus: it only keeps this process in step with the others, which have more, and counts for nothing.
    """

    samples: Sequence[int]
    on_policy: bool
    terms: Sequence[Any]
    surplus: bool


def optimise(parts: Parts, progress: Progress, epoch: int, made: Collected) -> tuple[Progress, dict[str, float]]:
    """The optimizer steps of an epoch; returns how far the run has come, and the metrics of training.

    All terms are made before the first step, under the weights that sampled.
    """
    spec, means, step = parts.spec, Means(), progress.step
    with parts.clock("terms"), torch.no_grad():
        updates = [prepare(parts, epoch, made, index) for index in range(spec.optimizer.updates)]
    with (
        parts.ui.phase(f"epoch {epoch}/{spec.run.epochs}: training", len(made.members), "samples") as bar,
        parts.clock("update"),
    ):
        for index, batches in enumerate(updates):
            step += 1
            if accumulate(parts, made, batches, means, bar.advance):
                take_step(parts, step, means)
            parts.trainer.after_update(parts.policy, Update(epoch, index, step, last=index == len(updates) - 1))
    metrics = merge(parts.processes.gather_objects([means.totals()]))
    return Progress(epoch, step), metrics | parts.policy.read_counts() | {"lr": learning_rate(spec, step)}


def prepare(parts: Parts, epoch: int, made: Collected, update: int) -> list[MicroBatch]:
    """The micro-batches of one update. Samples without an advantage are left out.

    Where weights are divided there are as many on every process: what is missing is made up for by single samples.
    """
    size = len(made.members) // parts.spec.optimizer.updates
    usable = [i for i in range(update * size, (update + 1) * size) if not math.isnan(made.advantages[i])]
    on_policy = update == 0 and parts.trainer.needs.rollout == "current"
    pieces = list(chunks(usable, parts.spec.optimizer.micro_batch))
    own, batches = len(pieces), []
    pieces += [[*usable, update * size][:1]] * (parts.processes.most(own) - own)
    for number, chunk in enumerate(pieces):
        members = [made.members[i] for i in chunk]
        draws = Draws([(parts.spec.run.seed, "terms", epoch, m.group.slot, m.replica) for m in members])
        terms = parts.trainer.terms(parts.policy, batch_of(parts, made, chunk, on_policy), draws)
        batches.append(MicroBatch(chunk, on_policy, terms, surplus=number >= own))
    return batches


def batch_of(parts: Parts, made: Collected, samples: Sequence[int], on_policy: bool) -> Batch:
    """What the trainer sees of some samples; made anew when needed, since conditions are large.

    Only surplus micro-batches may hold a sample without an advantage; there it is 0.
    """
    device, chosen = parts.processes.device, torch.tensor(samples)
    return Batch(
        made.rollout[chosen].to(device),
        parts.data.conditions.batch([made.members[i].group.row for i in samples], device),
        made.advantages[chosen].nan_to_num(0.0).to(device),
        on_policy,
        parts.scheduler,
    )


def accumulate(
    parts: Parts, made: Collected, batches: Sequence[MicroBatch], means: Means, advance: Callable[[int], None]
) -> bool:
    """Gradients of one update: the mean over all its samples, on all processes, and over each one's terms.

    Returns whether there was any sample to learn from.
    """
    parts.optimizer.zero_grad()
    total = parts.processes.sum(sum(len(micro.samples) for micro in batches if not micro.surplus))
    for micro in batches:
        batch = batch_of(parts, made, micro.samples, micro.on_policy)
        counted = 0 if micro.surplus else len(micro.samples)
        weight = counted / total / len(micro.terms)
        for term in micro.terms:
            loss = parts.trainer.loss(parts.policy, batch, term)
            with parts.stopwatch.backward():
                parts.processes.backward(torch.stack(list(loss.parts.values())).sum() * weight)
            if counted:
                means.add({f"loss/{name}": value for name, value in loss.parts.items()}, weight)
                means.add({f"train/{name}": value for name, value in loss.metrics.items()}, weight)
        advance(counted)
    parts.processes.sum_gradients(parts.weights.parameters.values())
    return total > 0


def take_step(parts: Parts, step: int, means: Means) -> None:
    """One optimizer step, and the average after it."""
    norm = parts.processes.clip(parts.weights.parameters.values(), parts.spec.optimizer.clip_norm)
    means.add({"train/gradient_norm": norm}, 1.0)
    for group in parts.optimizer.param_groups:
        group["lr"] = learning_rate(parts.spec, step)
    parts.optimizer.step()
    if parts.spec.optimizer.ema:
        parts.weights.move("ema", ema_decay(parts.spec.optimizer.ema, step))


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
