"""Pictures in a page, and how many of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from flowfactory import read_runs
from flowfactory_plugin_report import gallery
from flowfactory_plugin_report.gallery import Gallery, galleries, spaced
from PIL import Image
from runs import colour, lay_run


def shown(*folders: Path) -> list[Gallery]:
    return galleries(read_runs(folders))


def pixel(data: str, x: int = 0) -> tuple[int, ...]:
    picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")
    found = picture.getpixel((x, 0))
    assert isinstance(found, tuple)
    return found


def test_held_out_samples_keep_their_place(tmp_path: Path) -> None:
    held_out, training = shown(lay_run(tmp_path / "a", epochs=4))
    assert held_out.epochs == (0, 2, 4)
    assert [card.prompt for card in held_out.cards] == ["a red circle", "two blue squares", "a lighthouse"]
    tiles = held_out.cards[1].columns[0].tiles
    assert [pixel(tile.data) for tile in tiles] == [colour(epoch, 1, 0) for epoch in (0, 2, 4)]
    assert [tile.scores[0] for tile in tiles] == [
        ("bright", "0.380", ""),
        ("bright", "0.460", "+0.080"),
        ("bright", "0.540", "+0.160"),
    ]
    assert tiles[0].scores[1] == ("dark", "none", "")
    assert training.epochs == (1, 2, 3, 4)
    assert {change for card in training.cards for tile in card.columns[0].tiles for *_, change in tile.scores} == {""}


def test_runs_meet_at_their_prompts(tmp_path: Path) -> None:
    one = lay_run(tmp_path / "a", prompts=["a cat", "a dog", "a cat"])
    two = lay_run(tmp_path / "b", prompts=["a cat", "a bird"])
    held_out = shown(one, two)[0]
    assert [(card.prompt, [column.run for column in card.columns]) for card in held_out.cards] == [
        ("a cat", ["a", "b"]),
        ("a dog", ["a"]),
        ("a cat", ["a"]),
        ("a bird", ["b"]),
    ]


def test_a_run_without_samples_has_no_gallery(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "a")
    (folder / "samples").rename(folder / "elsewhere")
    assert shown(folder) == []


def test_limits_are_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_run(tmp_path / "a", epochs=10)
    monkeypatch.setattr(gallery, "CARDS", 2)
    monkeypatch.setattr(gallery, "EPOCHS", 3)
    held_out, training = shown(folder)
    assert held_out.epochs == (0, 4, 10)
    assert training.epochs == (1, 5, 10)
    assert len(held_out.cards) == 2
    assert held_out.left_out == (
        "a: 2 of 3 kept samples and 3 of 6 epochs are in this page, the rest in the run's folder"
    )


def test_bytes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_run(tmp_path / "a", epochs=10)
    everything = sum(len(t.data) for g in shown(folder) for c in g.cards for col in c.columns for t in col.tiles)
    monkeypatch.setattr(gallery, "LIMIT", everything // 2)
    made = shown(folder)
    assert sum(len(t.data) for g in made for c in g.cards for col in c.columns for t in col.tiles) <= everything // 2
    assert [g.epochs[-1] for g in made] == [10, 10]


def test_large_pictures_shrink_and_long_videos_lose_frames(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "a", epochs=1, frames=33)
    noise = Image.effect_noise((600 * 33, 400), 90).convert("RGB")
    noise.save(folder / "samples" / "eval-0000" / "0000.png")
    tile = shown(folder)[0].cards[0].columns[0].tiles[0]
    assert (tile.width, tile.height, tile.frames) == (256, 171, 16)
    assert tile.data.startswith("data:image/jpeg")


@pytest.mark.parametrize(("name", "form"), [("photograph", "jpeg"), ("drawing", "png"), ("small", "png")])
def test_only_photographs_lose_anything(name: str, form: str) -> None:
    noise = Image.merge("RGB", [Image.effect_noise((70, 70), 90) for _ in range(3)])
    pictures = {"photograph": noise, "drawing": Image.new("RGB", (900, 900)), "small": noise.crop((0, 0, 60, 60))}
    made, content = gallery.encoded(pictures[name])
    assert made == form
    assert Image.open(io.BytesIO(content)).size == pictures[name].size


def test_frames_are_kept_in_order(tmp_path: Path) -> None:
    tile = shown(lay_run(tmp_path / "a", epochs=2, frames=5))[0].cards[0].columns[0].tiles[0]
    assert [pixel(tile.data, x=48 * frame) for frame in range(5)] == [colour(0, 0, frame) for frame in range(5)]


def test_spaced_items_are_spread() -> None:
    assert spaced(range(10), 4) == [0, 3, 6, 9]
    assert spaced(range(3), 5) == [0, 1, 2]
    assert spaced([7, 8], 1) == [7]


@pytest.mark.parametrize(
    "harm",
    [
        lambda png: png.write_bytes(png.read_bytes()[:50]),
        lambda png: png.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        lambda png: Image.new("RGB", (8, 8)).save(png, "JPEG"),
        lambda png: Image.new("1", (13000, 13000)).save(png, "PNG"),
        lambda png: Image.new("RGB", (8, 8)).save(png, "TIFF"),
    ],
)
def test_only_pictures_as_runs_write_them_are_opened(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    folder = lay_run(tmp_path / "a", epochs=0)
    harm(folder / "samples/eval-0000/0001.png")
    tiles = [card.columns[0].tiles[0] for card in shown(folder)[0].cards]
    assert [pixel(tile.data) for tile in tiles] == [colour(0, 0, 0), (200, 200, 200), colour(0, 2, 0)]


def test_links_lead_from_the_page_to_the_files(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "a run #1", epochs=1)
    (folder / "samples/eval-0000/0000.mp4").write_bytes(b"film")
    tiles = [card.columns[0].tiles[0] for card in shown(folder)[0].cards]
    assert tiles[0].links(folder) == {
        "picture": "samples/eval-0000/0000.png",
        "film": "samples/eval-0000/0000.mp4",
    }
    assert tiles[1].links(tmp_path) == {"picture": "a%20run%20%231/samples/eval-0000/0001.png"}
