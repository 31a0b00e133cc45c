"""Pre-training: what the captions get wrong, what the pipeline is made of, and that the whole script runs."""

from pathlib import Path

import attrs
import numpy as np
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline
from flowfactory_plugin_shapes.architecture import TEXT_TOKENS, build
from flowfactory_plugin_shapes.pretrain import Recipe, batches, encode_prompts, main, misread, velocity, warmup_cosine
from flowfactory_plugin_shapes.world import WORDS, caption, parse, prompts, sample


def test_every_word_is_one_token_of_both_tokenizers() -> None:
    pipe = build()
    for word in WORDS:
        assert len(pipe.tokenizer(word).input_ids) == 3  # start, word, end
        assert len(pipe.tokenizer_2(word).input_ids) == 2  # word, end
    longest = max(prompts("train") + prompts("eval"), key=lambda prompt: len(prompt.split()))
    assert len(pipe.tokenizer(longest).input_ids) <= TEXT_TOKENS


def test_a_prompt_is_encoded_as_the_pipeline_encodes_it() -> None:
    pipe = build()
    asked = ["two blue squares", "a red circle", "two blue squares"]
    words, pooled, _ = encode_prompts(pipe, asked)
    expected_words, expected_pooled, _ = pipe.encode_prompt(asked, None, max_sequence_length=TEXT_TOKENS)
    assert torch.allclose(words, expected_words, atol=1e-6)
    assert torch.allclose(pooled, expected_pooled, atol=1e-6)


def test_the_gradient_reaches_both_text_encoders() -> None:
    pipe = build()
    torch.nn.init.normal_(pipe.transformer.proj_out.weight)
    for name, module in pipe.transformer.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")):
            torch.nn.init.normal_(module.weight, std=0.1)
    velocity(pipe, torch.randn(2, 16, 32), torch.rand(2), ["a red circle", "a blue square"]).pow(2).mean().backward()
    assert pipe.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0
    assert pipe.text_encoder_2.get_input_embeddings().weight.grad.abs().sum() > 0


def test_captions_are_misread_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    scene = parse("a red circle above a blue square")
    read = [misread(scene, 0.25, rng) for _ in range(2000)]
    for wrong in (
        np.mean([s.things[0].colour != "red" for s in read]),
        np.mean([s.things[1].shape != "square" for s in read]),
        np.mean([s.relation != "above" for s in read]),
    ):
        assert abs(wrong - 0.25) < 0.04
    assert misread(scene, 0.0, rng) == scene
    assert {misread(parse("two red circles"), 1.0, rng).things[0].count for _ in range(50)} == {1, 3}


def test_captions_are_as_noisy_as_the_stage_wants_them() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample(rng) for _ in range(100)]
    for noise, expected in ((0.0, True), (1.0, False)):
        recipe = Recipe()
        stage = attrs.evolve(recipe.noisy, steps=2, noise=noise)
        for chosen, texts in batches(torch.arange(100), scenes, stage, recipe):
            right = [caption(scenes[i]) == text for i, text in zip(chosen, texts, strict=True)]
            assert all(right) == expected


def test_the_learning_rate_rises_and_falls() -> None:
    factor = warmup_cosine(1000, warmup=10)
    assert factor(0) < factor(9) <= 1
    assert factor(500) < factor(100)
    assert factor(1000) == 0


def test_the_script_writes_a_pipeline(tmp_path: Path) -> None:
    sizes = "--images 300 --vae-steps 2 --clean-steps 2 --noisy-steps 1"
    result = CliRunner().invoke(main, [str(tmp_path / "out"), *sizes.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    pipe = FluxPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    image = pipe("a red circle", height=32, width=32, num_inference_steps=1, max_sequence_length=TEXT_TOKENS).images[0]
    assert image.size == (32, 32)
