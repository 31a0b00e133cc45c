"""FLUX.1 Kontext against diffusers' own pipeline and the tap; the rest is the conformance kit's."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxKontextPipeline
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory_plugin_flux import FluxKontextSpec
from flowfactory_plugin_flux.kontext import FluxKontext
from oracle import rollout, run
from PIL import Image

STEPS, TEXT_TOKENS, GUIDANCE = 3, 24, 3.5
SIZE = Size(32, 48)
BATCHED = 2e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An adapter and its rows, whose images are scaled to two sizes."""
    folder = tmp_path_factory.mktemp("kontext")
    rows = []
    for i, shape in enumerate([(48, 32), (20, 40), (48, 32)]):
        path = folder / f"{i}.png"
        Image.linear_gradient("L").convert("RGB").resize(shape).save(path)
        rows.append(Row(f"make it {i}", images=(path,)))
    spec = FluxKontextSpec(path=str(FluxKontext.tiny(folder / "checkpoint")), max_sequence_length=TEXT_TOKENS)
    adapter = FluxKontext(spec)
    adapter.load(torch.device("cpu"), torch.float32)
    return adapter, rows


def test_equals_the_pipeline(made):
    adapter, rows = made
    reference = run(
        FluxKontextPipeline.from_pretrained(adapter.spec.path),
        image=Image.open(rows[1].images[0]),
        prompt=rows[1].prompt,
        height=SIZE.height,
        width=SIZE.width,
        max_area=SIZE.height * SIZE.width,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=TEXT_TOKENS,
    )
    conditions = adapter.encode(rows[1:2])
    assert torch.equal(adapter.sigmas(STEPS, SIZE), reference.sigmas)
    final = rollout(adapter, reference.latents[0], conditions, STEPS, GUIDANCE, SIZE)
    torch.testing.assert_close(final, reference.latents[-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(adapter.decode(final, SIZE), reference.media, rtol=0, atol=1e-6)


def test_velocity_is_the_taps_in_one_call_for_each_shape_of_image(made):
    adapter, rows = made
    conditions, levels, calls = adapter.encode(rows), torch.tensor([1.0, 0.3, 0.71]), []
    x = torch.randn(3, *adapter.latent_shape(SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = PipelineAdapter.velocity(adapter, x, levels, conditions, GUIDANCE, SIZE)
        adapter.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
        found = adapter.velocity(x, levels, conditions, GUIDANCE, SIZE)
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCHED)
    assert len(calls) == 2
