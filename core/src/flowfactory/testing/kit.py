"""Which checks the entries of a distribution owe, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
from packaging.utils import canonicalize_name

from flowfactory.contracts.hooks import PROJECT
from flowfactory.contracts.types import Row
from flowfactory.data.rows import load_rows
from flowfactory.data.store import unpacked_folder
from flowfactory.data.text import path_of
from flowfactory.discovery.entries import KINDS, Entry, noun
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError, did_you_mean, listed
from flowfactory.testing import adapter, entry, reward, scheduler, trainer
from flowfactory.testing.subject import ROWS, Check, Hints, Keys, NotOwed, Subject, cause

SUBJECTS: Mapping[str, type[Subject]] = {
    "adapters": adapter.AdapterSubject,
    "rewards": reward.RewardSubject,
    "schedulers": scheduler.SchedulerSubject,
    "trainers": trainer.TrainerSubject,
}


@attrs.frozen
class Outcome:
    """What became of a case.

    result: "passed", "failed", "expected" (it failed, as its author said it would), "unexpected" (it passed, though
        its author said it would not) or "not applicable". why: what was found, or why it does not apply; empty if it
        passed.
    """

    result: Literal["passed", "failed", "expected", "unexpected", "not applicable"]
    why: str = ""

    @property
    def good(self) -> bool:
        """Whether the plugin may be published with it."""
        return self.result in ("passed", "expected", "not applicable")


@attrs.frozen(eq=False)
class Case:
    """One check of one entry. `fails_because`: why its author expects it to fail; empty when it should pass."""

    subject: Subject
    check: Check
    fails_because: str = ""

    @property
    def id(self) -> str:
        """`reward pickscore: permutation`."""
        return f"{noun(self.subject.entry.kind)} {self.subject.entry.name}: {self.check.__name__}"

    @property
    def what(self) -> str:
        """What must hold, in one sentence."""
        return " ".join((self.check.__doc__ or "").split())

    def run(self) -> None:
        """Raises:
        NotOwed: it does not apply.
        Exception: the entry does not pass.
        """
        self.check(self.subject)

    def outcome(self) -> Outcome:
        """Run it, whatever happens."""
        try:
            self.run()
        except NotOwed as reason:
            return Outcome("not applicable", str(reason))
        except Exception as error:
            if self.fails_because:
                return Outcome("expected", self.fails_because)
            return Outcome("failed", cause(error))
        if self.fails_because:
            return Outcome("unexpected", f"it passes now, though it should not, for: {self.fails_because}")
        return Outcome("passed")


class Kit:
    """The checks of a distribution's entries.

    Args:
        name: a distribution, or the public name of an entry, `name@distribution` where two share one.
        keys: by entry name, keys that its table needs beyond those of its `tiny`.
        rows: prompts to try entries on; the kit's own when absent.
        expected_failures: by case id, why it fails.

    Raises:
        PluginError: nothing of that name is installed.
        ValueError: a failure is expected of a case that does not exist.
    """

    def __init__(
        self,
        name: str,
        keys: Mapping[str, Keys] | None = None,
        rows: Sequence[Row] = (),
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        hints, expected = Hints(keys or {}, rows or ROWS), expected_failures or {}
        registry = Registry()
        found = entries_of(name, registry)
        subjects = [
            SUBJECTS[entry.kind](entry, hints, (lambda: registry) if entry.source.is_file else Registry)
            for entry in found
        ]
        cases = [Case(subject, check) for subject in subjects for check in owed(subject)]
        self.cases = [attrs.evolve(case, fails_because=expected.get(case.id, "")) for case in cases]
        if unknown := sorted(expected.keys() - {case.id for case in self.cases}):
            near = did_you_mean(unknown[0], [case.id for case in self.cases])
            raise ValueError(f"failures are expected of {listed(unknown)}, but there is no such case; {near}")


def owed(subject: Subject) -> Sequence[Check]:
    """What an entry owes, in the order in which a fault is best understood.

    Of one whose hook module does not load, that every entry's does: the reason is found there.
    """
    general = (*entry.CHECKS, *(() if is_own(subject.entry) or subject.entry.source.is_file else entry.PLUGIN_CHECKS))
    try:
        return (*general, *subject.checks())
    except PluginError:
        return general


def is_own(found: Entry) -> bool:
    """Whether flowfactory itself provides an entry."""
    return canonicalize_name(found.source.name) == PROJECT


def entries_of(name: str, registry: Registry) -> Sequence[Entry]:
    """The entries that `name` stands for, which may be a local file; observers owe nothing and are left out.

    Raises:
        PluginError: there is none, so that nothing would be checked.
    """
    if name.endswith(".py"):
        before = set(registry.entries())
        registry.load_file(path_of(name, Path.cwd()))
        return [found for found in registry.entries() if found not in before and found.kind in KINDS]
    entries = [found for found in registry.entries() if found.kind in KINDS]
    public, _, chosen = name.partition("@")
    named = [e for e in entries if e.name == public and (not chosen or e.source.answers_to(chosen))]
    found = [e for e in entries if e.source.answers_to(name)] or named
    if not found:
        known = {e.name for e in entries} | {e.source.name for e in entries}
        what = f"there is nothing to check: no installed distribution or entry is called `{name}`"
        raise PluginError("nothing-to-check", what, did_you_mean(name, known) or "see: flowfactory plugins list")
    return found


def counted(outcomes: Iterable[Outcome]) -> str:
    """`31 checks: 28 passed, 1 expected, 2 not applicable`."""
    counts = Counter(outcome.result for outcome in outcomes)
    parts = ", ".join(f"{number} {result}" for result, number in sorted(counts.items(), key=lambda item: -item[1]))
    return f"{sum(counts.values())} checks: {parts}"


def conformance(
    name: str,
    *,
    keys: Mapping[str, Keys] | None = None,
    prompts: Path | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A test function, with one case for every check that the entries of a distribution owe.

    Args:
        name: a distribution, or the public name of an entry.
        keys: by entry name, keys its table needs beyond those of its `tiny`; or a function `folder -> keys`.
        prompts: a file of prompts to try entries on, in place of the kit's own.
        expected_failures: by case id, e.g. `"trainer mine: microbatch_invariance"`, why it fails. A case that passes
            all the same fails the test.

    Raises:
        PluginError: no such distribution or entry is installed, so that nothing would be checked.
    """
    import pytest

    kit = Kit(name, keys, load_rows(prompts, unpacked_folder(None)) if prompts else (), expected_failures)

    def marked(case: Case) -> Any:
        reason = case.fails_because
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        return pytest.param(case, id=case.id.replace(": ", "-").replace(" ", "-"), marks=marks)

    @pytest.mark.parametrize("case", [marked(case) for case in kit.cases])
    def test(case: Case) -> None:
        try:
            case.run()
        except NotOwed as reason:
            pytest.skip(str(reason))

    test.__doc__ = f"What the entries of {name} owe."
    return test
