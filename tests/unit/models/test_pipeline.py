"""The tap, on a small Stable Diffusion 3 with random weights, against that pipeline called as its users do."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.errors import RunError
from flowfactory.models import reading, stepping, tap
from flowfactory.models.pipeline import PipelineAdapter
from oracle import conditions_of, lora_without_gradient, rollout, run
from PIL import Image

SIZE = Size(32, 48)
STEPS = 3
ROWS = (Row("a cat"), Row("two dogs", "blurry"), Row("a much longer prompt about nothing at all", ""))

LEADS_NOWHERE = "transformer.transformer_blocks.1.attn.add_q_proj"
"""Stable Diffusion 3 throws away what its last block makes of the text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return PipelineAdapter.tiny(tmp_path_factory.mktemp("sd3"))


def load(folder, dtype=torch.float32) -> PipelineAdapter:
    adapter = PipelineAdapter(PipelineSpec(path=str(folder)))
    adapter.load(torch.device("cpu"), dtype)
    return adapter


def by_diffusers(folder, row, guidance, dtype=torch.float32):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, dtype=dtype)
    pipe.vae.requires_grad_(False)  # as adapters do; torch's linear layers round differently when weights are trainable
    size = {"height": SIZE.height, "width": SIZE.width}
    prompts = {"prompt": row.prompt, "negative_prompt": row.negative_prompt}
    return run(pipe, **prompts, **size, num_inference_steps=STEPS, guidance_scale=guidance)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.prompt)
def test_equals_the_pipeline(folder, row, guidance):
    adapter, reference = load(folder), by_diffusers(folder, row, guidance)
    conditions, noise = adapter.encode([row]), reference.latents[0]
    assert adapter.latent_shape(SIZE) == noise.shape[1:]
    assert torch.equal(adapter.sigmas(STEPS, SIZE), reference.sigmas)
    final = rollout(adapter, noise, conditions, STEPS, guidance, SIZE)
    assert torch.equal(final, reference.latents[-1])
    assert torch.equal(adapter.decode(final, SIZE), reference.media)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_velocity_equals_the_pipeline_in_half_precision(folder, dtype):
    adapter, reference = load(folder, dtype), by_diffusers(folder, ROWS[1], 4.5, dtype)
    conditions = adapter.encode([ROWS[1]])
    for i, v in enumerate(reference.velocities):
        with torch.no_grad():
            ours = adapter.velocity(reference.latents[i], reference.sigmas[i : i + 1], conditions, 4.5, SIZE)
        assert ours.dtype == dtype
        assert torch.equal(ours, v)


def test_encoding_a_row_does_not_depend_on_its_company(folder):
    adapter = load(folder)
    together, alone = adapter.encode(ROWS), conditions_of(adapter, ROWS)
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[name], alone[name]) for name in together)


def test_different_noise_levels_are_each_their_own(folder):
    adapter = load(folder)
    conditions, x = adapter.encode(ROWS), torch.randn(3, *adapter.latent_shape(SIZE))
    sigma = torch.tensor([0.9, 0.2, 0.5])
    together = adapter.velocity(x, sigma, conditions, 4.5, SIZE)
    for i in range(3):
        row = {name: tensor[i : i + 1] for name, tensor in conditions.items()}
        assert torch.equal(together[i : i + 1], adapter.velocity(x[i : i + 1], sigma[i : i + 1], row, 4.5, SIZE))


def test_rows_at_one_noise_level_share_a_call_and_keep_their_order(folder):
    adapter = load(folder)
    conditions, x = adapter.encode(ROWS), torch.randn(3, *adapter.latent_shape(SIZE))
    calls = []
    adapter.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    together = adapter.velocity(x, torch.tensor([0.9, 0.2, 0.9]), conditions, 1.0, SIZE)
    assert len(calls) == 2
    alone = adapter.velocity(x[2:], torch.tensor([0.9]), {n: t[2:] for n, t in conditions.items()}, 1.0, SIZE)
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-5)


def test_gradients_reach_every_lora_parameter(folder):
    adapter = load(folder)
    conditions, x = adapter.encode(ROWS), torch.randn(3, *adapter.latent_shape(SIZE))
    idle = lora_without_gradient(adapter, x, torch.tensor([0.9, 0.2, 0.9]), conditions, 4.5, SIZE)
    assert {name.partition(".lora_")[0] for name in idle} == {LEADS_NOWHERE}


def test_only_the_network_can_be_trained(folder):
    adapter = load(folder)
    assert list(adapter.networks()) == ["transformer"]
    frozen = {name: part for name, part in adapter.pipe.components.items() if name.startswith(("text_encoder", "vae"))}
    assert len(frozen) == 4
    assert not any(parameter.requires_grad for part in frozen.values() for parameter in part.parameters())


def test_dropped_encoders_leave_memory(folder):
    adapter = load(folder)
    conditions = adapter.encode(ROWS)
    encoders = [part for name, part in adapter.pipe.components.items() if name.startswith("text_encoder")]
    watched = [weakref.ref(parameter) for encoder in encoders for parameter in encoder.parameters()]
    kept = sum(
        parameter.numel() for name in ("transformer", "vae") for parameter in adapter.pipe.components[name].parameters()
    )
    del encoders
    adapter.drop_encoders()
    gc.collect()
    assert watched
    assert sum(parameter() is not None for parameter in watched) == 0
    live = {name for name, part in adapter.pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert live == {"transformer", "vae"}
    assert kept == sum(p.numel() for name in live for p in adapter.pipe.components[name].parameters())
    x = torch.randn(3, *adapter.latent_shape(SIZE))
    assert adapter.velocity(x, adapter.sigmas(STEPS, SIZE)[:1].expand(3), conditions, 4.5, SIZE).shape == x.shape
    assert adapter.decode(x, SIZE).shape == (3, 3, SIZE.height, SIZE.width)


def test_the_pipeline_is_left_as_it_was(folder):
    adapter = load(folder)
    before = dict(vars(adapter.pipe))
    conditions = adapter.encode(ROWS[:1])
    x = torch.randn(1, *adapter.latent_shape(SIZE))
    adapter.velocity(x, torch.tensor([0.5]), conditions, 4.5, SIZE)
    adapter.decode(x, SIZE)
    assert vars(adapter.pipe)["scheduler"] is before["scheduler"]
    assert "encode_prompt" not in vars(adapter.pipe)


def test_nothing_draws_from_anybody_elses_generator(folder):
    adapter = load(folder)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    conditions = adapter.encode(ROWS)
    x = torch.zeros(3, *adapter.latent_shape(SIZE))
    adapter.velocity(x, adapter.sigmas(STEPS, SIZE)[:1].expand(3), conditions, 1.0, SIZE)
    adapter.decode(x, SIZE)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_different_kinds_do_not_join(folder):
    adapter = load(folder)
    one, two = adapter.encode(ROWS[:1]), adapter.encode(ROWS[:1])
    with pytest.raises(ValueError, match="only some have encode_prompt"):
        adapter.collate([one, {name: tensor for name, tensor in two.items() if name != "encode_prompt.0.0"}])


# --- refusals --------------------------------------------------------------------------------------------------------


def variant(folder, tmp_path, **config):
    """The checkpoint with some of its scheduler's configuration replaced."""
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **config)
    pipe.save_pretrained(tmp_path)
    return tmp_path


def test_a_path_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a diffusers pipeline"):
        load(tmp_path)


def test_a_pipeline_that_is_not_flow_matching_is_refused(folder, tmp_path):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its scheduler DDIMScheduler is not set up for flow matching"):
        load(tmp_path)


def test_rising_noise_levels_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="its noise levels rise"):
        load(variant(folder, tmp_path, invert_sigmas=True))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusion3Img2ImgPipeline", "it starts from an image or a video under some noise, not from noise"),
        (
            "StableDiffusion3InpaintPipeline",
            "it fills in a masked part of an image or a video, and rows of data have no masks",
        ),
        ("FluxControlNetPipeline", "it is steered by a control image"),
        ("LTX2Pipeline", "sound is among what it denoises or looks at"),
    ],
)
def test_what_its_class_shows_is_refused_before_its_weights_are_read(folder, tmp_path, name, reason):
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": name}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"\({name}\) cannot be trained here: {reason}"):
        load(tmp_path)


def test_keys_without_effect_are_refused(folder):
    adapter = PipelineAdapter(PipelineSpec(path=str(folder), true_cfg=4.0))
    with pytest.raises(ValueError, match="it has no use for `true_cfg`"):
        adapter.load(torch.device("cpu"), torch.float32)


def test_condition_images_for_a_model_without_are_refused(folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="it takes no condition images; leave `image` out of rows"):
        load(folder).encode([Row("a cat", images=(tmp_path / "image.png",))])


def test_guidance_of_a_pipeline_without_is_refused(folder):
    adapter = load(folder)
    conditions, x = adapter.encode(ROWS[:1]), torch.zeros(1, *adapter.latent_shape(SIZE))
    adapter._parameters = {name: p for name, p in adapter._parameters.items() if name != "guidance_scale"}
    with pytest.raises(ValueError, match="it takes no guidance"):
        adapter.velocity(x, torch.ones(1), conditions, 4.5, SIZE)


class FreshNoise(StableDiffusion3Pipeline):
    """Conditions its network on new noise in every call."""

    def prepare_latents(self, *arguments):
        self.noise = torch.randn(1)
        return super().prepare_latents(*arguments)

    @property
    def joint_attention_kwargs(self):
        self.transformer._forward_hooks.clear()
        self.transformer.register_forward_hook(lambda module, inputs, output: (output[0] + self.noise,))
        return None


class NeverTheSame(FreshNoise):
    """Adds noise of which no seed decides."""

    def prepare_latents(self, *arguments):
        torch.seed()
        return super().prepare_latents(*arguments)


class CountsSteps(StableDiffusion3Pipeline):
    """Guides a little less from step `late` on."""

    @property
    def guidance_scale(self):
        return self._guidance_scale - (0.2 if (self.scheduler.step_index or 0) >= self.late else 0)


class OwnSampler(StableDiffusion3Pipeline):
    """Never asks its scheduler for a step."""

    @property
    def interrupt(self):
        return True


def changed(folder, pipeline, dtype=torch.float32) -> PipelineAdapter:
    adapter = load(folder, dtype)
    adapter.pipe.__class__ = pipeline
    return adapter


def test_fresh_noise_in_every_call_is_refused(folder):
    with pytest.raises(ValueError, match="it adds fresh noise in every call"):
        changed(folder, FreshNoise).latent_shape(SIZE)


def test_a_pipeline_that_steps_from_elsewhere_is_refused(folder, monkeypatch):
    original = tap.run

    def elsewhere(*arguments):
        outcome = original(*arguments)
        if isinstance(outcome, stepping.Reached):
            outcome.sample = outcome.sample * 2
        return outcome

    adapter = load(folder)
    monkeypatch.setattr(tap, "run", elsewhere)
    with pytest.raises(ValueError, match="it changes the latents it is given"):
        adapter.latent_shape(SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("late", [1, 5, 9])
def test_a_pipeline_that_counts_its_steps_is_refused(folder, late, dtype):
    """Whichever step it changes at, by however little, in every precision; a run without that step is right."""
    adapter = changed(folder, CountsSteps, dtype)
    adapter.pipe.late = late
    with pytest.raises(ValueError, match=r"depends on the number of the step.*at step \d+ of 10 it is"):
        adapter.sigmas(10, SIZE)
    assert len(adapter.sigmas(late, SIZE)) == late + 1


def test_a_pipeline_that_answers_at_random_is_refused(folder):
    with pytest.raises(ValueError, match="asked the same twice, its answers are"):
        changed(folder, NeverTheSame).latent_shape(SIZE)


def test_a_pipeline_that_computes_nothing_finite_is_said_to(folder):
    adapter = load(folder)
    with torch.no_grad():
        next(adapter.pipe.transformer.parameters()).fill_(torch.inf)
    with pytest.raises(ValueError, match="what it computes is not finite"):
        adapter.latent_shape(SIZE)


def test_a_pipeline_with_a_sampler_of_its_own_is_refused(folder):
    with pytest.raises(ValueError, match="it never calls its scheduler's step"):
        changed(folder, OwnSampler).latent_shape(SIZE)


class Against(FlowMatchEulerDiscreteScheduler):
    """Steps the other way."""

    def step(self, model_output, *arguments, **others):
        return super().step(-model_output, *arguments, **others)


def test_a_scheduler_that_steps_against_its_network_is_refused(folder):
    """Its answers are no velocities, and would be trained with the wrong sign."""
    adapter = load(folder)
    adapter.pipe.scheduler = Against.from_config(adapter.pipe.scheduler.config)
    with pytest.raises(ValueError, match="its scheduler steps against what its network predicts"):
        adapter.sigmas(4, SIZE)


def test_a_refused_size_stays_refused(folder):
    adapter = changed(folder, FreshNoise)
    for _ in range(2):
        with pytest.raises(ValueError, match="fresh noise"):
            adapter.latent_shape(SIZE)


# --- what is unusual, and served or told ----------------------------------------------------------------------------


class OwnSchedule(FlowMatchEulerDiscreteScheduler):
    """Has four noise levels, whatever number is asked for."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        super().set_timesteps(sigmas=[1.0, 0.7, 0.4, 0.1], device=device)


def test_a_fixed_schedule_is_served_at_its_own_number_of_steps(folder):
    adapter = load(folder)
    adapter.pipe.scheduler = OwnSchedule.from_config(adapter.pipe.scheduler.config)
    assert adapter.latent_shape(SIZE)
    assert adapter.sigmas(4, SIZE).shape == (5,)
    with pytest.raises(ValueError, match=r"has 4 steps, however many .*; set \[sampling\] steps to 4, not 6"):
        adapter.sigmas(6, SIZE)


class Particular(StableDiffusion3Pipeline):
    """Takes prompts of one form only."""

    def check_inputs(self, prompt, *arguments, **others):
        if not all(text.startswith("{") for text in ([prompt] if isinstance(prompt, str) else prompt)):
            raise ValueError("`prompt` has to begin with a brace")


def test_prompts_of_a_form_are_served_and_others_refused_when_they_are_encoded(folder):
    adapter = changed(folder, Particular)
    with pytest.raises(ValueError, match="in its own words: `prompt` has to begin with a brace"):
        adapter.encode([Row("a cat")])
    adapter.encode([Row("{a cat}")])
    assert adapter.sigmas(4, SIZE).shape == (5,)
    assert adapter.cut(["{a cat}"]) == []


@pytest.mark.parametrize("error", [TypeError, AttributeError, IndexError, KeyError, RuntimeError, AssertionError])
def test_an_error_in_its_code_is_told_with_the_checkpoint_and_the_place(folder, error):
    class Broken(StableDiffusion3Pipeline):
        def check_inputs(self, *arguments, **others):
            raise error("of its own")

    with pytest.raises(tap.Refused) as said:
        changed(folder, Broken).sigmas(4, SIZE)
    assert str(said.value).startswith(f"{folder} (Broken) cannot be trained here: its code fails with {error.__name__}")
    assert "of its own" in str(said.value)
    assert "test_pipeline.py, line " in str(said.value)
    assert isinstance(said.value, RunError)  # no traceback is shown, at whatever time
    assert isinstance(said.value.__cause__, error)


def test_a_full_memory_is_not_a_refusal(folder):
    class Large(StableDiffusion3Pipeline):
        @property
        def joint_attention_kwargs(self):
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        changed(folder, Large).sigmas(4, SIZE)


def test_what_its_call_needs_beyond_a_row_is_seen_before_it_is_called(folder):
    class Posed(StableDiffusion3Pipeline):
        def __call__(self, prompt, pose_video, face_video, seed=0, **others):
            raise AssertionError("called")

    pipe = changed(folder, Posed).pipe
    (reason,) = reading.reasons_against(pipe)
    assert reason == "its call needs `face_video`, `pose_video`, which rows of data do not have"


def test_sound_is_refused_for_what_it_is(folder):
    class Loud(StableDiffusion3Pipeline):
        def __call__(self, prompt=None, audio_latents=None):
            raise AssertionError("called")

    (reason,) = reading.reasons_against(changed(folder, Loud).pipe)
    assert reason.startswith("sound is among what it denoises or looks at")


class OneRow(StableDiffusion3Pipeline):
    """Takes no lists, as some pipelines do."""

    def check_inputs(self, prompt, *arguments, **others):
        if isinstance(prompt, list):
            raise ValueError("lists of prompts are not supported")


def test_a_pipeline_that_takes_one_row_is_called_for_each(folder):
    adapter, plain = changed(folder, OneRow), load(folder)
    conditions, x = adapter.encode(ROWS), torch.randn(3, *plain.latent_shape(SIZE))
    assert all(name.endswith((":row", ":none")) for name in conditions if name != "shapes")
    sigma = torch.tensor([0.9, 0.9, 0.2])
    found = adapter.velocity(x, sigma, conditions, 4.5, SIZE)
    expected = plain.velocity(x, sigma, plain.encode(ROWS), 4.5, SIZE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(adapter.decode(x, SIZE)[1:2], adapter.decode(x[1:2], SIZE))
    cached = load(folder)
    cached._sample = {name: tensor[:1] for name, tensor in conditions.items()}
    torch.testing.assert_close(cached.velocity(x, sigma, conditions, 4.5, SIZE), found)


def test_another_pipeline_than_expected_is_refused_before_its_weights_are_read(folder, tmp_path):
    class Flux(PipelineAdapter):
        pipeline = FluxPipeline

    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(ValueError, match="it is no FluxPipeline; the adapter `diffusers` may serve it"):
        Flux(PipelineSpec(path=str(tmp_path))).load(torch.device("cpu"), torch.float32)


def test_a_pipeline_whose_prompt_is_read_elsewhere_is_refused(folder):
    class Deaf(StableDiffusion3Pipeline):
        def encode_prompt(self, prompt, prompt_2, prompt_3, *args, **kwargs):
            same = ["a cat"] * len(prompt) if isinstance(prompt, list) else "a cat"
            return super().encode_prompt(same, same, same, *args, **kwargs)

    adapter = load(folder)
    adapter.pipe = Deaf(**adapter.pipe.components)
    with pytest.raises(tap.Refused, match="what it encodes does not depend on the prompt: see whether"):
        adapter.encode([Row("a cat")])


def of_channels(folder, channels):
    adapter = load(folder)
    last = adapter.pipe.vae.decoder.conv_out
    adapter.pipe.vae.decoder.conv_out = torch.nn.Conv2d(last.in_channels, channels, 3, padding=1)
    adapter.encode(ROWS[:1])
    return adapter


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_media_that_are_not_red_green_and_blue_are_refused(folder, channels):
    with pytest.raises(tap.Refused, match=f"it makes media of {channels} channels"):
        of_channels(folder, channels).latent_shape(SIZE)


def test_media_with_opacity_have_three_channels(folder):
    adapter = of_channels(folder, 4)
    x = torch.randn(1, *adapter.latent_shape(SIZE))
    assert adapter.decode(x, SIZE).shape == (1, 3, SIZE.height, SIZE.width)
