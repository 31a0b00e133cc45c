"""The JPEG rewards, and the frames that rewards see of a video."""

import io
from collections.abc import Sequence

import pytest
import torch
from flowfactory.builtin import JpegSpec
from flowfactory.contracts.types import Row, Sample
from flowfactory.rewards.jpeg import Compressibility, Incompressibility
from flowfactory.runs.media import some_frames, to_bytes
from PIL import Image
from torch import Tensor


def samples(*media: Tensor) -> list[Sample]:
    return [Sample(Row("a cat"), one, 0, i) for i, one in enumerate(media)]


def noisy(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def scores(media: Sequence[Tensor], quality: int = 95) -> list[float]:
    found = Incompressibility(JpegSpec(quality=quality)).score(samples(*media))
    return [float(score) for score in found if score is not None]


def test_the_score_is_the_size_of_the_file_in_kilobytes() -> None:
    image = noisy(3, 40, 56)
    file = io.BytesIO()
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    assert scores([image]) == [len(file.getvalue()) / 1000]


def test_noise_is_larger_than_a_plain_image_and_high_quality_than_low() -> None:
    noise, plain = scores([noisy(3, 64, 64), torch.full((3, 64, 64), 0.5)])
    assert noise > 5 * plain
    assert scores([noisy(3, 64, 64)], quality=20)[0] < noise


def test_compressibility_is_the_negative() -> None:
    media = [noisy(3, 32, 32), torch.zeros(3, 32, 32)]
    assert Compressibility(JpegSpec()).score(samples(*media)) == [-s for s in scores(media)]


def test_a_video_scores_the_mean_of_its_frames() -> None:
    frames = torch.stack([noisy(3, 32, 32), torch.zeros(3, 32, 32)])
    assert scores([frames])[0] == pytest.approx(sum(scores(list(frames))) / 2)


@pytest.mark.parametrize(
    ("total", "count", "kept"),
    [(8, 4, [0, 2, 4, 6]), (5, 2, [0, 2]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]), (81, 1, [0])],
)
def test_some_frames_are_spread_evenly(total: int, count: int, kept: list[int]) -> None:
    video = torch.arange(total).reshape(-1, 1, 1, 1).expand(total, 3, 2, 2)
    assert some_frames(video, count)[:, 0, 0, 0].tolist() == kept


def test_an_image_is_its_own_only_frame() -> None:
    image = noisy(3, 4, 4)
    assert torch.equal(some_frames(image, 8), image[None])


def test_bytes_are_the_nearest_levels() -> None:
    assert to_bytes(torch.tensor([-0.2, 0.0, 0.5 / 255 + 1e-6, 1.0, 1.7])).tolist() == [0, 0, 1, 255, 255]
