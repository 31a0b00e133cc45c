"""What a message advises to paste does just what it says, whatever a folder is called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from flowfactory.errors import typed
from flowfactory.runs import archive, resumption
from flowfactory.runs.archive import Origin

NAMES = ["my run", "-rf", "$(touch x)", "it's; ls", 'a"b', "ü 🙂", "a\\b", "a\nb", "a\x1b[2Jb", "`x`", "~", "*"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_typed_as_a_shell_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    read = subprocess.run(["bash", "-c", f"printf %s {typed(Path(name))}"], capture_output=True, check=True).stdout
    assert Path(read.decode()) == Path(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_way_round_a_damaged_checkpoint_removes_that_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in name.split():
        Path(part).mkdir(exist_ok=True)
    run = Path(name)
    saved = [run / archive.CHECKPOINTS / archive.name(epoch) for epoch in (1, 2)]
    for epoch, path in enumerate(saved, 1):
        path.mkdir(parents=True)
        archive.seal(path, epoch, epoch, Origin("", 1, {}))
    (saved[1] / archive.STATE).write_text("{")
    before = sorted(path for path in Path().rglob("*") if not path.is_relative_to(saved[1]))
    advice = resumption._way_round(run.absolute(), [path.absolute() for path in saved]).partition("from there with: ")[
        2
    ]
    tell = 'flowfactory() { printf "%s" "$2"; }'
    read = subprocess.run(["bash", "-c", f"{tell}\n{advice}"], capture_output=True, check=True).stdout
    assert Path(read.decode()) == run
    assert sorted(Path().rglob("*")) == before
