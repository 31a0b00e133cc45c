"""The second half of an epoch: terms, losses, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.assembly import Parts
from flowfactory.checkpoint import Progress
from flowfactory.collect import Collected, chunks
from flowfactory.metrics import Means
from flowfactory.seeds import Draws
from flowfactory.spec import Spec
from flowfactory.types import Batch, Update


@attrs.frozen(eq=False)
class Prepared:
    """A micro-batch and its terms."""

    batch: Batch
    terms: Sequence[Any]


def optimise(parts: Parts, progress: Progress, epoch: int, made: Collected) -> tuple[Progress, dict[str, float]]:
    """The optimizer steps of an epoch; returns how far the run has come, and the metrics of training.

    All terms are made before the first step, under the weights that sampled.
    """
    spec, means, step = parts.spec, Means(), progress.step
    with parts.clock("terms"), torch.no_grad():
        updates = [prepare(parts, epoch, made, index) for index in range(spec.optimizer.updates)]
    with (
        parts.ui.phase(f"epoch {epoch}/{spec.run.epochs}: training", total=len(made.members)) as bar,
        parts.clock("update"),
    ):
        for index, batches in enumerate(updates):
            step += 1
            gradient_norm = accumulate(parts, batches, means, bar.advance)
            means.add({"train/gradient_norm": gradient_norm}, 1.0)
            take_step(parts, step)
            parts.trainer.after_update(parts.policy, Update(epoch, index, step, last=index == len(updates) - 1))
    return Progress(epoch, step), {**means.read(), "lr": learning_rate(spec, step)}


def prepare(parts: Parts, epoch: int, made: Collected, update: int) -> list[Prepared]:
    """The micro-batches of one update with what their trainer wants to train on."""
    size = len(made.members) // parts.spec.optimizer.updates
    usable = [i for i in range(update * size, (update + 1) * size) if not math.isnan(made.advantages[i])]
    on_policy = update == 0 and parts.trainer.needs.rollout == "current"
    prepared = []
    for chunk in chunks(usable, parts.spec.optimizer.micro_batch):
        members, chosen = [made.members[i] for i in chunk], torch.tensor(chunk)
        batch = Batch(
            made.rollout[chosen],
            parts.data.conditions.batch([m.group.row for m in members], parts.processes.device),
            made.advantages[chosen].to(parts.processes.device),
            on_policy,
            parts.scheduler,
        )
        draws = Draws([(parts.spec.run.seed, "terms", epoch, m.group.slot, m.replica) for m in members])
        prepared.append(Prepared(batch, parts.trainer.terms(parts.policy, batch, draws)))
    return prepared


def accumulate(parts: Parts, batches: Sequence[Prepared], means: Means, advance: Callable[[int], None]) -> Tensor:
    """Gradients of one update: the mean over all its samples, on all processes, and over each one's terms."""
    parts.optimizer.zero_grad()
    own = sum(len(prepared.batch.advantages) for prepared in batches)
    total = int(parts.processes.gather(torch.tensor([own])).sum())
    for prepared in batches:
        batch, terms = prepared.batch, prepared.terms
        weight = len(batch.advantages) / total / len(terms)
        for term in terms:
            loss = parts.trainer.loss(parts.policy, batch, term)
            parts.processes.backward(sum(loss.parts.values()) * weight)  # type: ignore[arg-type]
            means.add({f"loss/{name}": value for name, value in loss.parts.items()}, weight)
            means.add({f"train/{name}": value for name, value in loss.metrics.items()}, weight)
        advance(len(batch.advantages))
    parts.processes.sum_gradients(parts.weights.parameters.values())
    return parts.processes.clip(parts.weights.parameters.values(), parts.spec.optimizer.clip_norm)


def take_step(parts: Parts, step: int) -> None:
    """One optimizer step, and the average after it."""
    for group in parts.optimizer.param_groups:
        group["lr"] = learning_rate(parts.spec, step)
    parts.optimizer.step()
    if parts.spec.optimizer.ema:
        # Young averages move fast, so that the first evaluations do not show the initial weights.
        parts.weights.move("ema", min(parts.spec.optimizer.ema, (1 + step) / (10 + step)))


def learning_rate(spec: Spec, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 1; a pure function, so nothing about it is stored."""
    table, total = spec.optimizer, spec.run.epochs * spec.optimizer.updates
    if step <= table.warmup:
        return table.lr * step / table.warmup
    done = (step - 1 - table.warmup) / max(1, total - table.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return table.lr * shapes[table.lr_schedule]
