"""Going on with a run: what has changed meanwhile, and whether its last checkpoint is sound. Imports no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from flowfactory.errors import RunError, shown, typed
from flowfactory.plan.plan import PLAN_FILE, SPEC_FILE, WITHOUT_EFFECT, Plan, digest_of
from flowfactory.runs import archive, environment, files
from flowfactory.runs.archive import CHECKPOINTS, State
from flowfactory.runs.files import writing
from flowfactory.runs.history import METRICS, lacking
from flowfactory.spec import toml
from flowfactory.spec.tables import Spec, unstructure
from flowfactory.spec.window import learning_rate

EARLIER = "earlier"
"""In the plan of a run that was lengthened: the digests it had before, which its checkpoints have."""
log = logging.getLogger("flowfactory")


def changes(run: Path, plan: Plan) -> str:
    """How a spec differs from the one the run began with, in words; empty if it is the same but for its epochs.

    Raises:
        RunError: what it began with cannot be read, and no checkpoint says it either.
    """
    before = _begun_with(run, plan)
    if before["digest"] in (plan.digest, digest_of(_for_epochs(plan.spec, before["spec"]["run"]["epochs"]))):
        return ""
    now = json.loads(json.dumps(unstructure(plan.spec)))
    keys = [
        f"`{'.'.join(path)}` was {json.dumps(old)} and is {json.dumps(new)}"
        for path, old, new in _different(before["spec"], now)
        if not any(path[: len(effectless)] == effectless for effectless in WITHOUT_EFFECT)
    ]
    what = f"{shown(run / SPEC_FILE)}" if keys else f"a file that {shown(run / SPEC_FILE)} names"
    details = f" ({'; '.join(keys)})" if keys else ", such as its prompts or its model's folder,"
    return f"{what}{details} was changed since the run began; put it back, or start a new run with it"


def lengthen(run: Path, plan: Plan, write: bool) -> list[str]:
    """Let a run go on to another epoch than it was to end with, and say what that does; nothing where it is the same.

    Args:
        write: whether this process is the one that writes.

    Raises:
        RunError: so many epochs are done already.
    """
    before, spec = _begun_with(run, plan), plan.spec
    planned, epochs = before["spec"]["run"]["epochs"], spec.run.epochs
    if planned == epochs:
        return []
    saved = archive.checkpoints(run / CHECKPOINTS)
    done = archive.epoch_of(saved[-1]) if saved else 0
    if epochs < done:
        raise RunError(f"{shown(run)} has finished epoch {done} already; it cannot end with epoch {epochs}")
    if write:
        made = plan.as_json() | {EARLIER: [*before.get(EARLIER, []), before["digest"]]}
        with writing(run):
            files.write_whole(run / SPEC_FILE, toml.dumps(unstructure(spec)).encode())
            files.write_whole(run / PLAN_FILE, (json.dumps(made, indent=2) + "\n").encode())
    schedule, step = spec.optimizer.lr_schedule, done * spec.optimizer.updates
    what = f"{shown(run)} ends with epoch {epochs} now, not {planned}"
    if schedule == "constant" or not saved:
        return [f"{what}; its learning rate is {schedule}"]
    last = learning_rate(spec.optimizer, max(step, 1), planned)
    following = learning_rate(spec.optimizer, step + 1, epochs)
    falls = f"its learning rate ({schedule}) falls to zero over {epochs} epochs now, not over {planned}"
    return [what, f"{falls}: it goes on with {following:.3g}, after {last:.3g} in epoch {done}"]


def differences(run: Path, plan: Plan) -> list[str]:
    """What is not as it was when the last checkpoint was written; nothing where results will be the same to the bit.

    Raises:
        RunError: that checkpoint is damaged, or was made by another experiment.
    """
    saved = archive.checkpoints(run / CHECKPOINTS)
    if not saved:
        return [f"{shown(run)} has no checkpoint yet; it begins again"]
    last = saved[-1]
    if damage := archive.damage(last):
        raise RunError(f"{damage}: this checkpoint is damaged. {_way_round(run, saved)}")
    state = archive.read(last)
    before = _begun_with(run, plan)
    if state.origin.digest not in (plan.digest, before["digest"], *before.get(EARLIER, [])):
        raise RunError(f"{shown(last)} was made by another experiment than {shown(run / SPEC_FILE)} describes")
    return [*_versions(last.name, state, plan), *_processes(last.name, state, plan)]


def way_on(run: Path, repeats: bool = False) -> list[str]:
    """After a failure: what is left of a run, and what to do with it; nothing where training had not begun.

    Args:
        repeats: whether going on would end in the same way.

    Nothing either where the last checkpoint is damaged: that was the failure, and it was said what to do.
    """
    if saved := archive.checkpoints(run / CHECKPOINTS):
        if archive.damage(saved[-1]):
            return []
        if repeats:
            return [f"the last checkpoint is {shown(saved[-1])}"]
        return [f"the last checkpoint is {shown(saved[-1])}; go on from there with: flowfactory resume {typed(run)}"]
    return ["no checkpoint had been saved"] if (run / METRICS).exists() else []


def versions(plan: Plan) -> dict[str, str]:
    """What decides results beside the spec: core, the plugins in use, and the libraries core requires."""
    libraries = {name: version for name, version in environment.packages().items() if version}
    return {**libraries, **plan.versions}


def _begun_with(run: Path, plan: Plan) -> Mapping[str, Any]:
    """The content of `plan.json`. Where that is damaged, a checkpoint of the same experiment vouches for it."""
    file = run / PLAN_FILE
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict) or any(lacking(before)):
            raise ValueError("it is not what `run` has written")
        return before
    except (OSError, ValueError, RecursionError) as error:
        why = f"{shown(file)} cannot be read: {error if file.stat().st_size else 'it is empty'}"
        if plan.digest in _digests(run):
            log.warning("%s; the checkpoints are of this experiment, so it is written anew", why)
            with writing(file):
                files.write_whole(file, plan.text().encode())
            return plan.as_json()
        what = f"no intact checkpoint was made by the experiment that {shown(run / SPEC_FILE)} describes"
        raise RunError(f"{why}; {what}: begin anew with: flowfactory run {typed(run / SPEC_FILE)}") from error


def _for_epochs(spec: Spec, epochs: int) -> Spec:
    return attrs.evolve(spec, run=attrs.evolve(spec.run, epochs=epochs))


def _digests(run: Path) -> set[str]:
    """Of the experiments that made the run's checkpoints, as far as those can be read."""
    found = set()
    for path in archive.checkpoints(run / CHECKPOINTS):
        with suppress(ValueError):
            found.add(archive.read(path).origin.digest)
    return found


def _way_round(run: Path, saved: list[Path]) -> str:
    """What to do about a damaged last checkpoint."""
    sound = next((path for path in reversed(saved[:-1]) if not archive.damage(path)), None)
    if sound is None:
        return f"No other one is intact; begin anew with: flowfactory run {typed(run / SPEC_FILE)}"
    rest = " ".join(typed(path) for path in saved[saved.index(sound) + 1 :])
    return f"{shown(sound)} is intact; go on from there with: rm -r {rest} && flowfactory resume {typed(run)}"


def _versions(checkpoint: str, state: State, plan: Plan) -> Iterator[str]:
    now = versions(plan)
    for name, version in state.origin.versions.items():
        if now.get(name) != version:
            yield f"{name} was {version} when {checkpoint} was written and is {now.get(name, 'not in use')} now"


def _processes(checkpoint: str, state: State, plan: Plan) -> Iterator[str]:
    if state.origin.world != plan.world:
        what = f"the number of processes was {state.origin.world} when {checkpoint} was written and is {plan.world} now"
        yield f"{what}: sums are added up in another order, so results agree within rounding, not to the bit"


def _different(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two values differ: the address, the old and the new value, `None` where there is none."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _different(old.get(key), new.get(key), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _different(one, other, (*path, str(number)))
    elif old != new:
        yield path, old, new
