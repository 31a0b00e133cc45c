"""Rules of how processes share the work: which make a team, and with what teams do not go together."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flowfactory.errors import Problem, listed
from flowfactory.spec.rules.rule import Rule, Where

BACKWARD = ("native", "_native_cudnn", "_native_flash", "flash", "flash_hub", "_flash_3_hub")
"""Names of attention whose gradient diffusers knows when a team computes it."""


def teams_of(world: int, ulysses: int) -> int:
    """How many teams the processes make, each of which samples and trains on prompts of its own; one alone is one."""
    return 1 if world == 1 else world // ulysses


def unshared(world: int, ulysses: int, prompts: int, updates: int) -> Iterator[Problem]:
    """What is wrong where processes cannot share the groups of an update evenly."""
    if world > 1 and world % ulysses:
        what = f"{world} processes cannot make teams of {ulysses}, as [memory] ulysses says"
        yield Problem("world", what, None, f"start a multiple of {ulysses}, or set it to a divisor of {world}")
        return
    if prompts % updates:
        return
    count, size = teams_of(world, ulysses), 1 if world == 1 else ulysses
    if (groups := prompts // updates) % count:
        near = [size * each for each in nearest_divisors(groups, count)]
        who = f"{world} processes" + (f" in {count} teams" if size > 1 else "")
        what = f"{who} cannot share the {groups} groups of an update (prompts / updates) evenly"
        hint = f"the nearest numbers of processes that divide them are {', '.join(map(str, near))}"
        if count > groups:
            hint += f"; all have work where [sampling] prompts is a multiple of {count * updates}"
        yield Problem("world", what, None, hint)


def sharing(world: int) -> Rule:
    """The rule of how many processes there are, which no spec says."""
    looked_at = ("memory.ulysses", "sampling.prompts", "optimizer.updates")
    return looked_at, lambda _, ulysses, prompts, updates: unshared(world, ulysses, prompts, updates)


def nearest_divisors(number: int, wanted: int, most: int = 3) -> list[int]:
    """The divisors of `number` nearest to `wanted`, rising."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small)}
    return sorted(sorted(divisors, key=lambda n: (abs(n - wanted), n))[:most])


def _compiled(where: Where, ulysses: int, compiled: bool) -> Iterator[Problem]:
    if ulysses > 1 and compiled:
        what = "[memory] ulysses does not go together with [memory] compile: blocks exchange what they compute"
        yield Problem("ulysses", what, where("memory", "ulysses"), "leave out one of them")


def _cached(where: Where, ulysses: int, cache: float | None) -> Iterator[Problem]:
    if ulysses > 1 and cache is not None:
        why = "processes of a team would skip different blocks, which they compute together"
        what = f"[memory] ulysses does not go together with [sampling] first_block_cache: {why}"
        yield Problem("ulysses", what, where("memory", "ulysses"), "leave out one of them")


def _attention(where: Where, ulysses: int, attention: str | None) -> Iterator[Problem]:
    if ulysses > 1 and attention is not None and attention.lower() not in BACKWARD:
        what = f"[memory] ulysses: of attention by `{attention}` no gradient is known when a team computes it"
        hint = f"leave it out, or set it to one of {listed(BACKWARD)}"
        yield Problem("ulysses", what, where("memory", "attention"), hint)


RULES: tuple[Rule, ...] = (
    (("memory.ulysses", "memory.compile"), _compiled),
    (("memory.ulysses", "sampling.first_block_cache"), _cached),
    (("memory.ulysses", "memory.attention"), _attention),
)
