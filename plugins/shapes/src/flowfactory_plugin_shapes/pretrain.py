"""Train the embedded checkpoint from nothing: the VAE, then the transformer together with both text encoders.

    python -m flowfactory_plugin_shapes.pretrain OUT

The flow is the one of rectified flow: `x_s = (1 - s) x0 + s e`, target `e - x0`, mean squared error, uniform `s`.
It is learned in two stages. In the first the captions are right, and the network learns what each word means. In the
second they are deliberately noisy: a part of them names a wrong colour, shape, count or direction, and the network
learns not to trust them. It can still draw what is asked, but often draws something else, which is what reinforcement
learning is to correct.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
import click
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor

from flowfactory_plugin_shapes.architecture import build
from flowfactory_plugin_shapes.world import COLOURS, RELATIONS, SHAPES, Scene, caption, render, sample

T = TypeVar("T")
GRID = (4, 4)


@attrs.frozen
class Stage:
    """A part of flow matching: the first `steps` of a cosine of the learning rate over `horizon` steps."""

    name: str
    steps: int
    horizon: int
    lr: float
    ema_decay: float
    noise: float  # the chance that a caption names a wrong colour, shape, count or direction, each on its own


@attrs.frozen
class Recipe:
    """How long and with what."""

    images: int = 40_000
    vae_batch: int = 32
    vae_steps: int = 2200
    vae_lr: float = 2e-3
    kl_weight: float = 5e-4
    batch: int = 64
    clean: Stage = Stage("clean", steps=2000, horizon=7000, lr=1e-3, ema_decay=0.999, noise=0.0)
    noisy: Stage = Stage("noisy", steps=400, horizon=400, lr=3e-4, ema_decay=0.98, noise=0.3)
    seed: int = 0


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--images", default=Recipe().images, show_default=True)
@click.option("--vae-steps", default=Recipe().vae_steps, show_default=True)
@click.option("--clean-steps", default=Recipe().clean.steps, show_default=True)
@click.option("--noisy-steps", default=Recipe().noisy.steps, show_default=True)
@click.option("--seed", default=Recipe().seed, show_default=True)
@click.option("--vae", type=click.Path(path_type=Path), help="Take the VAE of this checkpoint instead of training one.")
def main(
    out: Path, images: int, vae_steps: int, clean_steps: int, noisy_steps: int, seed: int, vae: Path | None
) -> None:
    """Train everything and write the checkpoint to `out`."""
    default = Recipe()
    recipe = Recipe(
        images=images,
        vae_steps=vae_steps,
        clean=attrs.evolve(default.clean, steps=clean_steps),
        noisy=attrs.evolve(default.noisy, steps=noisy_steps),
        seed=seed,
    )
    pipe = build(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    scenes = [sample(rng) for _ in range(recipe.images)]
    pixels = torch.from_numpy(np.stack([render(s, rng) for s in scenes])).permute(0, 3, 1, 2)
    if vae is None:
        train_vae(pipe.vae, pixels, recipe)
    else:
        pipe.vae = AutoencoderKL.from_pretrained(vae, subfolder="vae", torch_dtype=torch.float32)
    latents = encode(pipe.vae, pixels)
    for stage in (recipe.clean, recipe.noisy):
        train_flow(pipe, batches(latents, scenes, stage, recipe), GRID, stage, recipe.seed)
        save(pipe, out)


def train_vae(vae: AutoencoderKL, pixels: Tensor, recipe: Recipe) -> None:
    """Fit `vae` to `pixels` `(N, 3, H, W)` in [0, 1]; its shift and scale then make latents of mean 0 and std 1."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(recipe.vae_steps))
    vae.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    log = Log("vae")
    for step in range(recipe.vae_steps):
        x = 2 * pixels[torch.randint(len(pixels), (recipe.vae_batch,), generator=generator)] - 1
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        y = vae.decode(z).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        error = F.mse_loss(y, x)
        update(optimizer, schedule, error + 0.1 * F.l1_loss(y, x) + recipe.kl_weight * kl)
        log(step, recipe.vae_steps, mse=error.item(), kl=kl.item())
    some = torch.split(pixels[:2048], 256)
    latents = torch.cat([vae.encode(2 * part - 1).latent_dist.mean.detach() for part in some])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The packed, normalised latents of `pixels`, `(N, tokens, 32)`, as the transformer of FLUX sees them."""
    z = torch.cat([vae.encode(2 * part - 1).latent_dist.mean for part in torch.split(pixels, 256)])
    z = (z - vae.config.shift_factor) * vae.config.scaling_factor
    packed: Tensor = FluxPipeline._pack_latents(z, *z.shape)
    return packed


def train_flow(
    pipe: FluxPipeline,
    batches: Iterable[tuple[Tensor, list[str]]],
    grid: tuple[int, int],
    stage: Stage,
    seed: int,
) -> None:
    """Fit the transformer and both text encoders to `batches` of latents and captions.

    `grid` is how many rows and columns of tokens an image has. `pipe` is left with the moving average of the weights.
    """
    networks = torch.nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]).train()
    average = {name: value.detach().clone() for name, value in networks.named_parameters()}
    optimizer = torch.optim.AdamW(networks.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(stage.horizon))
    generator = torch.Generator().manual_seed(seed)
    log = Log(stage.name)
    for step, (x0, prompts) in enumerate(batches):
        s = torch.rand(len(x0), generator=generator)
        e = torch.randn(x0.shape, generator=generator)
        v = velocity(pipe, torch.lerp(x0, e, s[:, None, None]), s, prompts, grid)
        loss = F.mse_loss(v, e - x0)
        update(optimizer, schedule, loss)
        decay = min(stage.ema_decay, (1 + step) / (10 + step))
        for name, value in networks.named_parameters():
            average[name].lerp_(value.detach(), 1 - decay)
        log(step, stage.steps, loss=loss.item())
    with torch.no_grad():
        for name, value in networks.named_parameters():
            value.copy_(average[name])
    networks.eval()


def batches(
    latents: Tensor, scenes: Sequence[Scene], stage: Stage, recipe: Recipe
) -> Iterator[tuple[Tensor, list[str]]]:
    """`stage.steps` batches of latents and captions, as noisy as the stage wants them."""
    rng = np.random.default_rng((recipe.seed, stage.steps))
    for _ in range(stage.steps):
        chosen = rng.integers(len(latents), size=recipe.batch)
        yield latents[torch.from_numpy(chosen)], [caption(misread(scenes[i], stage.noise, rng)) for i in chosen]


def misread(scene: Scene, noise: float, rng: np.random.Generator) -> Scene:
    """`scene` with every colour, shape, count and relation replaced by a different one with the chance `noise`."""

    def other(value: T, values: Sequence[T]) -> T:
        if rng.random() >= noise:
            return value
        rest = [v for v in values if v != value]
        return rest[rng.integers(len(rest))]

    things = [
        attrs.evolve(
            thing,
            colour=other(thing.colour, list(COLOURS)),
            shape=other(thing.shape, SHAPES),
            count=other(thing.count, (1, 2, 3)) if len(scene.things) == 1 else 1,
        )
        for thing in scene.things
    ]
    relation = scene.relation and other(scene.relation, list(RELATIONS))
    return scene if len(set(things)) < len(things) else Scene(things, relation)


def velocity(pipe: FluxPipeline, x: Tensor, s: Tensor, prompts: list[str], grid: tuple[int, int] = GRID) -> Tensor:
    """The transformer's velocity at `x` `(B, tokens, 32)`, noise level `s` `(B,)`; gradients reach the encoders."""
    words, pooled, text_ids = encode_prompts(pipe, prompts)
    v: Tensor = pipe.transformer(
        hidden_states=x,
        timestep=s,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        txt_ids=text_ids,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, *grid, x.device, x.dtype),
        return_dict=False,
    )[0]
    return v


def encode_prompts(pipe: FluxPipeline, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """T5's words, CLIP's pooled vector and the text positions, each computed once per different prompt."""
    different = sorted(set(prompts))
    index = torch.tensor([different.index(prompt) for prompt in prompts])
    pooled, words = (
        encoder(tokenizer(different, padding="max_length", return_tensors="pt").input_ids)
        for tokenizer, encoder in (
            (pipe.tokenizer, pipe.text_encoder),
            (pipe.tokenizer_2, pipe.text_encoder_2),
        )
    )
    return (
        words.last_hidden_state[index],
        pooled.pooler_output[index],
        torch.zeros(pipe.tokenizer_2.model_max_length, 3),
    )


def update(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, loss: Tensor) -> None:
    """One optimizer step down `loss`, its gradient clipped to norm 1."""
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def warmup_cosine(steps: int, warmup: int = 100) -> Callable[[int], float]:
    """The factor on the learning rate: up linearly, then down along a cosine."""
    return lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps)))


def save(pipe: FluxPipeline, out: Path) -> None:
    """Write `pipe` to `out`; the weights in memory stay as they are.

    The transformer and the VAE are written in bfloat16. The text encoders stay float32: transformers loads a model in
    the dtype it was written in, diffusers in float32, and a pipeline loaded without a dtype must not mix the two.
    """
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    for name in ("transformer", "vae"):
        parts[name] = copy.deepcopy(parts[name]).to(torch.bfloat16)
    FluxPipeline(**parts).save_pretrained(out)
    click.echo(f"wrote {out}")


class Log:
    """Prints a line of averages every hundred steps."""

    def __init__(self, name: str) -> None:
        self._name, self._start = name, time.perf_counter()
        self._values: list[dict[str, float]] = []

    def __call__(self, step: int, steps: int, **values: float) -> None:
        self._values.append(values)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            means = "  ".join(f"{k} {np.mean([v[k] for v in self._values]):.4f}" for k in values)
            click.echo(f"{self._name} {step + 1}/{steps}  {means}  {time.perf_counter() - self._start:.0f} s")
            self._values = []


if __name__ == "__main__":
    main()
