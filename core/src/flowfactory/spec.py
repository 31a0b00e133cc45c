"""What the user writes: one attrs class per table, each key declared once with its doc, bounds and choices.

Errors, the JSON Schema and the reference page all come from these declarations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NewType

import attrs

Location = NewType("Location", str)
"""A file or folder: absolute, relative to the spec that names it, `package:resource`, or (models only) a hub id."""

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""What may be part of a file name and of a metric's."""

Precision = Literal["fp32", "bf16", "fp16"]
Density = Literal["gaussian", "squared-error", "none"]
Calls = Literal["batch", "sample", "unknown"]
"""For which batches one velocity takes the same calls of each network, in the same order, whatever is in them: for
any "batch", for any single "sample", or "unknown". `[memory] shard` asks, since processes call a divided network
together. Of several networks that share the noise levels, only the one whose level it is need be called."""


@attrs.frozen
class Key:
    """What a key's declaration says beyond its type and default; stored in the attribute's metadata."""

    METADATA: ClassVar[str] = "flowfactory"

    doc: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None
    min_length: int | None = None
    pattern: str | None = None
    exists: bool = False

    def check(self, instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        """The attrs validator of this key.

        Raises:
            ValueError: saying what was expected, without naming the key (the caller knows its line).
        """
        if value is None:
            return
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"expected one of {', '.join(map(repr, self.choices))}, not {value!r}")
        if self.min_length is not None and len(value) < self.min_length:
            unit = "characters" if isinstance(value, str) else "entries"
            raise ValueError(f"expected {self.min_length} or more {unit}, not {len(value)}")
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"expected a string that matches {self.pattern}, not {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            self._check_number(number)

    def _check_number(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        bounds: tuple[tuple[str, float | None, Callable[[float, float], bool]], ...] = (
            ("at least", self.ge, lambda a, b: a >= b),
            ("greater than", self.gt, lambda a, b: a > b),
            ("at most", self.le, lambda a, b: a <= b),
            ("less than", self.lt, lambda a, b: a < b),
        )
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, not {value!r}")
        for words, bound, holds in bounds:
            if bound is not None and not holds(value, bound):
                raise ValueError(f"expected a number {words} {bound}, not {value!r}")


def key(
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] | None = None,
    min_length: int | None = None,
    pattern: str | None = None,
    exists: bool = False,
) -> Any:
    """Declare one key of a spec class.

    Args:
        doc: one sentence, with the unit where there is one.
        default: the value when the key is absent; without it the key is required.
        ge, gt, le, lt: bounds of a number, or of each number of a tuple.
        choices: the allowed values, when the type alone does not say.
        min_length: the least number of characters of a string or entries of a tuple.
        pattern: the regular expression a string must match as a whole.
        exists: a `Location` must be a file or folder here, never a hub id.
    """
    declared = Key(doc, ge, gt, le, lt, None if choices is None else tuple(choices), min_length, pattern, exists)
    return attrs.field(default=default, validator=declared.check, metadata={Key.METADATA: declared})


# --- what plugins extend -------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AdapterSpec:
    """Keys every `[model]` table takes.

    targets: module name endings that LoRA adapts by default; none: every linear layer of attention.
    """

    targets: ClassVar[tuple[str, ...]] = ()

    path: Location = key("Checkpoint: a hub id, a folder, or `package:resource`.")
    revision: str | None = key("Branch, tag or commit of a hub checkpoint.", default=None)

    @property
    def calls(self) -> Calls:
        """For which batches one velocity takes the same calls of the networks; see `Calls`."""
        return "unknown"

    def trains(self, part: str) -> bool:
        """Whether a model of the pipeline, by its name there, is one of the adapter's `networks`."""
        return part.startswith("transformer")


@attrs.frozen(kw_only=True)
class Needs:
    """What a trainer asks of core.

    trajectory: "final" keeps the last latents only; "steps" also the stochastic steps and their log-probabilities.
    rollout: the weights that sample, "current" or "old" (see `sets`).
    density: what `Scheduler.logprob` must be: "gaussian", "any" (a Gaussian or a surrogate), or "none" (unused).
    reference: whether `Policy.using("reference")` will be asked for.
    sets: further weight sets to keep in float32, moved only by the trainer itself.
    """

    trajectory: Literal["final", "steps"] = "final"
    rollout: Literal["current", "old"] = "current"
    density: Literal["gaussian", "any", "none"] = "none"
    reference: bool = False
    sets: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True)
class TrainerSpec:
    """Keys every `[trainer]` table takes.

    even_calls: whether `terms` and `loss` ask for as many velocities whatever is in the batch. `[memory] shard` asks.
    """

    even_calls: ClassVar[bool] = False

    aggregate: Literal["sum", "gdpo"] = key(
        "How several rewards become one advantage: weighted sum, or GDPO (each reward normalised in its group first).",
        default="sum",
    )
    std: Literal["group", "global"] = key(
        "Whose standard deviation divides a centred reward: its group's or the whole epoch's.", default="group"
    )

    @property
    def needs(self) -> Needs:
        """What core must provide; may depend on the keys."""
        return Needs()


@attrs.frozen(kw_only=True)
class Window:
    """Which steps of a trajectory are stochastic, and so trained. The last step never is."""

    rule: Literal["all", "list", "random", "subset", "progressive"] = key(
        "`all` but the last step; the given `list`; `random`: `size` neighbouring steps, drawn anew each epoch; "
        "`subset`: any `size` steps, drawn anew each epoch; `progressive`: `size` neighbouring steps that move on "
        "every few epochs, from noise to data.",
        default="all",
    )
    steps: tuple[int, ...] | None = key(
        "Step indices from 0: all of them (`list`), or those to draw from (`subset`).",
        default=None,
        ge=0,
        le=998,
        min_length=1,
    )
    size: int | None = key("Number of stochastic steps, for `random`, `subset` and `progressive`.", default=None, ge=1)
    range: tuple[int, int] | None = key(
        "First and last step the window may hold, both inclusive; all but the last step when absent.",
        default=None,
        ge=0,
        le=998,
    )
    every: int | None = key("`progressive`: epochs before the window moves on.", default=None, ge=1)
    stride: int | None = key("`progressive`: by how many steps it moves; 1 when absent.", default=None, ge=1)
    restart: bool | None = key("`progressive`: begin again after the last step, instead of staying.", default=None)
    pace: Literal["constant", "linear", "exponential"] | None = key(
        "`progressive`: how `every` shrinks on the way; `constant` when absent.", default=None
    )
    least: int | None = key("Pace `linear`: what `every` shrinks to at the end; 1 when absent.", default=None, ge=1)
    rate: float | None = key("Pace `exponential`: decay per step; 0.1 when absent.", default=None, gt=0)
    after: int | None = key("Pace `exponential`: the step it decays from; 13 when absent.", default=None, ge=0)


@attrs.frozen(kw_only=True)
class Times:
    """The noise levels a decoupled trainer trains at: several per sample, one in each of as many equal strata."""

    rule: Literal["uniform", "logit-normal", "discrete", "discrete-with-first", "discrete-without-first", "subset"] = (
        key(
            "`uniform` or `logit-normal` noise levels; levels of the sampling schedule: `discrete`, with the first one "
            "always (`discrete-with-first`) or never (`discrete-without-first`) among them; different ones (`subset`)."
        )
    )
    count: int | None = key("Noise levels per sample; 6, or all but one (`subset`), when absent.", default=None, ge=1)
    range: tuple[float, float] | None = key(
        "`uniform`, `logit-normal`: lowest and highest noise level; 0.01 and 1 when absent.", default=None, ge=0, le=1
    )
    shift: float | None = key(
        "`uniform`, `logit-normal`: moves levels towards noise, as a schedule's shift does; 1 when absent.",
        default=None,
        gt=0,
    )
    mean: float | None = key("`logit-normal`: mean of the logit before the shift; 0 when absent.", default=None)
    std: float | None = key("`logit-normal`: standard deviation of the logit; 1 when absent.", default=None, gt=0)
    fraction: float | None = key(
        "`discrete…`: which share of the schedule's steps to draw from, beginning at noise; 1 when absent.",
        default=None,
        gt=0,
        le=1,
    )

    def problems(self, steps: int) -> list[tuple[str, str]]:
        """What is wrong for schedules of `steps` steps: `(key, message)` pairs, none if all is sound."""
        continuous, discrete = self.rule in ("uniform", "logit-normal"), self.rule.startswith("discrete")
        normal = self.rule == "logit-normal"
        applies = {"range": continuous, "shift": continuous, "mean": normal, "std": normal, "fraction": discrete}
        found = [
            (name, f"has no meaning for rule {self.rule!r}")
            for name, meant in applies.items()
            if getattr(self, name) is not None and not meant
        ]
        if self.range is not None and self.range[0] >= self.range[1]:
            found.append(("range", f"expected [lowest, highest], not {list(self.range)}"))
        if self.rule == "subset" and (self.count or 1) > steps:
            found.append(("count", f"expected at most {steps}, the steps of a schedule, not {self.count}"))
        if discrete and int(steps * (self.fraction or 1)) < 1 + (self.rule != "discrete"):
            found.append(("fraction", f"too few of {steps} steps are left to draw from"))
        return found


@attrs.frozen(kw_only=True)
class Decay:
    """How slowly a weight set follows the current weights: 0 up to step `flat`, then `start` and `rate` more a step."""

    rate: float = key("Increase of the decay per optimizer step.", ge=0)
    limit: float = key("Largest decay.", ge=0, le=1)
    flat: int = key("Optimizer steps before it starts.", default=0, ge=0)
    start: float = key("The decay it starts at.", default=0.0, ge=0, le=1)

    def at(self, step: int) -> float:
        """The decay after `step` optimizer steps."""
        return min(self.start + self.rate * (step - self.flat), self.limit) if step >= self.flat else 0.0


@attrs.frozen(kw_only=True)
class DecoupledSpec(TrainerSpec):
    """Keys of the trainers that train at noise levels of their own, not at those the samples were made with."""

    times: Times = key("Noise levels to train at.", default=Times(rule="discrete", fraction=0.9))


@attrs.frozen(kw_only=True)
class SchedulerSpec:
    """Base of every `[scheduler]` table: a deterministic dynamics, which has no log-probability."""

    density: ClassVar[Density] = "none"


@attrs.frozen(kw_only=True)
class StochasticSpec(SchedulerSpec):
    """Keys every stochastic `[scheduler]` table takes."""

    density: ClassVar[Density] = "gaussian"

    window: Window = key("Which steps are stochastic.", default=Window())


@attrs.frozen
class NoKeys:
    """A reward's table that takes no keys of the reward's own."""


# --- core's own tables ---------------------------------------------------------------------------------------------


@attrs.frozen
class Size:
    """Pixels of one sample; `frames` is 1 for images."""

    height: int
    width: int
    frames: int = 1


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
class Lora:
    """`[lora]`: train low-rank adapters (peft); the reference policy costs no memory."""

    rank: int = key("Rank of each adapter.", default=32, ge=1)
    alpha: float = key("Adapter outputs are scaled by alpha / rank.", default=64.0, gt=0)
    targets: tuple[str, ...] | None = key(
        "Module name endings to adapt; the model's own choice when absent.", default=None, min_length=1
    )


@attrs.frozen(kw_only=True)
class Full:
    """`[full]`: train every weight of the networks."""


@attrs.frozen(kw_only=True)
class Data:
    """`[data]`"""

    prompts: Location = key("Training prompts: .txt (one a line), .jsonl or .csv.", exists=True)
    eval_prompts: Location | None = key("Held-out prompts for evaluation.", default=None, exists=True)


@attrs.frozen(kw_only=True)
class Sampling:
    """`[sampling]`"""

    size: Size = key("Pixels: a number (square), [height, width] or [height, width, frames].")
    steps: int = key("Denoising steps of one sample.", ge=1, le=1000)
    prompts: int = key("Prompts per epoch, over all processes.", ge=1, le=1_000_000)
    group: int = key("Samples per prompt; advantages compare them with each other.", ge=2)
    micro_batch: int = key("Samples that pass the network together.", default=8, ge=1)
    guidance: float = key("Guidance scale, embedded or classifier-free as the model has it.", default=1.0, ge=0)
    shared_noise: bool = key("Start all samples of a group from the same noise.", default=False)
    storage: Precision = key("Number format trajectories are kept in.", default="fp32")
    overlap: bool = key("Score finished groups while the next are sampled.", default=True)


@attrs.frozen(kw_only=True)
class Optimizer:
    """`[optimizer]`: AdamW."""

    lr: float = key("Learning rate.", gt=0)
    betas: tuple[float, float] = key("Decay of the first and second moments.", default=(0.9, 0.999), ge=0, lt=1)
    eps: float = key("Added to the root of the second moment.", default=1e-8, gt=0)
    weight_decay: float = key("Decoupled weight decay.", default=1e-4, ge=0)
    clip_norm: float = key("Largest norm of the whole gradient.", default=1.0, gt=0)
    bits: Literal[8, 32] = key("Of each moment; 8 needs `flowfactory[bitsandbytes]`.", default=32)
    updates: int = key("Optimizer steps per epoch; the epoch's groups are divided evenly among them.", default=1, ge=1)
    micro_batch: int = key("Samples that pass the network together, with gradients.", default=8, ge=1)
    lr_schedule: Literal["constant", "linear", "cosine"] = key(
        "How the learning rate falls to zero over the run, after the warm-up.", default="constant"
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
    offload: tuple[Literal["vae", "rewards", "trajectories"], ...] = key(
        "What is in main memory while it is not needed: the `vae`, which decodes; the networks of all `rewards`; "
        "the stored `trajectories`.",
        default=(),
    )
    shard: bool = key("Divide weights, gradients and optimizer state among the processes (FSDP2).", default=False)
    gradient_checkpointing: bool = key("Recompute activations in the backward pass.", default=False)
    compile: bool = key("Compile the blocks that the networks repeat, each kind once.", default=False)
    attention: str | None = key(
        "How attention is computed, by diffusers' name, e.g. `flash` or `_native_cudnn`; torch's way when absent.",
        default=None,
        min_length=1,
    )


@attrs.frozen(kw_only=True)
class Checkpoint:
    """`[checkpoint]`"""

    every: int = key("Epochs between checkpoints; the last epoch is always saved. 0: only the last.", default=10, ge=0)
    keep: int = key("How many of the latest checkpoints to keep.", default=2, ge=1)
    best: str = key(
        "Which evaluation's checkpoint to keep as well: that with the best `score`, the sum of the held-out rewards' "
        "means, each times its weight; with the best of one reward, e.g. `eval/ocr/mean`; or `none`. A new best is "
        "saved at once.",
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
    weight: float = key("Factor in the aggregation; 0 only watches.", default=1.0)
    on_error: Literal["retry", "drop-group", "abort"] = key(
        "After a failure: ask again `retries` times and then drop the group; drop it at once; or end the run.",
        default="retry",
    )
    retries: int = key("How often a failed call is made again, where `on_error` is `retry`.", default=2, ge=0)
    retry_pause: float = key("Seconds before the first retry; doubled before each further one.", default=1.0, ge=0)
    max_dropped: float = key(
        "Largest share of an epoch's groups that may be without its score; past it the run ends, with a checkpoint.",
        default=0.25,
        ge=0,
        le=1,
    )
    timeout: float = key("Seconds one call may take before it counts as failed.", default=600.0, gt=0)
    workers: int = key(
        "Calls made at the same time; more than one for rewards that wait for a server.", default=1, ge=1
    )
    micro_batch: int = key("Most samples of one call; a group reward gets its whole group.", default=64, ge=1)
    device: str | None = key(
        "Where its networks compute, e.g. `cpu` or `cuda:1`; where the model does when absent.",
        default=None,
        pattern=r"(cpu|cuda|xpu|mps)(:\d+)?",
    )
    dtype: Precision | None = key("Number format of its networks; the run's precision when absent.", default=None)
    offload: bool = key("Keep its networks in main memory while nothing is scored.", default=False)
    spec: Any


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
