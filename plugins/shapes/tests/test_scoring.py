"""The grade: full for the truth, low for anything else, and between the two where a part is right."""

from time import process_time

import numpy as np
import pytest
from flowfactory_plugin_shapes.scoring import find, grade
from flowfactory_plugin_shapes.world import (
    BACKGROUND,
    COLOURS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    caption,
    coverage,
    parse,
    prompts,
    render,
    sample,
)
from scipy.ndimage import gaussian_filter

Image = np.ndarray


def draw(prompt: str, seed: int = 0) -> Image:
    return render(parse(prompt), np.random.default_rng(seed))


def paint(*objects: tuple[str, str, float, float, float], ground: Image = BACKGROUND) -> Image:
    """An image of `(colour, shape, x, y, radius)` objects that need not belong to the world."""
    image = np.broadcast_to(ground, (32, 32, 3)).astype(np.float32)
    for colour, shape, x, y, radius in objects:
        alpha = coverage(shape, x, y, radius)[..., None]
        image = image * (1 - alpha) + alpha * np.float32(COLOURS[colour])
    return image


@pytest.fixture(scope="module")
def world() -> list[tuple[Scene, Image]]:
    rng = np.random.default_rng(7)
    return [(scene, render(scene, rng)) for scene in (sample(rng) for _ in range(600))]


def test_the_truth_earns_everything(world: list[tuple[Scene, Image]]) -> None:
    grades = [grade(caption(scene), image) for scene, image in world]
    assert np.mean([g.correct for g in grades]) >= 0.99
    assert np.mean([g.graded >= 0.999 for g in grades]) >= 0.99


def test_another_scene_is_never_correct_and_earns_little(world: list[tuple[Scene, Image]]) -> None:
    shifted = [*world[1:], world[0]]
    pairs = [(a, image) for (a, _), (b, image) in zip(world, shifted, strict=True) if a.objects != b.objects]
    grades = [grade(caption(scene), image) for scene, image in pairs]
    assert not any(g.correct for g in grades)
    assert np.mean([g.graded for g in grades]) < 0.3


@pytest.mark.parametrize("prompt", ["a red circle", "two blue squares", "a cyan square above a green triangle"])
@pytest.mark.parametrize("kind", ["blank", "black", "one colour", "noise", "clouds"])
def test_images_without_objects_earn_almost_nothing(prompt: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    images = {
        "blank": np.broadcast_to(BACKGROUND, (32, 32, 3)),
        "black": np.zeros((32, 32, 3)),
        "one colour": np.broadcast_to(np.array(COLOURS["red"]), (32, 32, 3)),
        "noise": rng.random((32, 32, 3)),
        "clouds": np.clip(0.5 + 3 * gaussian_filter(rng.standard_normal((32, 32, 3)), (2, 2, 0)), 0, 1),
    }
    verdict = grade(prompt, images[kind].astype(np.float32))
    assert verdict.graded <= 0.15
    assert not verdict.correct


@pytest.mark.parametrize(("blur", "noise", "share"), [(0.5, 0.02, 0.99), (0.7, 0.03, 0.97), (0.0, 0.06, 0.99)])
def test_blur_and_noise_of_a_decoder_are_forgiven(
    world: list[tuple[Scene, Image]], blur: float, noise: float, share: float
) -> None:
    rng = np.random.default_rng(0)
    grades = []
    for scene, image in world[:300]:
        damaged = gaussian_filter(image, (blur, blur, 0)) + noise * rng.normal(size=image.shape)
        grades.append(grade(caption(scene), np.clip(damaged, 0, 1)))
    assert np.mean([g.correct for g in grades]) >= share
    assert np.mean([g.graded for g in grades]) > 0.95


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_combination_is_told_from_every_other(colour: str, shape: str) -> None:
    for other_colour in COLOURS:
        for other_shape in SHAPES:
            verdict = grade(f"a {colour} {shape}", draw(f"a {other_colour} {other_shape}"))
            assert verdict.correct == ((colour, shape) == (other_colour, other_shape))


@pytest.mark.parametrize(
    ("prompt", "image", "low", "high"),
    [
        ("a red circle", draw("a red square"), 0.5, 0.7),  # the right colour is half
        ("a red circle", draw("a blue circle"), 0.5, 0.5),  # so is the right shape
        ("a red circle", draw("a blue triangle"), 0.0, 0.1),
        ("a red circle", draw("two red circles"), 0.5, 0.5),  # one too many
        ("two red circles", draw("a red circle"), 0.5, 0.5),  # one too few
        ("three red circles", draw("two red circles"), 0.66, 0.67),
        ("a red circle and a blue square", draw("a blue square"), 0.5, 0.5),
        ("a red circle left of a blue square", draw("a red circle right of a blue square"), 0.7, 0.7),
        ("a red circle above a blue square", draw("a red circle left of a blue square"), 0.7, 0.7),
        ("a red circle above a blue square", draw("a red circle"), 0.35, 0.35),
    ],
)
def test_what_is_right_earns_its_part(prompt: str, image: Image, low: float, high: float) -> None:
    verdict = grade(prompt, image)
    assert low - 1e-6 <= verdict.graded <= high + 1e-6
    assert not verdict.correct


def test_without_a_relation_the_order_is_free() -> None:
    for relation in RELATIONS:
        assert grade("a red circle and a blue square", draw(f"a blue square {relation} a red circle")).correct


def test_objects_are_assigned_to_what_was_asked_not_in_order() -> None:
    assert grade("a blue square right of a red circle", draw("a red circle left of a blue square")).correct
    assert not grade("a blue circle right of a red square", draw("a red circle left of a blue square")).correct


@pytest.mark.parametrize(
    "image",
    [
        paint(("red", "square", 16, 16, 16)),  # one big patch
        paint(("red", "square", 16, 16, 12)),
        paint(("red", "circle", 16, 16, 2)),  # a dot
        paint(("red", "circle", 9, 16, 7), ("blue", "circle", 24, 16, 5)),  # the object, and another
        paint(("red", "circle", 16, 16, 8), ground=np.array([0.2, 0.2, 0.2])),  # on black
        paint(*[("red", "circle", x, y, 4) for x in (6, 16, 26) for y in (6, 16, 26)]),
    ],
)
def test_shortcuts_are_not_correct(image: Image) -> None:
    assert not grade("a red circle", image).correct
    assert not grade("a red square", image).correct
    assert grade("a red circle", image).graded <= 0.51


def test_find_measures_colour_shape_and_place() -> None:
    found, clutter = find(paint(("cyan", "triangle", 10, 20, 5), ("purple", "square", 24, 8, 5)))
    seen = {(thing.colour, thing.shape): (thing.x, thing.y) for thing in found}
    assert seen[("cyan", "triangle")] == pytest.approx((10, 20), abs=0.3)
    assert seen[("purple", "square")] == pytest.approx((24, 8), abs=0.3)
    assert clutter == 0


def test_muddy_pixels_are_clutter() -> None:
    image = paint(("red", "circle", 9, 16, 6))
    image[10:22, 20:30] = (0.35, 0.30, 0.10)
    _, clutter = find(image)
    assert clutter == pytest.approx(0.5, abs=0.1)
    assert not grade("a red circle", image).correct


def test_the_size_of_the_image_is_checked() -> None:
    with pytest.raises(ValueError, match=r"\(32, 32, 3\), not \(3, 32, 32\)"):
        find(np.zeros((3, 32, 32), dtype=np.float32))


def test_every_shipped_prompt_can_be_graded() -> None:
    for prompt in prompts("train") + prompts("eval"):
        assert grade(prompt, draw(prompt)).correct


def test_grading_is_quick(world: list[tuple[Scene, Image]]) -> None:
    start = process_time()
    for scene, image in world:
        grade(caption(scene), image)
    assert len(world) / (process_time() - start) > 300  # measured: 2000 per second on one core


def test_things_count_in_the_order_of_the_prompt() -> None:
    scene = Scene([Thing("red", "circle"), Thing("blue", "square")])
    assert scene.objects == (("red", "circle"), ("blue", "square"))
