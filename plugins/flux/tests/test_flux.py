"""FLUX.1 against diffusers' own `FluxPipeline`, and each override against the tap."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import FluxPipeline
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory_plugin_flux import FluxSpec
from flowfactory_plugin_flux.flux import Flux
from oracle import lora_without_gradient, rollout, run
from torch.utils._python_dispatch import TorchDispatchMode

TEXT_TOKENS = 24
STEPS = 4
GUIDANCE = 3.5
ROWS = (Row("a red circle"), Row("two blue squares", "blurry"), Row("a green triangle left of a red circle"))
SIZES = (Size(32, 32), Size(64, 48), Size(16, 80))
BATCHED = 2e-5
"""How far one batch of positive and negative prompts may be from two: the same sums in another order."""


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def folder(request, tmp_path_factory):
    return Flux.tiny(tmp_path_factory.mktemp("flux"), dev=request.param)


def load(folder, true_cfg=1.0, dtype=torch.float32) -> Flux:
    adapter = Flux(FluxSpec(path=str(folder), max_sequence_length=TEXT_TOKENS, true_cfg=true_cfg))
    adapter.load(torch.device("cpu"), dtype)
    return adapter


def by_diffusers(folder, batch, size, true_cfg=1.0, dtype=torch.float32):
    """`FluxPipeline`, loaded and called as its users do.

    Its prompts are encoded one by one: a text encoder's sums can differ in their last bit with the size of the batch.
    """
    pipe = FluxPipeline.from_pretrained(folder, dtype=dtype)
    pipe.vae.requires_grad_(False)  # as adapters do; torch's linear layers round differently when weights are trainable

    def encoded(prompts, prefix=""):
        with torch.no_grad():
            each = [pipe.encode_prompt(prompt, None, max_sequence_length=TEXT_TOKENS) for prompt in prompts]
        embeds, pooled, _ = zip(*each, strict=True)
        return {f"{prefix}prompt_embeds": torch.cat(embeds), f"{prefix}pooled_prompt_embeds": torch.cat(pooled)}

    arguments = encoded([row.prompt for row in ROWS[:batch]])
    if true_cfg > 1:
        arguments |= encoded([row.negative_prompt or "" for row in ROWS[:batch]], "negative_")
    return run(
        pipe,
        height=size.height,
        width=size.width,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        true_cfg_scale=true_cfg,
        **arguments,
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_pipeline(folder, size, batch):
    adapter, reference = load(folder), by_diffusers(folder, batch, size)
    conditions = adapter.encode(ROWS[:batch])
    noise = reference.latents[0]
    assert adapter.latent_shape(size) == noise.shape[1:]
    assert torch.equal(adapter.sigmas(STEPS, size), reference.sigmas)
    final = rollout(adapter, noise, conditions, STEPS, GUIDANCE, size)
    assert torch.equal(final, reference.latents[-1])
    assert torch.equal(adapter.decode(final, size), reference.media)


def test_equals_the_pipeline_called_with_prompts(folder):
    adapter, size = load(folder), SIZES[0]
    reference = run(
        FluxPipeline.from_pretrained(folder),
        prompt=ROWS[0].prompt,
        height=size.height,
        width=size.width,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=TEXT_TOKENS,
    )
    final = rollout(adapter, reference.latents[0], adapter.encode(ROWS[:1]), STEPS, GUIDANCE, size)
    assert torch.equal(final, reference.latents[-1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_velocity_equals_the_pipeline_in_bfloat16(folder, size):
    """At every step; not over a rollout, since the pipeline's own sampler rounds its steps to bfloat16."""
    adapter, reference = load(folder, dtype=torch.bfloat16), by_diffusers(folder, 3, size, dtype=torch.bfloat16)
    conditions = adapter.encode(ROWS)
    for i, v in enumerate(reference.velocities):
        with torch.no_grad():
            ours = adapter.velocity(reference.latents[i], reference.sigmas[i].expand(3), conditions, GUIDANCE, size)
        assert torch.equal(ours, v)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_true_cfg_equals_the_pipeline(folder, size, batch):
    """Bit for bit by the tap's two calls; within `BATCHED` by one."""
    adapter, reference = load(folder, true_cfg=4.0), by_diffusers(folder, batch, size, true_cfg=4.0)
    conditions = adapter.encode(ROWS[:batch])
    assert torch.equal(adapter.sigmas(STEPS, size), reference.sigmas)
    for i, v in enumerate(reference.velocities):
        x, sigma = reference.latents[i], reference.sigmas[i].expand(batch)
        with torch.no_grad():
            assert torch.equal(PipelineAdapter.velocity(adapter, x, sigma, conditions, GUIDANCE, size), v)
    final = rollout(adapter, reference.latents[0], conditions, STEPS, GUIDANCE, size)
    torch.testing.assert_close(final, reference.latents[-1], rtol=0, atol=BATCHED)


@pytest.mark.parametrize("true_cfg", [1.0, 4.0])
def test_velocity_equals_the_tap_at_different_noise_levels(folder, true_cfg):
    adapter, size = load(folder, true_cfg), SIZES[0]
    conditions = adapter.encode(ROWS)
    x = torch.randn(3, *adapter.latent_shape(size), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.3, 0.71])
    expected = PipelineAdapter.velocity(adapter, x, sigma, conditions, GUIDANCE, size)
    torch.testing.assert_close(adapter.velocity(x, sigma, conditions, GUIDANCE, size), expected, rtol=0, atol=BATCHED)
    for i in range(3):
        row = {name: tensor[i : i + 1] for name, tensor in conditions.items()}
        alone = adapter.velocity(x[i : i + 1], sigma[i : i + 1], row, GUIDANCE, size)
        torch.testing.assert_close(alone, expected[i : i + 1], rtol=0, atol=BATCHED)


def test_decode_equals_the_tap(folder):
    adapter, size = load(folder), SIZES[1]
    x = torch.randn(2, *adapter.latent_shape(size))
    assert torch.equal(adapter.decode(x, size), PipelineAdapter.decode(adapter, x, size))


def test_velocity_calls_the_network_once(folder):
    adapter, size = load(folder, true_cfg=4.0), SIZES[0]
    conditions = adapter.encode(ROWS)
    x = torch.randn(3, *adapter.latent_shape(size))
    calls = []
    adapter.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    adapter.velocity(x, torch.tensor([1.0, 0.3, 0.71]), conditions, GUIDANCE, size)
    assert len(calls) == 1


class NoWaiting(TorchDispatchMode):
    """Refuses operations for which a host would wait for its device."""

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        assert operation not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
        return operation(*arguments, **(keywords or {}))


@pytest.mark.parametrize("true_cfg", [1.0, 4.0])
def test_velocity_never_waits_for_the_device(folder, true_cfg):
    adapter, size = load(folder, true_cfg), SIZES[0]
    conditions = adapter.encode(ROWS)
    x, sigma = torch.randn(3, *adapter.latent_shape(size)), torch.tensor([1.0, 0.3, 0.71])
    with NoWaiting():
        adapter.velocity(x, sigma, conditions, GUIDANCE, size)
    with pytest.raises(AssertionError), NoWaiting():
        PipelineAdapter.velocity(adapter, x, sigma, conditions, GUIDANCE, size)


@pytest.mark.parametrize("true_cfg", [1.0, 4.0])
def test_gradients_reach_every_lora_parameter(folder, true_cfg):
    adapter, size = load(folder, true_cfg), SIZES[0]
    conditions = adapter.encode(ROWS)
    x = torch.randn(3, *adapter.latent_shape(size))
    assert not lora_without_gradient(adapter, x, torch.tensor([1.0, 0.3, 0.71]), conditions, GUIDANCE, size)


def test_trains_without_its_encoders(folder):
    adapter, size = load(folder), SIZES[0]
    conditions = adapter.encode(ROWS)
    adapter.drop_encoders()
    assert adapter.pipe.text_encoder is adapter.pipe.text_encoder_2 is None
    x = torch.randn(3, *adapter.latent_shape(size))
    assert adapter.velocity(x, adapter.sigmas(STEPS, size)[:1].expand(3), conditions, GUIDANCE, size).shape == x.shape
    assert adapter.decode(x, size).shape == (3, 3, size.height, size.width)


def test_dev_obeys_guidance(tmp_path):
    adapter, size = load(Flux.tiny(tmp_path)), SIZES[0]
    conditions, sigma = adapter.encode(ROWS[:1]), torch.ones(1)
    x = torch.randn(1, *adapter.latent_shape(size))
    weak, strong = (adapter.velocity(x, sigma, conditions, guidance, size) for guidance in (1.0, 7.0))
    assert not torch.equal(weak, strong)


def test_a_size_that_cannot_be_made_is_refused(folder):
    with pytest.raises(ValueError, match="cannot make 40x32; asked for it, it makes 32x32"):
        load(folder).latent_shape(Size(40, 32))


def test_default_text_length_is_the_pipelines(folder):
    adapter = Flux(FluxSpec(path=str(folder)))
    adapter.load(torch.device("cpu"), torch.float32)
    tokens = adapter.encode(ROWS[:1])["encode_prompt.0.0"].shape[1]
    assert tokens == inspect.signature(FluxPipeline.__call__).parameters["max_sequence_length"].default


def test_checkpoint_is_small(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 700_000
