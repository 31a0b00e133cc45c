"""Wan against diffusers' own pipelines, each override against the tap, and the first step of its schedule."""

from __future__ import annotations

import attrs
import pytest
import torch
from diffusers import DiffusionPipeline
from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory_plugin_wan import WanI2VSpec, WanSpec
from flowfactory_plugin_wan.checkpoint import tiny_wan
from flowfactory_plugin_wan.i2v import WanI2V
from flowfactory_plugin_wan.wan import Wan
from oracle import lora_without_gradient, run
from PIL import Image

STEPS, TEXT_TOKENS = 3, 32
SIZE = Size(32, 48, 5)
ROWS = (Row("a red circle"), Row("two blue squares", "blurry"))
LEVELS = torch.tensor([1.0, 0.3])
BATCHED = 2e-5
"""How far one batch of positive and negative prompts may be from two: the same sums in another order."""

KINDS = {
    "2.1": (Wan, {}, {}),
    "2.2": (Wan, {"experts": 2}, {"guidance_low": 3.0}),
    "ti2v": (Wan, {"expand_timesteps": True}, {}),
    "i2v-2.1": (WanI2V, {}, {"max_sequence_length": None}),
    "flf-2.1": (WanI2V, {"last": True}, {"max_sequence_length": None}),
    "i2v-2.2": (WanI2V, {"experts": 2}, {"guidance_low": 3.0}),
}


@attrs.frozen(eq=False)
class Case:
    adapter: Wan
    rows: tuple[Row, ...]
    conditions: dict

    def noise(self):
        return torch.randn(2, *self.adapter.latent_shape(SIZE), generator=torch.Generator().manual_seed(0))


def load(target, folder, **keys):
    spec = {Wan: WanSpec, WanI2V: WanI2VSpec}[target]
    adapter = target(spec(path=str(folder), **{"max_sequence_length": TEXT_TOKENS} | keys))
    adapter.load(torch.device("cpu"), torch.float32)
    return adapter


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    target, kind, keys = KINDS[request.param]
    folder, rows = tmp_path_factory.mktemp("wan"), ROWS
    if target is WanI2V:
        paths = [folder / "wide.png", folder / "tall.png"]
        for path, shape in zip(paths, [(48, 32), (20, 40)], strict=True):
            Image.linear_gradient("L").convert("RGB").resize(shape).save(path)
        images = [(path,) for path in paths]
        if "last" in kind:
            images = [(paths[0], paths[1]), (paths[1], paths[0])]
        rows = tuple(attrs.evolve(row, images=own) for row, own in zip(rows, images, strict=True))
    adapter = load(target, target.tiny(folder / "checkpoint", **kind), **keys)
    return Case(adapter, rows, adapter.encode(rows))


def test_equals_the_pipeline(case):
    """One row, called as users do, at each step of the pipeline's own run, guided."""
    row, guidance = case.rows[1], 5.0
    pipe = DiffusionPipeline.from_pretrained(case.adapter.spec.path)
    low = case.adapter.spec.guidance_low
    reference = run(
        pipe,
        prompt=row.prompt,
        negative_prompt=row.negative_prompt,
        guidance_scale=guidance,
        height=SIZE.height,
        width=SIZE.width,
        num_frames=SIZE.frames,
        num_inference_steps=STEPS,
        max_sequence_length=case.adapter.spec.max_sequence_length or 512,
        **({} if low is None else {"guidance_scale_2": low}),
        **{name: Image.open(path) for name, path in zip(("image", "last_image"), row.images, strict=False)},
    )
    assert torch.equal(case.adapter.sigmas(STEPS, SIZE), reference.sigmas)
    conditions = {name: tensor[1:] for name, tensor in case.conditions.items()}
    for i, v in enumerate(reference.velocities):
        with torch.no_grad():
            sigma = reference.sigmas[i : i + 1]
            found = case.adapter.velocity(reference.latents[i], sigma, conditions, guidance, SIZE)
        torch.testing.assert_close(found, v, rtol=0, atol=BATCHED)
    media = case.adapter.decode(reference.latents[-1], SIZE)
    torch.testing.assert_close(media, reference.media, rtol=0, atol=1e-6)


def test_velocity_is_the_taps_in_one_call_of_each_expert(case):
    x, calls = case.noise(), []
    with torch.no_grad():
        expected = PipelineAdapter.velocity(case.adapter, x, LEVELS, case.conditions, 5.0, SIZE)
        networks = case.adapter.networks()
        hooks = [network.register_forward_pre_hook(lambda *_: calls.append(1)) for network in networks.values()]
        found = case.adapter.velocity(x, LEVELS, case.conditions, 5.0, SIZE)
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCHED)
    assert len(calls) == len(networks)


def test_the_first_step_adds_noise_of_eta(case):
    """UniPC's schedule begins at 0.999999, told as 999: Flow-SDE without its guard would add many times as much."""
    sigmas = case.adapter.sigmas(10, SIZE)
    assert sigmas[0] < 1
    x, spec = case.noise(), FlowSDESpec(eta=0.7)
    moments = FlowSDE(spec).moments_of(x, x, sigmas[:1].expand(2), sigmas[1:2].expand(2), float(sigmas[1]))
    torch.testing.assert_close(moments.std.flatten(), torch.full((2,), spec.eta), rtol=1e-4, atol=0)


def test_gradients(case):
    """Last, since it changes the networks; of every expert, with activations recomputed."""
    for network in case.adapter.networks().values():
        network.enable_gradient_checkpointing()
    assert not lora_without_gradient(case.adapter, case.noise(), LEVELS, case.conditions, 5.0, SIZE)


@pytest.mark.parametrize(("experts", "trained"), [("high", "transformer"), ("low", "transformer_2")])
def test_one_expert_may_be_trained_alone(tmp_path, experts, trained):
    adapter = load(Wan, Wan.tiny(tmp_path, experts=2), experts=experts)
    assert list(adapter.networks()) == [trained]
    (other,) = {"transformer", "transformer_2"} - {trained}
    assert not any(parameter.requires_grad for parameter in getattr(adapter.pipe, other).parameters())


def test_keys_of_two_experts_are_refused_for_one(tmp_path):
    with pytest.raises(ValueError, match="it has one expert; leave out `experts` and `guidance_low`"):
        load(Wan, Wan.tiny(tmp_path), guidance_low=3.0)


def test_flow_shift_is_the_checkpoints(tmp_path):
    first, second = tmp_path / "3", tmp_path / "8"
    tiny_wan(flow_shift=3.0).save_pretrained(first)
    tiny_wan(flow_shift=8.0).save_pretrained(second)
    weak, strong = (load(Wan, folder).sigmas(4, SIZE) for folder in (first, second))
    assert (strong[1:-1] > weak[1:-1]).all()
    torch.testing.assert_close(weak[2] / (1 - weak[2]) * 8 / 3, strong[2] / (1 - strong[2]))


def test_another_length_of_text_is_refused_where_attention_counts_on_it(tmp_path):
    with pytest.raises(ValueError, match="leave out `max_sequence_length`"):
        load(WanI2V, WanI2V.tiny(tmp_path))


def test_ti2v_from_an_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it puts the image into what it makes only when it is done"):
        load(WanI2V, WanI2V.tiny(tmp_path, expand_timesteps=True))


def test_how_many_images_a_row_needs_is_the_checkpoints(tmp_path):
    Image.new("RGB", (48, 32)).save(image := tmp_path / "image.png")
    one, two = (
        load(WanI2V, WanI2V.tiny(tmp_path / str(last), last=last), max_sequence_length=None) for last in (False, True)
    )
    with pytest.raises(ValueError, match="it begins with one image, and the prompt 'a cat' has 2"):
        one.encode([Row("a cat", images=(image, image))])
    with pytest.raises(ValueError, match=r"it needs two images, its first frame and its last, .* has 1"):
        two.encode([Row("a cat", images=(image,))])
