"""Core's own tables of a spec, one attrs class each, and the spec they make together. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from flowfactory.contracts.key import NAME, Location, Precision, Size, key
from flowfactory.data.sources import Data
from flowfactory.spec.kinds import attributes, plain


@attrs.frozen(kw_only=True)
class RunTable:
    """`[run]`"""

    name: str = key("Name of the run and of its folder.", pattern=NAME)
    epochs: int = key("Epochs to train; one is a round of sampling, scoring and updates.", ge=0)
    seed: int = key("Every random number of the run follows from it.", default=0, ge=0)
    save_samples: int = key(
        "How many samples of each epoch and evaluation to write to the run's folder.", default=16, ge=0
    )
    precision: Precision = key("Arithmetic of the networks; trained weights stay float32.", default="fp32")


@attrs.frozen(kw_only=True)
class Tuning:
    """What `[lora]` and `[full]` share."""

    from_: Location | None = key(
        "Weights to begin with: a LoRA's file or folder, an export, a run's folder (its last checkpoint) or one of "
        "its checkpoints, or a hub id. `[full]` takes whole weights too.",
        default=None,
    )
    reference: Literal["start", "base"] | None = key(
        "The reference policy: the model as this run begins with it, `from` included (`start`, when absent), or the "
        "model without `from` (`base`).",
        default=None,
    )


@attrs.frozen(kw_only=True)
class Lora(Tuning):
    """`[lora]`: train LoRA (peft). The reference policy needs no memory, unless `from` is part of it."""

    rank: int | None = key(
        "Rank of each LoRA layer; 32, or as in `from`, when absent.",
        default=attrs.Factory(lambda lora: 32 if lora.from_ is None else None, takes_self=True),
        ge=1,
    )
    alpha: float | None = key(
        "Outputs of LoRA are scaled by alpha / rank; twice the rank, or as in `from`, when absent.",
        default=attrs.Factory(lambda lora: 2.0 * lora.rank if lora.from_ is None else None, takes_self=True),
        gt=0,
    )
    targets: tuple[str, ...] | None = key(
        "Module name endings to adapt; the model's own choice, or as in `from`, when absent.",
        default=None,
        min_length=1,
    )


@attrs.frozen(kw_only=True)
class Full(Tuning):
    """`[full]`: train every weight of the networks."""


@attrs.frozen(kw_only=True)
class Sampling:
    """`[sampling]`"""

    size: Size = key("Pixels: a number (square), [height, width] or [height, width, frames].")
    steps: int = key("Denoising steps of one sample.", ge=1, le=1000)
    prompts: int = key("Prompts per epoch, over all processes.", ge=1, le=1_000_000)
    group: int = key(
        "Samples per prompt, which advantages compare. It is 1 for trainers that compare none, and 2 for pairs.",
        default=1,
        ge=1,
    )
    refill: int = key(
        "Most further rounds of sampling in an epoch, to replace groups without a score or with equal scores.",
        default=0,
        ge=0,
        le=100,
    )
    micro_batch: int = key("Samples that pass the network together.", default=8, ge=1)
    guidance: float = key("Guidance scale, embedded or classifier-free, depending on the model.", default=1.0, ge=0)
    shared_noise: bool = key("Start all samples of a group from the same noise.", default=False)
    storage: Precision = key("Number format in which trajectories are stored.", default="fp32")
    overlap: bool = key("Score finished groups while the next are sampled.", default=True)
    merged: bool = key(
        "Add LoRA to the weights it adapts while samples are made, also in evaluations. Passes are as fast as without "
        "LoRA. Samples differ by rounding, so trainers that compare probabilities with sampling's cannot use it.",
        default=False,
    )
    first_block_cache: float | None = key(
        "In a step of sampling for training, skip all blocks but the first if what that adds has changed by less than "
        "this share since the last step, e.g. 0.08 (diffusers' FirstBlockCache). Decided for a whole micro-batch.",
        default=None,
        gt=0,
        lt=1,
    )


@attrs.frozen(kw_only=True)
class Optimizer:
    """`[optimizer]`: AdamW."""

    lr: float = key("Learning rate.", gt=0)
    betas: tuple[float, float] = key("Decay of the first and second moments.", default=(0.9, 0.999), ge=0, lt=1)
    eps: float = key("Added to the root of the second moment.", default=1e-8, gt=0)
    weight_decay: float = key("Decoupled weight decay.", default=1e-4, ge=0)
    clip_norm: float = key("Largest norm of the whole gradient; e.g. 1e9 clips nothing.", default=1.0, gt=0)
    bits: Literal[8, 32] = key("Bits of each moment; 8 needs `flowfactory[bitsandbytes]`.", default=32)
    updates: int = key("Optimizer steps per epoch; the epoch's groups are divided evenly among them.", default=1, ge=1)
    micro_batch: int = key("Samples that pass the network together, with gradients.", default=8, ge=1)
    lr_schedule: Literal["constant", "linear", "cosine"] = key(
        "Learning rate after the warm-up: `constant`, or how it falls to zero over the run.", default="constant"
    )
    warmup: int = key("Optimizer steps over which the learning rate rises from zero.", default=0, ge=0)
    ema: float = key(
        "Largest decay of the averaged weights that are evaluated and exported; 0 turns averaging off.",
        default=0.9,
        ge=0,
        lt=1,
    )


@attrs.frozen(kw_only=True)
class Memory:
    """`[memory]`"""

    cache: str | None = key(
        "Folder of encoded prompts, absolute or in `~`; one in the user's cache when absent.",
        default=None,
        pattern="[~/].*",
    )
    offload: tuple[Literal["vae", "rewards", "trajectories", "weights", "optimizer"], ...] = key(
        "What to keep in main memory while it is not needed: the `vae`, except where the pipeline encodes an image in "
        "every call; the networks of all `rewards`; the stored `trajectories`; the frozen `weights` of the networks' "
        "blocks, each copied to the device while the block before it computes; the state of the `optimizer`, between "
        "its steps.",
        default=(),
    )
    encode: Literal["before", "between"] = key(
        "When to encode prompts: `before` training, or `between` epochs, which keeps the encoders.", default="before"
    )
    shard: bool = key("Divide weights, gradients and optimizer state among the processes (FSDP2).", default=False)
    ulysses: int = key("How many processes share a sample's tokens (context parallelism by Ulysses).", default=1, ge=1)
    ring: int = key("The same by ring attention, if `attention` allows it; both multiply.", default=1, ge=1)
    gradient_checkpointing: bool = key("Recompute activations in the backward pass.", default=False)
    compile: bool = key("Compile the blocks that the networks repeat, each kind once.", default=False)
    attention: str | None = key(
        "Attention's backend, by diffusers' name, e.g. `flash` or `_native_cudnn`; torch's without cuDNN when absent.",
        default=None,
        min_length=1,
    )


@attrs.frozen(kw_only=True)
class Checkpoint:
    """`[checkpoint]`"""

    every: int = key("Epochs between checkpoints; the last epoch is always saved. 0: only the last.", default=10, ge=0)
    keep: int = key("How many of the latest checkpoints to keep.", default=2, ge=1)
    best: str = key(
        "Which checkpoint to keep as well: that of the evaluation with the best `score`, the sum of the held-out "
        "rewards' means, each times its weight; that with the best mean of one reward, e.g. `eval/ocr/mean`; or "
        "`none`. A new best one is saved at once.",
        default="score",
        pattern="score|none|eval/.+/mean",
    )


@attrs.frozen(kw_only=True)
class Track:
    """`[track]`"""

    to: tuple[str, ...] = key("Trackers by accelerate's names, e.g. `tensorboard`, `wandb`.", default=())
    project: str = key("Project name the trackers show.", default="flowfactory", min_length=1)


@attrs.frozen(kw_only=True)
class Component:
    """A plugin's table: `[model]`, `[scheduler]` or `[trainer]`. `spec` is an instance of the plugin's own class."""

    name: str = key("Which plugin: its public name, or `name@distribution` where two share one.", min_length=1)
    spec: Any


@attrs.frozen(kw_only=True)
class RewardEntry:
    """`[[reward]]`: core's keys, and the plugin's own in `spec`."""

    name: str = key("Which reward plugin.", min_length=1)
    label: str = key("Name in metrics; the plugin's name when absent.", pattern=NAME)
    weight: float = key("Factor in the sum of rewards; 0: measured, not trained on.", default=1.0, ge=-1e6, le=1e6)
    sources: tuple[str, ...] | None = key(
        "Names of the `[[data.source]]` whose samples it scores; all of them when absent.", default=None, min_length=1
    )
    on_error: Literal["retry", "drop-group", "abort"] = key(
        "After a failed call: make it again `retries` times, then drop the group; drop it at once; or end the run.",
        default="retry",
    )
    retries: int = key("How often a failed call is made again, where `on_error` is `retry`.", default=2, ge=0, le=100)
    retry_pause: float = key(
        "Seconds before the first retry; doubled before each further one, up to a minute.", default=1.0, ge=0, le=3600
    )
    max_dropped: float = key(
        "Largest share of an epoch's groups that may lack its score; above that, the run ends with a checkpoint.",
        default=0.25,
        ge=0,
        le=1,
    )
    timeout: float = key("Seconds one call may take before it counts as failed.", default=600.0, gt=0, le=86400)
    workers: int = key(
        "Calls made at the same time; more than one for rewards that wait for a server.", default=1, ge=1, le=256
    )
    micro_batch: int = key("Most samples in one call; a group reward gets its whole group.", default=64, ge=1)
    device: str | None = key(
        "Device of its networks, e.g. `cpu` or `cuda:1`; the model's device when absent.",
        default=None,
        pattern=r"(cpu|cuda|xpu|mps)(:\d+)?",
    )
    dtype: Precision | None = key("Number format of its networks; the run's precision when absent.", default=None)
    offload: bool = key("Keep its networks in main memory while nothing is scored.", default=False)
    spec: Any

    def applies_to(self, source: str) -> bool:
        """Whether it scores the samples of a source."""
        return self.sources is None or source in self.sources


@attrs.frozen(kw_only=True)
class Eval:
    """`[eval]`: fixed prompts and fixed noise, deterministic sampling, averaged weights."""

    every: int = key("Epochs between evaluations; before the first and after the last too. 0: never.", default=10, ge=0)
    steps: int | None = key("Denoising steps; as in `[sampling]` when absent.", default=None, ge=1, le=1000)
    size: Size | None = key("Pixels; as in `[sampling]` when absent.", default=None)
    seed: int = key("Seed of the evaluation noise.", default=0, ge=0)
    micro_batch: int | None = key("Samples at a time; as in `[sampling]` when absent.", default=None, ge=1)
    rewards: tuple[RewardEntry, ...] = ()
    """`[[eval.reward]]`; the training rewards when none is given."""


@attrs.frozen(kw_only=True)
class Spec:
    """A whole spec, structured and checked."""

    run: RunTable
    model: Component
    tuning: Lora | Full
    data: Data
    sampling: Sampling
    scheduler: Component
    trainer: Component
    rewards: tuple[RewardEntry, ...]
    optimizer: Optimizer
    memory: Memory
    eval: Eval
    checkpoint: Checkpoint
    track: Track
    plugins: tuple[str, ...] = ()

    @property
    def group(self) -> int:
        """How many samples a group has: a pair has two."""
        return 2 if self.trainer.spec.needs.source == "pairs" else self.sampling.group


COMPONENTS: Mapping[str, str] = {"model": "adapters", "scheduler": "schedulers", "trainer": "trainers"}
"""Tables that name a plugin, and of which kind."""


# --- and back ------------------------------------------------------------------------------------------------------


def unstructure(spec: Spec) -> dict[str, Any]:
    """The spec as plain values in the layout of a spec file, every default written out; loads to an equal `Spec`."""
    data: dict[str, Any] = {"plugins": list(spec.plugins)} if spec.plugins else {}
    for name in ("run", "data", "sampling", "optimizer", "memory", "checkpoint", "track"):
        data[name] = plain(attributes(spec)[name])
    for name in COMPONENTS:
        component = attributes(spec)[name]
        data[name] = {"name": component.name, **plain(component.spec)}
    data["lora" if isinstance(spec.tuning, Lora) else "full"] = plain(spec.tuning)
    data["reward"] = [_reward_data(entry) for entry in spec.rewards]
    if spec.eval != Eval():
        data["eval"] = {key: value for key, value in plain(spec.eval).items() if key != "rewards"}
    if spec.eval.rewards:
        data["eval"]["reward"] = [_reward_data(entry) for entry in spec.eval.rewards]
    return data


def _reward_data(entry: RewardEntry) -> dict[str, Any]:
    table = plain(entry)
    return {**{name: value for name, value in table.items() if name != "spec"}, **table["spec"]}
