"""What rows show: read, cut to size, encoded once by content, and refused in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.conditions import targets as module
from flowfactory.conditions.cache import ConditionCache
from flowfactory.conditions.targets import CachedTargets, encode_target, read_media, target_cache, target_key
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.errors import RunError
from flowfactory.runs.media import save_video
from PIL import Image
from torch import Tensor

SIZE, FILM = Size(8, 8), Size(8, 8, 3)
IDENTITY = {"encoder": "halves"}


class Halves:
    """What a model would make of media: every second row of pixels."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_media(self, media: Tensor, size: Size) -> Tensor:
        self.calls += 1
        assert media.shape == (1, 3, size.height, size.width)
        return media[:, :, ::2]


def picture(file: Path, colour: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    Image.new(mode, size, colour).save(file)
    return file


def filled(folder: Path, rows: list[Row], adapter: Any, size: Size = SIZE) -> ConditionCache:
    cache = target_cache(folder, IDENTITY, rows, size, pytest.fail)

    def encode(some: Any) -> Conditions:
        return encode_target(adapter, some, size)

    cache.fill(encode, lambda count: None)
    return cache


# --- the cache


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    red, blue = picture(tmp_path / "red.png", "red"), picture(tmp_path / "blue.png", "blue")
    return [Row("a", media=(red, blue)), Row("b", media=(blue, red))]


def test_latents_come_back_equal_and_are_encoded_once(tmp_path: Path, rows: list[Row]) -> None:
    adapter = Halves()
    first = CachedTargets(filled(tmp_path / "c", rows, adapter), rows)
    again = CachedTargets(filled(tmp_path / "c", rows, adapter), rows)
    assert adapter.calls == 4
    latents = again.batch([1, 0, 1])
    assert torch.equal(latents, first.batch([1, 0, 1]))
    assert latents.shape == (3, 2, 3, 4, 8)
    assert latents.dtype == torch.float32
    red, blue = (torch.tensor(colour)[:, None, None].expand(3, 4, 8) for colour in ([1.0, 0, 0], [0, 0, 1.0]))
    assert torch.equal(latents[1], torch.stack([red, blue]))
    assert torch.equal(latents[0], torch.stack([blue, red]))


def test_a_row_is_known_by_its_content_and_the_size(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "copy.png").write_bytes((tmp_path / "red.png").read_bytes())
    same = Row("other words", "x", media=(tmp_path / "copy.png", tmp_path / "blue.png"))
    keys = [target_key(row, SIZE) for row in (*rows, same)]
    assert keys[0] == keys[2] != keys[1]
    assert len({target_key(rows[0], size) for size in (SIZE, FILM, Size(8, 16), Size(16, 8))}) == 4


def test_another_size_is_encoded_anew(tmp_path: Path, rows: list[Row]) -> None:
    adapter = Halves()
    filled(tmp_path / "c", rows, adapter)
    filled(tmp_path / "c", rows, adapter, Size(4, 4))
    assert adapter.calls == 8


def test_media_and_prompts_have_folders_of_their_own(tmp_path: Path, rows: list[Row]) -> None:
    prompts = ConditionCache(tmp_path / "c", IDENTITY, rows, lambda text: None)
    assert filled(tmp_path / "c", rows, Halves()).folder != prompts.folder
    assert len(prompts.missing()) == 2


# --- reading


def test_the_middle_is_cut_out_of_what_covers_the_size(tmp_path: Path) -> None:
    wide = Image.new("RGB", (32, 16), "red")
    wide.paste("lime", (5, 0, 27, 16))  # what is cut is scaled with what lies beside it
    wide.save(tmp_path / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        media = read_media(tmp_path / name, SIZE)
        assert media.shape == (3, 8, 8)
        assert torch.equal(media, torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 8, 8))


def test_a_picture_of_that_size_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    assert torch.equal(read_media(tmp_path / "a.png", SIZE), pixels.permute(2, 0, 1).float() / 255)


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    lying = Image.new("RGB", (16, 8), "blue")
    lying.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right: what was left is at the top
    lying.save(tmp_path / "a.png", exif=exif)
    media = read_media(tmp_path / "a.png", Size(16, 8))
    assert torch.equal(media[0, :, 0], torch.tensor([1.0] * 8 + [0.0] * 8))


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0)), ("1", 1), ("P", 255)])
def test_other_kinds_become_colours_and_nothing_is_white(tmp_path: Path, mode: str, colour: Any) -> None:
    made = Image.new(mode, (8, 8), colour)
    if mode == "P":
        made.putpalette([9] * 765 + [9, 9, 9])
        made.save(tmp_path / "a.png", transparency=255)
    else:
        made.save(tmp_path / "a.png")
    assert torch.equal(read_media(tmp_path / "a.png", SIZE), torch.ones(3, 8, 8))


def film(file: Path, count: int) -> Path:
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(count)]
    frames[0].save(
        file, save_all=True, append_images=frames[1:], **({"lossless": True} if ".webp" in file.name else {})
    )
    return file


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_frames_are_spread_evenly_from_the_first_to_the_last(tmp_path: Path, name: str) -> None:
    media = read_media(film(tmp_path / name, 6), FILM)
    assert media.shape == (3, 3, 8, 8)
    assert (255 * media[:, 0, 0, 0]).round().tolist() == [0, 80, 200]
    assert (255 * read_media(tmp_path / name, Size(8, 8))[0, 0, 0]).round() == 0


def test_a_film_is_read_by_pyav(tmp_path: Path) -> None:
    pytest.importorskip("av")
    levels = torch.linspace(0.1, 0.9, 9)
    assert save_video(levels[:, None, None, None].expand(9, 3, 32, 32), tmp_path / "a.mp4")
    media = read_media(tmp_path / "a.mp4", Size(32, 32, 3))
    torch.testing.assert_close(media.mean((1, 2, 3)), levels[[0, 4, 8]], atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("cut.png", SIZE, "cannot be used as media"),
        ("deep.png", SIZE, r"more than eight bits a colour \(mode I;16\)"),
        ("still.png", FILM, "it has 1 of the 3 frames"),
        ("short.gif", FILM, "it has 2 of the 3 frames"),
        ("words.mp4", SIZE, "cannot be used as media"),
        ("none.mp4", SIZE, "cannot be used as media"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, size: Size, said: str) -> None:
    pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "deep.png")
    picture(tmp_path / "still.png", "red")
    film(tmp_path / "short.gif", 2)
    (tmp_path / "words.mp4").write_text("a cat")
    (tmp_path / "none.mp4").write_bytes(b"")
    with pytest.raises(RunError, match=said) as caught:
        read_media(tmp_path / name, size)
    assert name in str(caught.value)


def test_videos_without_pyav_are_refused_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0" * 64)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install av"):
        module.read_media(tmp_path / "a.mp4", SIZE)
