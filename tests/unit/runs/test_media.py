"""Samples on disk: videos as mp4."""

from __future__ import annotations

import pytest
import torch
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
