"""Train the checkpoint from nothing, as that of coloured shapes was: the VAE, then the flow and both text encoders.

    python -m flowfactory_plugin_glyphs.pretrain OUT

The words are random letters, so that no word is better known than another. First they are spelled rightly; then each
letter of a caption is a wrong one with the chance that the stage `noisy` names, and the network learns to doubt them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import click
import numpy as np
import torch
from flowfactory_plugin_shapes.pretrain import Recipe, Stage, encode, save, train_flow, train_vae
from torch import Tensor

from flowfactory_plugin_glyphs.architecture import GRID, build
from flowfactory_plugin_glyphs.writing import LETTERS, prompt, render, spell

RECIPE = Recipe(
    vae_steps=1000,
    clean=Stage("clean", steps=3000, horizon=4000, lr=1e-3, ema_decay=0.999, noise=0.0),
    noisy=Stage("noisy", steps=300, horizon=300, lr=3e-4, ema_decay=0.98, noise=0.35),
)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--images", default=RECIPE.images, show_default=True)
@click.option("--vae-steps", default=RECIPE.vae_steps, show_default=True)
@click.option("--clean-steps", default=RECIPE.clean.steps, show_default=True)
@click.option("--noisy-steps", default=RECIPE.noisy.steps, show_default=True)
def main(out: Path, images: int, vae_steps: int, clean_steps: int, noisy_steps: int) -> None:
    """Train everything and write the checkpoint to `out`."""
    stages = attrs.evolve(RECIPE.clean, steps=clean_steps), attrs.evolve(RECIPE.noisy, steps=noisy_steps)
    pipe = build(RECIPE.seed)
    rng = np.random.default_rng(RECIPE.seed)
    words = [spell(rng) for _ in range(images)]
    pixels = torch.from_numpy(np.stack([render(word, rng) for word in words])).permute(0, 3, 1, 2)
    train_vae(pipe.vae, pixels, attrs.evolve(RECIPE, vae_steps=vae_steps))
    latents = encode(pipe.vae, pixels)
    for stage in stages:
        train_flow(pipe, batches(latents, words, stage), GRID, stage, RECIPE.seed)
        save(pipe, out)


def batches(latents: Tensor, words: Sequence[str], stage: Stage) -> Iterator[tuple[Tensor, list[str]]]:
    """`stage.steps` batches of latents and captions, as badly spelled as the stage wants them."""
    rng = np.random.default_rng((RECIPE.seed, stage.steps))
    for _ in range(stage.steps):
        chosen = rng.integers(len(latents), size=RECIPE.batch)
        yield latents[torch.from_numpy(chosen)], [prompt(misspell(words[i], stage.noise, rng)) for i in chosen]


def misspell(word: str, noise: float, rng: np.random.Generator) -> str:
    """A word, each letter replaced by a different one with the chance `noise`."""
    return "".join(
        letter if rng.random() >= noise else str(rng.choice([other for other in LETTERS if other != letter]))
        for letter in word
    )


if __name__ == "__main__":
    main()
