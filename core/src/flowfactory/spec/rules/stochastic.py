"""Rules of noise: which steps have it, what is known of it, and at which levels is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flowfactory.contracts.key import Density
from flowfactory.contracts.specs import Branches, Decay, Needs, SchedulerSpec, StochasticSpec, Times
from flowfactory.errors import Problem, listed
from flowfactory.spec import window
from flowfactory.spec.kinds import sound
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.tables import Component

ACCEPTED: Mapping[str, tuple[Density, ...]] = {"gaussian": ("gaussian",), "any": ("gaussian", "squared-error")}
"""Which densities of a scheduler satisfy what a trainer needs; any at all where it needs none."""


def _density(where: Where, trainer: str, needs: Needs, scheduler: Component) -> Iterator[Problem]:
    density = scheduler.spec.density
    accepted = ACCEPTED.get(needs.density, ("gaussian", "squared-error", "none"))
    if needs.trajectory == "steps":
        accepted = tuple(d for d in accepted if d != "none")
    if density in accepted:
        return
    fitting = [
        c.provides.name
        for c in where.registry.loaded("schedulers")
        if issubclass(c.provides.spec, SchedulerSpec) and c.provides.spec.density in accepted
    ]
    none = "knows none of its noise" if isinstance(scheduler.spec, StochasticSpec) else "is deterministic"
    has = none if density == "none" else f"has only a surrogate for it ({density})"
    wants = "a Gaussian probability" if needs.density == "gaussian" else "a probability"
    what = f"trainer `{trainer}` needs {wants} of each step, but scheduler `{scheduler.name}` {has}"
    yield Problem(
        "density", what, where("scheduler", "name"), f"set [scheduler] name to one of {listed(sorted(fitting))}"
    )


def _window(where: Where, scheduler: Component) -> Iterator[Problem]:
    if isinstance(scheduler.spec, StochasticSpec):
        for key, what in window.meaningless(scheduler.spec.window):
            yield Problem("window", f"[scheduler] window `{key}`: {what}", where("scheduler", "window", key))


def _misfit(where: Where, steps: int, scheduler: Component) -> Iterator[Problem]:
    if isinstance(scheduler.spec, StochasticSpec):
        for key, what in window.misfits(scheduler.spec.window, steps):
            yield Problem("window", f"[scheduler] window `{key}`: {what}", where("scheduler", "window", key))


def _shared_noise(where: Where, shared: bool, scheduler: Component) -> Iterator[Problem]:
    if shared and not isinstance(scheduler.spec, StochasticSpec):
        what = f"scheduler `{scheduler.name}` is deterministic, so shared noise would make all samples of a group equal"
        yield Problem("shared-noise", what, where("sampling", "shared_noise"), "set it to false")


def _looks(where: Where, trainer: str, needs: Needs, std: str, scheduler: SchedulerSpec) -> Iterator[Problem]:
    if needs.looks != "none" and std == "global" and window.drawn_for_prompts(scheduler):
        what = (
            f"trainer `{trainer}` compares single steps, but each prompt has its own, so one std for all has no meaning"
        )
        yield Problem("looks", what, where("trainer", "std"), 'set it to "group", or [scheduler] window per to "epoch"')


def _branches_of_one_start(where: Where, trainer: str, needs: Needs, shared: bool) -> Iterator[Problem]:
    if needs.branches is not None and shared:
        what = (
            f"{_branches(trainer)} share their start, and [sampling] shared_noise would make all starts of a prompt "
            "equal"
        )
        yield Problem(
            "branches", what, where("sampling", "shared_noise"), "set it to false; more branches give more samples"
        )


def _branches_and_shards(where: Where, trainer: str, needs: Needs, shard: bool) -> Iterator[Problem]:
    if needs.branches is not None and shard:
        what = (
            f"[memory] shard: all processes have to make equally many calls of the network, but {_branches(trainer)} "
            "do not"
        )
        yield Problem("branches", what, where("memory", "shard"), "set it to false")


def _branches_in_window(
    where: Where, trainer: str, branches: Branches | None, steps: int, scheduler: SchedulerSpec
) -> Iterator[Problem]:
    at = set(branches.at or ()) if branches else set[int]()
    open_steps = set(window.earliest(scheduler, steps))
    if at and open_steps and not (window.fixed(scheduler, steps) and at <= open_steps):
        only = sorted(open_steps) if window.fixed(scheduler, steps) else "drawn, or move with the epochs"
        what = f"{_branches(trainer)} divide at the steps {sorted(at)}, but those of [scheduler] window are {only}"
        yield Problem("branches", what, where("scheduler", "window"), "choose one that holds them in every epoch")


def _branches_at(where: Where, trainer: str, branches: Branches | None) -> Iterator[Problem]:
    at = branches.at or () if branches else ()
    if len(set(at)) < len(at):
        what = f"{_branches(trainer)} divide at the steps {list(at)}, one of them twice"
        yield Problem(
            "branches", what, where("trainer", "name"), "name each once; `width` says into how many they divide"
        )


def _branches_in_all(
    where: Where, trainer: str, branches: Branches | None, steps: int, scheduler: SchedulerSpec
) -> Iterator[Problem]:
    open_steps = sorted(set(window.earliest(scheduler, steps)))
    if branches is not None and (count := window.ends(branches, open_steps)) > window.MOST:
        what = f"{_branches(trainer)} would end in {count} samples of each start"
        hint = f"branch into fewer: at most {window.MOST} are sampled"
        yield Problem("branches", what, where("trainer", "name"), hint)


def _branches(trainer: str) -> str:
    return f"the branches of trainer `{trainer}`"


def _levels(where: Where, trainer: Component) -> Iterator[Problem]:
    """What is wrong with noise levels and decays, however many steps there are."""
    for name, table in sound(trainer.spec).items():
        if isinstance(table, Times):
            yield from where.each(_level(where, name, check(table)) for check in window.LEVELS)
        if isinstance(table, Decay):
            yield from where.each([_decay(where, name, table)])


def _levels_of_steps(where: Where, trainer: Component, steps: int) -> Iterator[Problem]:
    for name, table in sound(trainer.spec).items():
        if isinstance(table, Times):
            yield from where.each(_level(where, name, check(table, steps)) for check in window.LEVELS_OF_STEPS)


def _level(where: Where, name: str, found: Iterator[tuple[str, str]]) -> Iterator[Problem]:
    for key, what in found:
        yield Problem("times", f"[trainer] {name} `{key}`: {what}", where("trainer", name, key))


def _decay(where: Where, name: str, table: Decay) -> Iterator[Problem]:
    for key, what in window.decay_problems(table):
        yield Problem("decay", f"[trainer] {name} `{key}`: {what}", where("trainer", name, key))


RULES: tuple[Rule, ...] = (
    (("trainer.name", "trainer.spec.needs", "scheduler"), _density),
    (("scheduler",), _window),
    (("sampling.steps", "scheduler"), _misfit),
    (("sampling.shared_noise", "scheduler"), _shared_noise),
    (("trainer.name", "trainer.spec.needs", "trainer.spec.std", "scheduler.spec"), _looks),
    (("trainer.name", "trainer.spec.needs", "sampling.shared_noise"), _branches_of_one_start),
    (("trainer.name", "trainer.spec.needs", "memory.shard"), _branches_and_shards),
    (("trainer.name", "trainer.spec.needs.branches", "sampling.steps", "scheduler.spec"), _branches_in_window),
    (("trainer.name", "trainer.spec.needs.branches"), _branches_at),
    (("trainer.name", "trainer.spec.needs.branches", "sampling.steps", "scheduler.spec"), _branches_in_all),
    (("trainer",), _levels),
    (("trainer", "sampling.steps"), _levels_of_steps),
)
