"""Pictures that a run has left are opened with care."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowfactory.runs import pictures
from PIL import Image


def test_more_pixels_than_memory_should_hold_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PIXELS", 8 * 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "fits.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "large.png")
    assert pictures.opened(tmp_path / "fits.png").size == (8, 8)
    with pytest.raises(pictures.PictureError, match=r"large\.png is RGB of 8 x 9 pixels"):
        pictures.opened(tmp_path / "large.png")
