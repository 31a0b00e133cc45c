"""Folders and files that are complete or absent, with the modes that everything else here has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flowfactory.runs.files import replacing, settle


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mode & 0o777 for p in [folder, *folder.rglob("*")]}


def test_the_umask_decides_about_modes(umask: int, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (folder / "inside").mkdir(parents=True, mode=0o700)
    for name, mode in {"a": 0o600, "inside/b": 0o400, "inside/c": 0o666}.items():
        (folder / name).touch()
        (folder / name).chmod(mode)
    settle(folder)
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes(folder) == {".": folders, "a": files, "inside": folders, "inside/b": files, "inside/c": files}


def test_a_folder_takes_another_ones_place_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with replacing(folder) as partial:
        (partial / "old").write_text("old")
        assert not folder.exists()
    with replacing(folder) as partial:
        (partial / "new").write_text("new")
        assert [p.name for p in folder.iterdir()] == ["old"]
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in folder.parent.iterdir()] == ["b"]
    assert folder.stat().st_mode == folder.parent.stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_failed(error: type[BaseException], tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with replacing(folder) as partial:
            (partial / "file").touch()
            raise error

    with pytest.raises(error):
        fail(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept").touch()
    with pytest.raises(error):
        fail(tmp_path / "there")
    assert modes(tmp_path).keys() == {".", "there", "there/kept"}


def test_what_another_one_is_writing_is_not_taken_away(tmp_path: Path) -> None:
    folder, left = tmp_path / "out", tmp_path / ".writing-out-abcdefgh"
    left.mkdir()
    with replacing(folder) as first:
        assert not left.exists()
        (first / "of").write_text("first")
        with replacing(folder) as second:
            (second / "of").write_text("second")
        assert (folder / "of").read_text() == "second"
    assert (folder / "of").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_several_may_take_one_place_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def take(number: int) -> None:
        for _ in range(40):
            with replacing(folder) as partial:
                for name in "ab":
                    (partial / name).write_text(str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(4)))
    assert (folder / "a").read_text() == (folder / "b").read_text()
    assert list(tmp_path.iterdir()) == [folder]
