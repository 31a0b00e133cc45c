"""The world: sentences and scenes are the same thing, images show what the sentence says, the splits are disjoint."""

from importlib.resources import files

import numpy as np
import pytest
from flowfactory_plugin_shapes.world import (
    BACKGROUND,
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    caption,
    coverage,
    layout,
    parse,
    prompts,
    render,
    sample,
)


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a red circle", Scene([Thing("red", "circle")])),
        ("two blue squares", Scene([Thing("blue", "square", 2)])),
        ("three cyan triangles", Scene([Thing("cyan", "triangle", 3)])),
        ("a red circle and a red square", Scene([Thing("red", "circle"), Thing("red", "square")])),
        (
            "a red circle left of a green triangle",
            Scene([Thing("red", "circle"), Thing("green", "triangle")], "left of"),
        ),
    ],
)
def test_a_prompt_is_a_scene_and_back(prompt: str, scene: Scene) -> None:
    assert parse(prompt) == scene
    assert caption(scene) == prompt


def test_random_scenes_round_trip() -> None:
    rng = np.random.default_rng(0)
    for scene in (sample(rng) for _ in range(500)):
        assert parse(caption(scene)) == scene


def test_case_spaces_and_a_full_stop_do_not_matter() -> None:
    assert parse("  A red  circle. ") == parse("a red circle")


@pytest.mark.parametrize(
    "prompt",
    ["", "red circle", "a circle", "a pink circle", "two red circle", "a red circles", "a red circle by a blue square"],
)
def test_other_sentences_are_refused_by_name(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"prompt of the shapes world|disagree"):
        parse(prompt)


@pytest.mark.parametrize(
    ("things", "relation"),
    [
        ([], None),
        ([Thing("red", "circle")], "above"),
        ([Thing("red", "circle"), Thing("red", "circle")], None),
        ([Thing("red", "circle", 2), Thing("blue", "circle")], None),
        ([Thing("red", "circle"), Thing("blue", "circle")], "beside"),
    ],
)
def test_scenes_outside_the_world_cannot_be_made(things: list[Thing], relation: str | None) -> None:
    with pytest.raises(ValueError, match=r"scene|needs|must be in"):
        Scene(things, relation)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [4.1, 8.5])
def test_coverage_has_the_area_and_the_centroid_it_is_asked_for(shape: str, radius: float) -> None:
    mask = coverage(shape, 15.3, 17.1, radius)
    centres = np.arange(32) + 0.5
    assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.04)
    assert mask.sum(axis=0) @ centres / mask.sum() == pytest.approx(15.3, abs=0.15)
    assert mask.sum(axis=1) @ centres / mask.sum() == pytest.approx(17.1, abs=0.15)


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_points_from_the_second_thing_to_the_first(relation: str) -> None:
    first, second = layout(parse(f"a red circle {relation} a blue square"), np.random.default_rng(0))
    assert np.dot(first[:2] - second[:2], RELATIONS[relation]) > 10


def test_images_show_their_colours_on_the_background() -> None:
    image = render(parse("a red circle above a blue square"), np.random.default_rng(0))
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.float32
    assert 0 <= image.min() <= image.max() <= 1
    pixels = image.reshape(-1, 3)
    for colour in (BACKGROUND, COLOURS["red"], COLOURS["blue"]):
        assert np.sum(np.all(np.isclose(pixels, colour, atol=1e-3), axis=1)) > 20


def test_an_image_follows_from_its_generator() -> None:
    scene = parse("three green circles")
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_splits_share_no_prompt_and_no_held_out_combination() -> None:
    train, evaluation = prompts("train"), prompts("eval")
    assert len(set(train)) == len(train)
    assert set(train).isdisjoint(evaluation)
    assert all(HELD_OUT.isdisjoint(parse(prompt).objects) for prompt in train)
    assert not any(HELD_OUT.isdisjoint(parse(prompt).objects) for prompt in evaluation)


@pytest.mark.parametrize(("split", "times"), [("train", 1), ("eval", 3)])
def test_the_shipped_prompts_are_the_generated_ones(split: str, times: int) -> None:
    shipped = files("flowfactory_plugin_shapes") / "prompts" / f"{split}.txt"
    assert shipped.read_text(encoding="utf-8").splitlines() == prompts(split) * times
