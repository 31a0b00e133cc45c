"""Writing samples to disk: images as PNG, videos as a strip of frames and mp4, and the table that belongs to them."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from flowfactory.contracts.types import Sample
from flowfactory.runs import files
from flowfactory.runs.files import inside, writing
from flowfactory.runs.pictures import PictureError, opened

log = logging.getLogger("flowfactory")

TABLE = "samples.jsonl"

FRAMES_PER_SECOND = 16
"""Of videos that are written; Wan's."""


def to_bytes(media: Tensor) -> Tensor:
    """Media in [0, 1], of any shape, as `uint8` in 0 … 255: the nearest level."""
    return (media.clamp(0, 1) * 255).round().byte()


def some_frames(media: Tensor, count: int) -> Tensor:
    """At most `count` frames `(n, 3, H, W)` of a video, evenly spread and its first among them; an image is its own."""
    if media.dim() == 3:
        return media[None]
    total = len(media)
    return media[[i * total // count for i in range(count)]] if total > count else media


def to_image(media: Tensor) -> Image.Image:
    """An image `(3, H, W)` in [0, 1] as a picture; of frames `(F, 3, H, W)`, all of them side by side."""
    frames = media if media.dim() == 4 else media[None]
    strip = torch.cat(list(frames), dim=-1)
    return Image.fromarray(to_bytes(strip).permute(1, 2, 0).cpu().numpy())


def save_video(frames: Tensor, path: Path, rate: int = FRAMES_PER_SECOND) -> bool:
    """Write frames `(F, 3, H, W)` in [0, 1] as mp4 (H.264), where PyAV is installed; returns whether it was.

    Args:
        rate: frames per second. A last odd row or column of pixels, which the format cannot have, is left out.
    """
    if importlib.util.find_spec("av") is None:
        return False
    try:
        _encode(frames, path, rate)
    except Exception as error:  # a film more or less ends no run
        log.warning("%s cannot be written: %s", path, error)
        path.unlink(missing_ok=True)
        return False
    return True


def _encode(frames: Tensor, path: Path, rate: int) -> None:
    import av

    pictures = to_bytes(frames[..., : frames.shape[-2] // 2 * 2, : frames.shape[-1] // 2 * 2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = pictures.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for picture in pictures.permute(0, 2, 3, 1).cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def save_samples(
    folder: Path,
    samples: Sequence[Sample],
    scores: Mapping[str, Sequence[float]],
    words: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write `0000.png …` and `samples.jsonl` with the prompt and the scores of each, null where there is none.

    A video is `0000.mp4`, too, where PyAV is installed; its PNG shows the frames side by side.

    Args:
        words: of each sample what rewards said beside the scores, by `label/name`.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _save_samples(folder, samples, scores, words)


def _save_samples(
    folder: Path,
    samples: Sequence[Sample],
    scores: Mapping[str, Sequence[float]],
    words: Sequence[Mapping[str, str]],
) -> None:
    with (folder / TABLE).open("w", encoding="utf-8") as table:
        for number, sample in enumerate(samples):
            name = f"{number:04d}.png"
            to_image(sample.media).save(folder / name)
            if sample.media.dim() == 4:
                save_video(sample.media, folder / f"{number:04d}.mp4")
            line = {
                "file": name,
                "prompt": sample.row.prompt,
                "slot": sample.slot,
                "replica": sample.replica,
                "scores": {k: None if math.isnan(values[number]) else values[number] for k, values in scores.items()},
            }
            said = {"words": dict(words[number])} if words and words[number] else {}
            table.write(files.line(line | said))


def before_after(before: Path, after: Path, columns: int = 4, width: int = 160) -> Image.Image | None:
    """A sheet of two folders that `save_samples` wrote: the same prompts and noise, side by side under each prompt.

    Which prompts the main process saves depends on how many processes there are; those in both folders are shown. None
    where there are none. A picture that is damaged is left white.
    """
    margin, caption = 8, 34
    first, second = _listed(before), _listed(after)
    pairs = [(first[slot], second[slot]) for slot in first if slot in second]
    if not pairs:
        return None
    pictures = [[_fitting(file, width) for _, file in pair] for pair in pairs]
    cell_width = 2 * width + 3 * margin
    cell_height = max(picture.height for both in pictures for picture in both) + caption + margin
    sheet = Image.new("RGB", (columns * cell_width, -(-len(pairs) // columns) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (((prompt, _), _), both) in enumerate(zip(pairs, pictures, strict=True)):
        left, top = number % columns * cell_width + margin, number // columns * cell_height
        draw.text((left, top + 3), _short(prompt, 2 * width // 6), fill="black")
        for side, (word, picture) in enumerate(zip(("before", "after"), both, strict=True)):
            x = left + side * (width + margin)
            draw.text((x, top + 17), word, fill="gray")
            sheet.paste(picture, (x, top + caption))
    return sheet


def _fitting(file: Path, width: int) -> Image.Image:
    """A picture of a sample, at most `width` wide and high; a white one where it is damaged."""
    try:
        return ImageOps.contain(opened(file), (width, width), Image.Resampling.BICUBIC)
    except PictureError as error:
        log.warning("%s: %s; it is left out of the sheet of samples before and after", file.parent, error)
        return Image.new("RGB", (width, 1), "white")


def _listed(folder: Path) -> dict[int, tuple[str, Path]]:
    """Prompt and picture of each sample in a folder, by its slot; none where they are not there any more."""
    try:
        found = [json.loads(text) for text in files.lines(folder / TABLE)]
        listed = {int(line["slot"]): (str(line["prompt"]), folder / line["file"]) for line in found}
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s cannot be read: %s; there is no sheet of samples before and after", folder / TABLE, error)
        return {}
    return {slot: one for slot, one in listed.items() if inside(folder, one[1])}


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
