"""Samples on disk: videos as mp4, tables of any prompt, and sheets of whatever is left of them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.runs import media
from flowfactory.runs.media import save_video


def test_a_video_is_read_back_frame_by_frame(tmp_path):
    """Brightness within H.264's loss; the odd column is left out."""
    av = pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    assert save_video(torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 32, 49), path)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 5
    assert [round(frame.mean()) for frame in frames] == pytest.approx([0, 64, 128, 191, 255], abs=2)


def test_no_video_is_written_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not save_video(torch.zeros(2, 3, 16, 16), tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_encoded_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such codec")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(media, "_encode", fails)
    with caplog.at_level(logging.WARNING, "flowfactory"):
        assert not save_video(torch.zeros(2, 3, 16, 16), tmp_path / "video.mp4")
    assert "video.mp4 cannot be written: no such codec" in caplog.text


ODD = "one\u2028two\u2029three\x85four\udc80\x1c\r\n\x0b\x0cü"


def kept(folder: Path, *prompts: str) -> Path:
    pictures = [Sample(Row(prompt), torch.full((3, 8, 8), 0.5), i, 0) for i, prompt in enumerate(prompts)]
    media.save_samples(folder, pictures, {"r": [0.5] * len(prompts)})
    return folder


def test_a_prompt_is_one_line_of_the_table_for_every_program(tmp_path: Path) -> None:
    text = (kept(tmp_path, ODD, "plain ü") / media.TABLE).read_text("utf-8")
    assert [json.loads(line)["prompt"] for line in text.splitlines()] == [ODD, "plain ü"]
    assert "plain ü" in text


def test_a_sheet_of_odd_prompts_is_made(tmp_path: Path) -> None:
    assert media.before_after(kept(tmp_path / "a", ODD), kept(tmp_path / "b", ODD)) is not None


def test_wide_pictures_leave_no_gaps_in_a_sheet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        wide = [Sample(Row("x"), torch.zeros(3, 8, 32), slot, 0) for slot in range(9)]
        media.save_samples(tmp_path / name, wide, {"r": [0.5] * 9})
    sheet = media.before_after(tmp_path / "a", tmp_path / "b")
    assert sheet is not None
    assert sheet.height < 3 * 100  # three rows of pictures 40 high, and their words
    rows = (np.asarray(sheet.convert("L")) < 128).any(axis=1)
    assert max(len(gap) for gap in "".join("x" if dark else " " for dark in rows).split("x")) < 30


def test_a_table_that_another_version_wrote_is_read(tmp_path: Path) -> None:
    """It has the separators as they are."""
    for name in ("a", "b"):
        table = kept(tmp_path / name, "x") / media.TABLE
        table.write_text(table.read_text().replace('"x"', '"x\u2028y"'), "utf-8")
    assert media.before_after(tmp_path / "a", tmp_path / "b") is not None


@pytest.mark.parametrize(
    ("harm", "there"),
    [
        (shutil.rmtree, False),
        (lambda folder: (folder / media.TABLE).unlink(), False),
        (lambda folder: (folder / media.TABLE).write_text('{"slot": 0'), False),
        (lambda folder: (folder / media.TABLE).write_text("[1]\n"), False),
        (lambda folder: [file.unlink() for file in folder.glob("*.png")], False),
        (lambda folder: (folder / "0000.png").unlink(), True),
        (lambda folder: (folder / "0000.png").write_bytes((folder / "0000.png").read_bytes()[:40]), True),
        (lambda folder: (folder / "0000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), True),
    ],
)
def test_what_is_missing_of_the_first_samples_ends_nothing(
    tmp_path: Path, harm: Callable[[Path], object], there: bool
) -> None:
    before, after = kept(tmp_path / "a", "x", "y"), kept(tmp_path / "b", "x", "y")
    harm(before)
    assert (media.before_after(before, after) is not None) == there
