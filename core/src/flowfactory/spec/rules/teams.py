"""Rules of how processes share the work: which make a team, and with what teams do not go together."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flowfactory.errors import Problem, listed
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.tables import Memory

BACKWARD = ("native", "_native_cudnn", "_native_flash", "flash", "flash_hub", "_flash_3_hub")
"""Names of attention whose gradient diffusers knows when a team computes it."""


def teams_of(world: int, memory: Memory) -> int:
    """How many teams the processes make, each of which samples and trains on prompts of its own; one alone is one."""
    return 1 if world == 1 else world // together(memory)


def together(memory: Memory) -> int:
    """How many processes make a team, where there are several."""
    return memory.ulysses * memory.ring


def told(memory: Memory) -> str:
    """The keys that say it."""
    if memory.ulysses > 1 < memory.ring:
        return f"[memory] ulysses x ring = {together(memory)}"
    return f"[memory] ring = {memory.ring}" if memory.ring > 1 else f"[memory] ulysses = {memory.ulysses}"


def unshared(world: int, memory: Memory, prompts: int, updates: int) -> Iterator[Problem]:
    """What is wrong where processes cannot share the groups of an update evenly."""
    size = 1 if world == 1 else together(memory)
    if world % size:
        what = f"{world} processes cannot make teams of {size}, as {told(memory)} asks"
        yield Problem("world", what, None, f"start a multiple of {size}, or ask for a divisor of {world}")
        return
    if prompts % updates:
        return
    count = world // size
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
    looked_at = ("memory", "sampling.prompts", "optimizer.updates")
    return looked_at, lambda _, memory, prompts, updates: unshared(world, memory, prompts, updates)


def nearest_divisors(number: int, wanted: int, most: int = 3) -> list[int]:
    """The divisors of `number` nearest to `wanted`, rising."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small)}
    return sorted(sorted(divisors, key=lambda n: (abs(n - wanted), n))[:most])


def _compiled(where: Where, memory: Memory) -> Iterator[Problem]:
    if together(memory) > 1 and memory.compile:
        what = f"{told(memory)} does not go together with [memory] compile: blocks exchange what they compute"
        yield Problem("teams", what, where("memory", "compile"), "leave out one of them")


def _cached(where: Where, memory: Memory, cache: float | None) -> Iterator[Problem]:
    if together(memory) > 1 and cache is not None:
        why = "processes of a team would skip different blocks, which they compute together"
        what = f"{told(memory)} does not go together with [sampling] first_block_cache: {why}"
        yield Problem("teams", what, where("sampling", "first_block_cache"), "leave out one of them")


def _attention(where: Where, memory: Memory) -> Iterator[Problem]:
    own = (memory.attention or "native").lower()
    if together(memory) > 1 and own not in BACKWARD:
        what = f"{told(memory)}: attention by `{own}` has no gradient when a team computes it"
        hint = f"leave it out, or set it to one of {listed(BACKWARD)}"
        yield Problem("teams", what, where("memory", "attention"), hint)
    elif memory.ring > 1 and own == "native":
        what = f"{told(memory)}: torch's own attention does not return the log-sum-exp that a ring needs"
        hint = f"set [memory] attention to one of {listed(BACKWARD[1:])}, or ring to 1"
        yield Problem("teams", what, where("memory", "ring"), hint)


RULES: tuple[Rule, ...] = (
    (("memory",), _compiled),
    (("memory", "sampling.first_block_cache"), _cached),
    (("memory",), _attention),
)
