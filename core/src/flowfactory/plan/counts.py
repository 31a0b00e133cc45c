"""The numbers of a plan: what is sampled, looked at, trained and asked of the network, each with a reason. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import product

import attrs

from flowfactory.contracts.specs import SchedulerSpec, StochasticSpec
from flowfactory.data.rows import load
from flowfactory.data.sources import drawn
from flowfactory.spec import window
from flowfactory.spec.rules.teams import teams_of, told
from flowfactory.spec.tables import Full, Spec
from flowfactory.spec.window import Growth


@attrs.frozen
class Number:
    """One number of the plan: what it counts, and how it comes about."""

    name: str
    value: int
    reason: str


def numbers(spec: Spec, world: int) -> Iterator[Number]:
    """All that follow from a spec on `world` processes."""
    count, who = teams_of(world, spec.memory), _count(world, "process", "processes")
    if count < world:
        why = f"{who} / {world // count} that share the tokens of each sample: {told(spec.memory)}"
        yield Number("teams", count, why)
        who = f"{_count(count, 'team')} of {world // count} processes"
    yield from _sampling(spec, count, who)
    yield from _updates(spec, count, who)
    yield from _passes(spec, count)
    yield from _run(spec)


def undoes(spec: Spec) -> bool:
    """Whether what an epoch changes is copied before, so that no end of the run loses the epoch before it.

    All weights are not where an epoch has one step, which is made last.
    """
    return spec.optimizer.updates > 1 or bool(spec.trainer.spec.needs.roles) or not isinstance(spec.tuning, Full)


def _sampling(spec: Spec, teams: int, who: str) -> Iterator[Number]:
    s, source = spec.sampling, spec.trainer.spec.needs.source
    samples, own = s.prompts * spec.group, s.prompts * spec.group // teams
    together = spec.group if (apart := window.drawn_for_prompts(spec.scheduler.spec)) else own
    batches = own // together * math.ceil(together / s.micro_batch)
    growth = window.largest(spec.trainer.spec.needs.branches, spec.scheduler.spec, s.steps)
    if growth is None:
        yield Number("samples", samples, f"samples per epoch: {s.prompts} prompts x groups of {spec.group}")
        yield from _looks(spec)
    else:
        samples, own = samples * len(growth.leaves), own * len(growth.leaves)
        yield from _branches(spec, growth)
    yield Number("samples_per_process", own, f"{samples} samples / {who}")
    yield from _shares(spec)
    if source != "rollouts":
        shown = "the media of each row" if source == "media" else "the chosen and the rejected of each row"
        yield Number("sampling_calls", 0, f"nothing is sampled: trainer `{spec.trainer.name}` learns from {shown}")
        used, rows = rows_drawn(spec)
        how = f"{used} of {_count(rows, 'row')} are drawn, with {spec.group} each; encoded once and kept"
        yield Number("media", used * spec.group, how)
        return
    each = "at most, since groups have steps of their own" if apart else "rounded up"
    calls = batches * spec.scheduler.spec.calls(s.steps)
    how = f"{batches} batches x {s.steps} steps" + ("" if calls == batches * s.steps else f", {calls} calls in all")
    if growth is None:
        made = f"per process: {own} samples / micro-batches of {s.micro_batch}, {each}"
        yield Number("sampling_batches", batches, made)
    else:
        calls = own // together // len(growth.leaves) * growth.calls(together, s.micro_batch)
        how = f"{growth.together(s.micro_batch)} starts side by side, {s.micro_batch} rows at a time, at most"
    yield Number("sampling_calls", calls, f"of the network, per process: {how}")
    if s.refill:
        how = f"at most, per process: {s.refill} further rounds of every group"
        yield Number("refill_calls", s.refill * calls, how)
    if isinstance(scheduler := spec.scheduler.spec, StochasticSpec):
        steps = len(window.stochastic_steps(scheduler.window, s.steps, spec.run.seed, 1))
        why = f"of {s.steps} steps: window rule {scheduler.window.rule!r}, never the last"
        yield Number("stochastic_steps", steps, why)
    else:
        yield Number("stochastic_steps", 0, f"scheduler `{spec.scheduler.name}` is deterministic")


def rows_drawn(spec: Spec) -> tuple[int, int]:
    """How many rows the run may draw, those that replace others among them, and how many there are.

    Raises:
        DataError: the rows cannot be read.
    """
    sources, epochs = spec.data.sources, range(1, max(1, spec.run.epochs) + 1)
    rows, rounds = [len(load(source.prompts)) for source in sources], 1 + spec.sampling.refill
    asked = drawn(tuple(source.share for source in sources), epochs, spec.sampling.prompts)
    return sum(min(own, rounds * count) for own, count in zip(rows, asked, strict=True)), sum(rows)


def _branches(spec: Spec, growth: Growth) -> Iterator[Number]:
    """How many samples branches end in, how many are trained, and what that asks of the network."""
    s, ends, each = spec.sampling, len(growth.leaves), len(growth.steps)
    starts, most = s.prompts * s.group, "" if window.fixed(spec.scheduler.spec, s.steps) else ", at most"
    out = f"samples per epoch{most}: {s.prompts} prompts x {s.group} starts x {ends} ends of branches"
    yield Number("samples", starts * ends, out)
    yield Number("branches", starts * each, f"trained, per epoch{most}: {starts} x {each}, of one stochastic step each")
    how = f"of samples, per epoch{most}: {starts} x {sum(growth.rows)}; what branches share is computed once"
    yield Number("branch_passes", starts * sum(growth.rows), how)


def _looks(spec: Spec) -> Iterator[Number]:
    """What is scored beside the samples, and what that asks of the network."""
    needs, steps, samples = spec.trainer.spec.needs, spec.sampling.steps, spec.sampling.prompts * spec.group
    if needs.looks != "none":
        looks = window.looked_at(needs.looks, window.earliest(spec.scheduler.spec, steps))
        most = "" if window.fixed(spec.scheduler.spec, steps) else ", at most"
        how = f"scored besides, per epoch{most}: {samples} samples x {_count(len(looks), 'state')} on the way"
        yield Number("looks", samples * len(looks), f"{how}, {needs.looks}")
        rest = _completed(spec)
        yield Number("look_passes", samples * rest, f"of samples, per epoch{most}: {samples} x {rest} further steps")


def _completed(spec: Spec) -> int:
    """How many further steps the states of a sample take that are looked at completed."""
    if spec.trainer.spec.needs.looks != "completed":
        return 0
    scheduler, steps = spec.scheduler.spec, spec.sampling.steps
    return sum(scheduler.calls(steps - 1 - step) for step in window.earliest(scheduler, steps))


def _shares(spec: Spec) -> Iterator[Number]:
    """How many prompts of an epoch come from each source, where they have names."""
    parts, prompts = tuple(source.share for source in spec.data.sources), spec.sampling.prompts
    for source, count in zip(spec.data.source or (), drawn(parts, range(1, 2), prompts), strict=False):
        how = f"of an epoch's {prompts}: share {source.share} of {sum(parts)}"
        whole = prompts * source.share % sum(parts) == 0
        exact = f"{prompts * source.share / sum(parts):.4g}"
        yield Number(f"prompts_{source.name}", count, how if whole else f"{how}, which is {exact}: epochs take turns")


def _updates(spec: Spec, teams: int, who: str) -> Iterator[Number]:
    s, o = spec.sampling, spec.optimizer
    growth = window.largest(spec.trainer.spec.needs.branches, spec.scheduler.spec, s.steps)
    groups, size = s.prompts // o.updates, spec.group * (len(growth.steps) if growth else 1)
    batch, own = groups * size, groups * size // teams
    if spec.trainer.spec.needs.batch == "groups":
        accumulation = math.ceil(groups // teams / (together := max(1, o.micro_batch // size)))
        held = f"micro-batches per update: {groups // teams} groups / {together} whole ones at a time, rounded up"
    else:
        together = size if (apart := window.drawn_for_prompts(spec.scheduler.spec)) else own
        steps = Counter(growth.steps).values() if growth else [1]
        parts = [together * count // sum(steps) for count in steps]
        accumulation = own // together * sum(math.ceil(part / o.micro_batch) for part in parts)
        each = "at most, since groups have steps of their own" if apart else "rounded up"
        held = (
            f"micro-batches per update: {own} samples / {o.micro_batch} at a time, {'by step, ' * bool(growth)}{each}"
        )
    yield Number("updates", o.updates, "optimizer steps per epoch, as [optimizer] updates says")
    yield Number("groups_per_update", groups, f"{s.prompts} prompts / {_count(o.updates, 'update')}; whole groups")
    yield Number("effective_batch", batch, f"samples behind each update: {groups} groups x {size}")
    yield Number("samples_per_update_per_process", own, f"{batch} samples / {who}")
    if unlike(spec):
        held += f"; {s.micro_batch} at a time are sampled: first ratios are exactly 1 where the two are the same"
    yield Number("accumulation", accumulation, held)
    if spec.trainer.spec.needs.old == "replayed":
        yield _replayed(spec, batch, growth)
    if reach := spec.scheduler.spec.calls(min(spec.trainer.spec.needs.gradient, s.steps)):
        why = f"of samples, per epoch: {s.prompts * size} x {_count(reach, 'step')} that rewards' gradients go through"
        yield Number("gradient_passes", s.prompts * size * reach, why)


def unlike(spec: Spec) -> bool:
    """Whether probabilities are compared that were computed in batches of other sizes, and so rounded otherwise."""
    needs = spec.trainer.spec.needs
    compares = needs.density != "none" and needs.old != "replayed"
    return compares and spec.sampling.micro_batch != spec.optimizer.micro_batch


def _replayed(spec: Spec, batch: int, growth: Growth | None) -> Number:
    """Passes of the steps that updates ask about again. The first need not: its own numbers are the old ones."""
    steps = 1 if growth else len(window.earliest(spec.scheduler.spec, spec.sampling.steps))
    later = spec.optimizer.updates - (1 if spec.trainer.spec.needs.rollout == "current" else 0)
    why = f"of samples, per epoch: {batch} x {_count(steps, 'step')} x {_count(later, 'update')} after the first"
    return Number("replay_passes", batch * steps * later, why)


def _passes(spec: Spec, teams: int) -> Iterator[Number]:
    """How many samples pass the network in an epoch, if none fails and the trainer says what it asks for."""
    s, o, trainer, scheduler = spec.sampling, spec.optimizer, spec.trainer.spec, spec.scheduler.spec
    growth, steps = window.largest(trainer.needs.branches, scheduler, s.steps), window.earliest(scheduler, s.steps)
    group, stochastic = (s.group * len(growth.steps), 1) if growth else (spec.group, len(steps))
    turns = {**{name: role.steps for name, role in trainer.needs.roles.items()}, "current": 1}
    forward, trained = _sampled(spec, teams), dict.fromkeys(turns, 0)
    for update, (role, times) in product(range(o.updates), turns.items()):
        reach = scheduler.calls(min(trainer.needs.gradient, s.steps))
        asked = (0, group * reach) if reach else trainer.passes(role, update, group, stochastic, s.steps)
        if asked is None:
            return
        forward += s.prompts // o.updates * times * asked[0]
        trained[role] += s.prompts // o.updates * times * asked[1]
    most, roles = "" if window.fixed(scheduler, s.steps) else ", at most", ", ".join(trainer.needs.roles)
    how = f"of samples, per epoch{most}, without a gradient: to sample, to look, and what the trainer compares with"
    yield Number("forward_passes", forward, how)
    how = f"of samples, per epoch{most}, with a gradient" + (f"; those of {roles} among them" if roles else "")
    yield Number("trained_passes", sum(trained.values()), how)
    for name in trainer.needs.roles:
        yield Number(f"{name}_passes", trained[name], f"of samples, per epoch, with a gradient: in turns of `{name}`")


def _sampled(spec: Spec, teams: int) -> int:
    """How many samples pass the network to be sampled and looked at; steps that a group shares are counted once."""
    s = spec.sampling
    scheduler: SchedulerSpec = spec.scheduler.spec
    if spec.trainer.spec.needs.source != "rollouts":
        return 0
    growth = window.largest(spec.trainer.spec.needs.branches, scheduler, s.steps)
    if growth is not None:
        return s.prompts * s.group * sum(growth.rows)
    own = s.prompts * s.group // teams
    first = next(iter(window.earliest(scheduler, s.steps)), 0) if s.shared_noise else 0
    rest = scheduler.calls(s.steps - first)
    together = s.group if window.drawn_for_prompts(scheduler) else own
    trunks = teams * (own // together) * (together // s.group + cuts(together, s.micro_batch, s.group))
    shared = scheduler.calls(s.steps) - rest
    return trunks * shared + teams * own * (rest + _completed(spec))


def cuts(samples: int, micro_batch: int, group: int) -> int:
    """How many micro-batches end inside a group; as many samples as there may be, it takes no time."""
    ends = -(-samples // micro_batch) - 1
    return ends - ends // (group // math.gcd(group, micro_batch))


def _run(spec: Spec) -> Iterator[Number]:
    epochs, updates = spec.run.epochs, spec.optimizer.updates
    yield Number("epochs", epochs, "as [run] epochs says")
    yield Number("optimizer_steps", epochs * updates, f"{epochs} epochs x {_count(updates, 'update')}")
    every = spec.eval.every
    evaluated = bool(spec.data.held_out) and every > 0
    if not evaluated:
        why = "[eval] every is 0" if spec.data.held_out else "[data] has no eval_prompts"
        yield Number("evaluations", 0, why)
    else:
        why = f"before the first epoch, every {every} epochs and after the last"
        yield Number("evaluations", 1 + _rounds(epochs, every), why)
    every = spec.checkpoint.every
    why = f"every {every} epochs and after the last" if every else "after the last epoch only"
    if evaluated and spec.checkpoint.best != "none":
        why += ", and besides after each evaluation that is the best so far"
    yield Number("checkpoints", _rounds(epochs, every or max(epochs, 1)), why)


def _rounds(epochs: int, every: int) -> int:
    """How many of `epochs` are multiples of `every` or the last."""
    return math.ceil(epochs / every)


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
