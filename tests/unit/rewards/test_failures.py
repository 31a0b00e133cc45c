"""What failed is written down once, in one order, and a resumed run leaves the same files as one that was not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.errors import everywhere
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.failures import FOLDER, TABLE, cut_back, recording
from flowfactory.rewards.session import Failure


class Several:
    """Stands for the processes: this is the main one, and the others have failures of their own to tell."""

    main = True

    def __init__(self, others: Sequence[dict[str, Any]] = ()) -> None:
        self.others, self.gathered = list(others), 0

    def gather_objects(self, values: list[Any]) -> list[Any]:
        self.gathered += 1
        return [*self.others, *values]


def failure(label: str, slot: int, prompt: str = "x") -> Failure:
    return Failure(label, "OSError: no", Sample(Row(prompt), torch.zeros(3, 4, 4), slot, 0))


def fail(folder: Path, epoch: int, *failures: Failure, processes: Any = None) -> None:
    scoring: Any = SimpleNamespace(failures=failures)
    with recording(processes or Several(), scoring, folder, epoch):
        pass


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FOLDER / TABLE).read_text("utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_those_of_all_processes_are_in_one_order(tmp_path: Path) -> None:
    others = [{"label": "a", "slot": 2, "epoch": 1}, {"label": "b", "slot": 0, "epoch": 1}]
    fail(tmp_path, 1, failure("a", 1), failure("b", 1), processes=Several(others))
    assert [(line["label"], line["slot"]) for line in lines(tmp_path)] == [("a", 1), ("a", 2), ("b", 0), ("b", 1)]


def test_any_prompt_is_one_line(tmp_path: Path) -> None:
    odd = "one\u2028two\x85three\udc80ü"
    fail(tmp_path, 1, failure("a", 0, odd))
    assert [line["prompt"] for line in lines(tmp_path)] == [odd]


@pytest.mark.parametrize(
    ("error", "gathers"),
    [(everywhere(RewardError("too many")), 1), (RewardError("its own"), 0), (KeyboardInterrupt(), 0)],
)
def test_what_one_process_dies_of_waits_for_no_other(tmp_path: Path, error: BaseException, gathers: int) -> None:
    processes, scoring = Several(), SimpleNamespace(failures=[failure("a", 0)])
    with pytest.raises(type(error)), recording(processes, scoring, tmp_path, 1):  # type: ignore[arg-type]
        raise error
    assert processes.gathered == gathers
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("torn", ["", '{"epoch": 3, "labe', '{"epoch": 3, "prompt": "\xc3'])
def test_epochs_that_are_made_again_leave_no_second_line(tmp_path: Path, torn: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        for epoch in range(4):
            fail(folder, epoch, failure("a", epoch), failure("b", 0))
    with (killed / FOLDER / TABLE).open("a", encoding="latin-1") as file:
        file.write(torn)
    cut_back(killed, 1)
    assert [line["epoch"] for line in lines(killed)] == [0, 0, 1, 1]
    assert len(list((killed / FOLDER).glob("*.png"))) == 4
    for epoch in (2, 3):
        fail(killed, epoch, failure("a", epoch), failure("b", 0))
    assert contents(killed) == contents(whole)


def test_a_run_that_begins_anew_has_no_failures_yet(tmp_path: Path) -> None:
    fail(tmp_path, 0, failure("a", 0))
    fail(tmp_path, 1, failure("a", 0))
    cut_back(tmp_path, 0)
    assert contents(tmp_path) == {}
    cut_back(tmp_path, 0)
