"""Which of a run's weights are meant, and where they go: seen before anything is loaded. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from flowfactory.errors import RunError, listed, shown
from flowfactory.metrics import merit
from flowfactory.runs import archive, files, history
from flowfactory.runs import folder as folders
from flowfactory.runs.files import writing
from flowfactory.spec.tables import Full, Spec


def weights(run: Path, spec: Spec, epoch: int | Literal["best"] | None = None, name: str | None = None) -> Path:
    """The file of a weight set in a run's folder.

    Args:
        epoch: of which checkpoint; "best", as `[checkpoint] best` judges evaluations; the last when absent.
        name: which set; when absent the averaged one, or the current one where nothing is averaged.

    Raises:
        RunError: there is none; the message names those there are. Or the checkpoint is damaged, or the base is gone.
    """
    base = Path(spec.model.spec.path)
    if base.is_absolute() and not base.exists():
        raise RunError(f"there is no {base}, its base model; --base says where it is now")
    chosen = name or ("ema" if spec.optimizer.ema else "current")
    return _find(run, best_epoch(run, spec) if epoch == "best" else epoch, chosen)


def best_epoch(run: Path, spec: Spec) -> int:
    """The epoch of the best evaluation whose checkpoint was kept.

    Raises:
        RunError: no checkpoint was evaluated, or the run's table says that none is to be the best.
    """
    (past,) = history.read_runs([run])
    kept = {archive.epoch_of(path) for path in archive.checkpoints(run / archive.CHECKPOINTS)}
    best = merit.best(spec, [(epoch, line) for epoch, line in past.metrics.items() if epoch in kept])
    if best is None:
        why = f"its [checkpoint] best is `{spec.checkpoint.best}`, and no checkpoint has an evaluation by that"
        raise RunError(f"{run} has no best checkpoint: {why}")
    return best.epoch


def _find(run: Path, epoch: int | None, weights: str) -> Path:
    found = {path.name: path for path in archive.checkpoints(run / archive.CHECKPOINTS)}
    if not found:
        raise RunError(f"{run} has no checkpoint to export")
    name = list(found)[-1] if epoch is None else archive.name(epoch)
    if name not in found:
        raise RunError(f"{run} has no checkpoint {name}; there is {', '.join(found)}")
    if damage := archive.damage(found[name]):
        others = [other for other in found if other != name and not archive.damage(found[other])]
        rest = f"--epoch takes another ({', '.join(others)})" if others else "no other one is intact"
        raise RunError(f"{damage}: this checkpoint is damaged; {rest}")
    sets = {path.stem: path for path in sorted(found[name].glob("*.safetensors")) if archive.is_set(path.stem)}
    if weights not in sets:
        raise RunError(f"{found[name]} has no weights {weights!r}; there are {', '.join(sets)}")
    return sets[weights]


def form(spec: Spec, wanted: str) -> str:
    """In which form weights are written; a fully fine-tuned model is always whole."""
    return "merged" if isinstance(spec.tuning, Full) else wanted


def place(run: Path, spec: Spec, wanted: str, to: Path | None) -> Path:
    """The folder that an export is written to: `to`, or `export/<form>` in the run's.

    Raises:
        RunError: it holds what no export has written, or cannot be written.
    """
    folder = to or run / "export" / form(spec, wanted)
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{shown(folder)} is a file; --to names a folder")
        if folder.exists() and folder.resolve().parent != (run / "export").resolve():
            ours = {folders.EXPORT, *_recorded(folder / folders.EXPORT)}
            if others := [name for name in names(folder) if name not in ours]:
                what = f"{shown(folder)} holds what no export has written ({listed(others[:3])})"
                raise RunError(f"{what}; choose an empty folder, or take it away")
        files.see_writable(folder)
    return folder


def _recorded(file: Path) -> list[str]:
    """What an older export has written; nothing where it does not say so any more."""
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []


def names(folder: Path) -> list[str]:
    """All files in a folder, by their path in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
