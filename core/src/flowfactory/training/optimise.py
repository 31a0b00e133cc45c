"""The second half of an epoch: terms, losses, optimizer steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs
import torch

from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.seeds import Draws, Key
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Batch, Update
from flowfactory.metrics.instruments import Instruments
from flowfactory.metrics.means import Means, merge
from flowfactory.policy import finite
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.runs.checkpoint import Progress
from flowfactory.sampling.epochs import trained_steps
from flowfactory.sampling.source import Collected, Member
from flowfactory.spec import window
from flowfactory.spec.tables import Spec


@attrs.frozen(eq=False)
class Learner:
    """What the second half of an epoch is made with; optimizers are by role."""

    spec: Spec
    processes: Processes
    instruments: Instruments
    conditions: ConditionStore
    policy: ModelPolicy
    scheduler: Scheduler[Any]
    trainer: Trainer[Any]
    weights: Weights
    optimizers: Mapping[str, torch.optim.Optimizer]


NORM = "train/gradient_norm"
CURRENT = "current"


@attrs.frozen
class Turn:
    """A step of an update: the trained weights' one, or a role's, counted from 0."""

    role: str = CURRENT
    number: int = 0

    @property
    def key(self) -> Key:
        """What tells its random streams from those of other turns."""
        return () if self.role == CURRENT else (self.role, self.number)


def turns(needs: Needs) -> list[Turn]:
    """Those of an update, in order; one where there are no roles."""
    return [*(Turn(name, i) for name, role in needs.roles.items() for i in range(role.steps)), Turn()]


@attrs.frozen(eq=False)
class MicroBatch:
    """The numbers of some of a process's samples, and what their trainer wants to train on.

    role: whose turn it is.
    units: how many samples it counts for, or groups where the loss is theirs; 0 if it only keeps this process in step
        with others that have more.
    shares: those of its update; see `shares_of`.
    """

    role: str
    samples: Sequence[int]
    units: int
    on_policy: bool
    shares: Mapping[int, float]
    terms: Sequence[Any]


def optimise(
    learner: Learner, progress: Progress, epoch: int, made: Collected, stop: StopRequest
) -> tuple[Progress, dict[str, float]]:
    """The optimizer steps of an epoch; returns how far the run has come, and the metrics of training.

    All terms are made before the first step, under the weights that sampled. An update is a turn of each role.

    Raises:
        Stopped: a signal arrived; some of the steps may have been made.
    """
    spec, means, step, order = learner.spec, Means(), progress.step, turns(learner.trainer.needs)
    with learner.instruments.clock("terms"), torch.no_grad(), stop.abandoning(learner.processes):
        updates = [[prepare(learner, epoch, made, u, turn) for turn in order] for u in range(spec.optimizer.updates)]
    with (
        learner.instruments.display.phase(
            f"epoch {epoch}/{spec.run.epochs}: training", len(made.members) * len(order), "samples"
        ) as bar,
        learner.instruments.clock("update"),
    ):
        for index, parts in enumerate(updates):
            step += 1
            for turn, batches in zip(order, parts, strict=True):
                with learner.weights.using(turn.role):
                    if accumulate(learner, made, batches, means, bar.advance, stop):
                        where = f"epoch {epoch}, update {index + 1} of {len(updates)}"
                        take_step(learner, turn.role, where, step, means)
            learner.trainer.after_update(learner.policy, Update(epoch, index, step, last=index == len(updates) - 1))
    metrics = merge(learner.processes.gather_objects([means.totals()]))
    learner.trainer.after_epoch(made.metrics | metrics)
    return Progress(epoch, step), metrics | learner.policy.read_counts() | {"lr": learning_rate(spec, step)}


def prepare(learner: Learner, epoch: int, made: Collected, update: int, turn: Turn) -> list[MicroBatch]:
    """The micro-batches of one turn of an update. Samples without an advantage are left out.

    Where weights are divided there are as many on every process: what is missing is made up for by the first one again.
    """
    needs, size = learner.trainer.needs, len(made.members) // learner.spec.optimizer.updates
    usable = [i for i in range(update * size, (update + 1) * size) if not made.advantages[i].isnan().all()]
    on_policy, shares = update == 0 and needs.rollout == "current", shares_of(learner.spec, epoch, update)
    whole = [[i] for i in usable] if needs.batch == "samples" else by_group(made, usable)
    alike = groupby(whole, lambda unit: made.trajectories.steps(unit[0]))
    pieces = [piece for _, same in alike for piece in filled(list(same), learner.spec.optimizer.micro_batch)]
    own, batches = len(pieces), []
    pieces += [[*whole, [update * size]][:1]] * (learner.processes.most(own) - own)
    for number, piece in enumerate(pieces):
        chunk = [i for unit in piece for i in unit]
        draws = Draws([(*draws_key(learner, epoch, made.members[i]), *turn.key) for i in chunk])
        batch = batch_of(learner, made, turn.role, chunk, on_policy, shares)
        with learner.policy.heard(number < own):
            terms = learner.trainer.terms(learner.policy, batch, draws)
        batches.append(MicroBatch(turn.role, chunk, len(piece) if number < own else 0, on_policy, shares, terms))
    return batches


def by_group(made: Collected, samples: Sequence[int]) -> list[list[int]]:
    """Samples by their groups, in order."""
    groups: dict[int, list[int]] = {}
    for i in samples:
        groups.setdefault(made.members[i].group.slot, []).append(i)
    return list(groups.values())


def filled(units: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Units side by side in pieces of at most `size` samples; one that is larger makes a piece of its own."""
    piece: list[list[int]] = []
    for unit in units:
        if piece and sum(map(len, piece)) + len(unit) > size:
            yield piece
            piece = []
        piece.append(unit)
    if piece:
        yield piece


def draws_key(learner: Learner, epoch: int, member: Member) -> Key:
    """What the random stream of a sample is for; members of a group share one where the trainer asks for that."""
    own = (member.replica,) if learner.trainer.needs.draws == "sample" else ()
    return (learner.spec.run.seed, "terms", epoch, member.group.slot, *own)


def batch_of(
    learner: Learner, made: Collected, role: str, samples: Sequence[int], on_policy: bool, shares: Mapping[int, float]
) -> Batch:
    """What the trainer sees of some samples; made anew when needed, since conditions are large.

    Only surplus micro-batches may hold a sample without an advantage; there it is 0.
    """
    device, chosen = learner.processes.device, torch.tensor(samples)
    return Batch(
        made.trajectories[samples].to(device),
        learner.conditions.batch([made.members[i].group.row for i in samples], device),
        made.advantages[chosen].nan_to_num(0.0).to(device),
        on_policy,
        learner.scheduler,
        torch.tensor([made.members[i].group.slot for i in samples], device=device),
        [learner.conditions.rows[made.members[i].group.row] for i in samples],
        {label: column[chosen].to(device) for label, column in made.scores.items()},
        made.epoch,
        role,
        shares,
        *((None, None) if made.parents is None else lineage(made, samples, device)),
    )


def lineage(made: Collected, samples: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of some branches within their groups, and those of the ones they go on from."""
    assert made.parents is not None
    numbers = torch.tensor([made.members[i].replica for i in samples], device=device)
    return numbers, made.parents[list(samples)].to(device)


def shares_of(spec: Spec, epoch: int, update: int) -> dict[int, float]:
    """Of all stochastic steps that an update trains at, on all processes, which share is at each."""
    size = spec.sampling.prompts // spec.optimizer.updates
    slots = range(update * size, (update + 1) * size)
    counts = Counter(step for slot in slots for step in trained_steps(spec, epoch, slot))
    return {step: count / counts.total() for step, count in sorted(counts.items())}


def accumulate(
    learner: Learner,
    made: Collected,
    batches: Sequence[MicroBatch],
    means: Means,
    advance: Callable[[int], None],
    stop: StopRequest,
) -> bool:
    """Gradients of one turn: the mean over all its samples or groups, on all processes, and over each one's terms.

    Terms of noise levels at which no trained network answers have no gradient, as an average over all levels has it.

    Returns whether there was anything to learn from.
    """
    learner.optimizers[CURRENT].zero_grad()  # roles have the same parameters, with other values in them
    total = learner.processes.sum(sum(micro.units for micro in batches))
    with stop.abandoning(learner.processes):
        for micro in batches:
            batch = batch_of(learner, made, micro.role, micro.samples, micro.on_policy, micro.shares)
            weight = micro.units / total / len(micro.terms)
            for term in micro.terms:
                with learner.policy.heard(micro.units > 0):
                    loss = learner.trainer.loss(learner.policy, batch, term)
                objective = torch.stack(list(loss.parts.values())).sum() * weight
                if objective.requires_grad or learner.policy.trains_everywhere():
                    with learner.instruments.stopwatch.backward():
                        learner.processes.backward(objective)
                if micro.units:
                    means.add({f"loss/{name}": value for name, value in loss.parts.items()}, weight)
                    means.add({f"train/{name}": value for name, value in loss.metrics.items()}, weight)
            advance(len(micro.samples) if micro.units else 0)
    learner.processes.sum_gradients(learner.weights.parameters.values())
    return total > 0 and any(p.grad is not None for p in learner.weights.parameters.values())


def take_step(learner: Learner, role: str, where: str, step: int, means: Means) -> None:
    """One optimizer step of a role, and the average after the trained weights'.

    A number that is not finite ends the run, and `where` is said.
    """
    own, optimizer = learner.trainer.needs.roles.get(role), learner.optimizers[role]
    norm = learner.processes.clip(learner.weights.parameters.values(), learner.spec.optimizer.clip_norm)
    skipped = learner.processes.rescaling and not bool(norm.isfinite())
    if not skipped:
        means.add({f"{NORM}/{role}" if own else NORM: norm}, 1.0)
    totals = {name: total for name, (total, _) in means.totals().items() if name.startswith(("loss/", NORM))}
    finite.check_step(learner.processes, where, totals)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(learner.spec, step) * (own.lr if own else 1.0)
    optimizer.step()
    finite.check_weights(learner.processes, where, learner.weights)
    if learner.spec.optimizer.ema and not own:
        learner.weights.move("ema", ema_decay(learner.spec.optimizer.ema, step))


def ema_decay(largest: float, step: int) -> float:
    """The decay of the average at optimizer step `step`: `min(largest, (1 + step) / (10 + step))`, as Flow-GRPO has it.

    Young averages move fast, so that the first evaluations do not show the initial weights.
    """
    return min(largest, (1 + step) / (10 + step))


def learning_rate(spec: Spec, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 1; a pure function, so nothing about it is stored."""
    return window.learning_rate(spec.optimizer, step, spec.run.epochs)
