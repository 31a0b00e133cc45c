"""Qwen-Image and Qwen-Image-Edit against diffusers' own pipelines, and each override against the tap."""

from __future__ import annotations

import attrs
import pytest
import torch
from diffusers import DiffusionPipeline
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory_plugin_qwen_image import QwenImageEditSpec, QwenImageSpec
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image
from flowfactory_plugin_qwen_image.edit import QwenImageEdit
from flowfactory_plugin_qwen_image.qwen_image import QwenImage
from oracle import lora_without_gradient, rollout, run
from PIL import Image
from torch import nn

STEPS = 3
SIZE = Size(32, 48)
ROWS = (Row("a red circle"), Row("two blue squares", "blurry"), Row("a green triangle left of a red circle"))
LEVELS = torch.tensor([1.0, 0.3, 0.71])
BATCHED = 2e-5
"""How far one batch of prompts of several lengths may be from a call for each: the same sums in another order."""

LEADS_NOWHERE = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
"""Layers of the last block: what it makes of the text is discarded."""


@attrs.frozen(eq=False)
class Case:
    adapter: QwenImage
    rows: tuple[Row, ...]
    conditions: dict

    def noise(self):
        return torch.randn(3, *self.adapter.latent_shape(SIZE), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[QwenImage, QwenImageEdit], ids=["qwen-image", "qwen-image-edit"])
def case(request, tmp_path_factory, small_condition_images):
    folder, rows = tmp_path_factory.mktemp("qwen"), ROWS
    if request.param is QwenImageEdit:
        paths = [folder / f"{i}.png" for i in range(3)]
        for path, shape in zip(paths, [(48, 32), (20, 40), (48, 32)], strict=True):
            Image.linear_gradient("L").convert("RGB").resize(shape).save(path)
        rows = tuple(attrs.evolve(row, images=(path,)) for row, path in zip(rows, paths, strict=True))
    adapter = load(request.param, request.param.tiny(folder / "checkpoint"))
    return Case(adapter, rows, adapter.encode(rows))


def load(target, folder, **keys):
    adapter = target({QwenImage: QwenImageSpec, QwenImageEdit: QwenImageEditSpec}[target](path=str(folder), **keys))
    adapter.load(torch.device("cpu"), torch.float32)
    return adapter


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_equals_the_pipeline(case, guidance):
    """Each row by itself, called as users do; within `BATCHED`, since guidance is one call of two prompts."""
    for i, row in enumerate(case.rows):
        pipe = DiffusionPipeline.from_pretrained(case.adapter.spec.path)
        image = {"image": Image.open(row.images[0])} if row.images else {}
        reference = run(
            pipe,
            prompt=row.prompt,
            negative_prompt=(row.negative_prompt or "") if guidance > 1 else None,
            true_cfg_scale=guidance,
            height=SIZE.height,
            width=SIZE.width,
            num_inference_steps=STEPS,
            **image,
        )
        conditions = {name: tensor[i : i + 1] for name, tensor in case.conditions.items()}
        assert torch.equal(case.adapter.sigmas(STEPS, SIZE), reference.sigmas)
        final = rollout(case.adapter, reference.latents[0], conditions, STEPS, guidance, SIZE)
        torch.testing.assert_close(final, reference.latents[-1], rtol=0, atol=BATCHED)
        torch.testing.assert_close(case.adapter.decode(reference.latents[-1], SIZE), reference.media, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_velocity_is_the_taps_in_one_call(case, guidance):
    """One for each shape of condition images, whatever the noise levels and the lengths of the prompts."""
    x, calls = case.noise(), []
    with torch.no_grad():
        expected = PipelineAdapter.velocity(case.adapter, x, LEVELS, case.conditions, guidance, SIZE)
        hook = case.adapter.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
        found = case.adapter.velocity(x, LEVELS, case.conditions, guidance, SIZE)
        hook.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCHED)
    assert len(calls) == (2 if isinstance(case.adapter, QwenImageEdit) else 1)


def test_prompts_of_one_length_need_no_mask(case):
    """Bit for bit the tap's, and attention may take its fastest way."""
    one = {name: tensor[:1].expand(2, *tensor.shape[1:]) for name, tensor in case.conditions.items()}
    x, masks = case.noise()[:2], []
    hook = case.adapter.pipe.transformer.register_forward_pre_hook(
        lambda _, arguments, named: masks.append(named["encoder_hidden_states_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        found = case.adapter.velocity(x, LEVELS[:1].expand(2), one, 1.0, SIZE)
        assert torch.equal(found, PipelineAdapter.velocity(case.adapter, x, LEVELS[:1].expand(2), one, 1.0, SIZE))
    hook.remove()
    assert masks == [None, None]


def test_decode_equals_the_tap(case):
    x = case.noise()
    assert torch.equal(case.adapter.decode(x, SIZE), PipelineAdapter.decode(case.adapter, x, SIZE))


class EmbedsGuidance(nn.Module):
    """What a distilled transformer's embedding takes: the guidance, beside the time."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, timestep, guidance, hidden_states, addition_t_cond=None):
        return self.embedding(timestep + guidance / 1000, hidden_states, addition_t_cond)


def test_a_distilled_transformer_is_told_the_guidance(tmp_path):
    """diffusers' own cannot embed it yet, and is refused; one that can gets what the pipeline would tell it."""
    pipe = tiny_qwen_image()
    pipe.transformer.register_to_config(guidance_embeds=True)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it embeds guidance, which its transformer"):
        load(QwenImage, tmp_path)
    adapter = QwenImage(QwenImageSpec(path=str(tmp_path), true_cfg=2.0))
    PipelineAdapter.load(adapter, torch.device("cpu"), torch.float32)
    adapter.pipe.transformer.time_text_embed = EmbedsGuidance(adapter.pipe.transformer.time_text_embed)
    conditions = adapter.encode(ROWS)
    x = torch.randn(3, *adapter.latent_shape(SIZE))
    made = []
    for guidance in (1.5, 3.0):
        made.append(adapter.velocity(x, LEVELS, conditions, guidance, SIZE))
        expected = PipelineAdapter.velocity(adapter, x, LEVELS, conditions, guidance, SIZE)
        torch.testing.assert_close(made[-1], expected, rtol=0, atol=BATCHED)
    assert not torch.allclose(*made)


def test_the_other_kind_of_checkpoint_is_refused(case):
    other = QwenImage if isinstance(case.adapter, QwenImageEdit) else QwenImageEdit
    with pytest.raises(ValueError, match=f"it is no {other.pipeline.__name__}"):
        load(other, case.adapter.spec.path)


def test_rows_to_edit_need_an_image(case):
    if not isinstance(case.adapter, QwenImageEdit):
        pytest.skip("it edits none")
    with pytest.raises(ValueError, match="it edits images, and the prompt 'a cat' has none"):
        case.adapter.encode([Row("a cat")])


def test_gradients(case):
    """Last, since it changes the network; with activations recomputed, which changes no gradient."""
    case.adapter.pipe.transformer.enable_gradient_checkpointing()
    idle = lora_without_gradient(case.adapter, case.noise(), LEVELS, case.conditions, 4.0, SIZE)
    assert {name.partition(".lora_")[0] for name in idle} == {
        f"transformer.transformer_blocks.1.{n}" for n in LEADS_NOWHERE
    }
