"""The spec classes that plugins extend: one attrs class per kind of table, each key declared once. Imports no torch.

Errors, the JSON Schema and the reference page all come from these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs

from flowfactory.contracts.key import Calls, Density, Location, key


@attrs.frozen(kw_only=True)
class AdapterSpec:
    """Keys every `[model]` table takes.

    targets: module name endings that LoRA adapts by default; none: every linear layer of attention.
    pipelines: class names of the diffusers pipelines it drives; none: any, or not known.
    makes: "image" or "video"; "unknown" where it depends on the checkpoint.
    patch: how many latent pixels, along a side, the pipeline joins into one token before the network gets them.
    images: how many condition images each row has to have; `None`: any number.
    """

    targets: ClassVar[tuple[str, ...]] = ()
    pipelines: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[Literal["image", "video", "unknown"]] = "unknown"
    patch: ClassVar[int] = 1
    images: ClassVar[int | None] = None

    path: Location = key("Checkpoint: a hub id, a folder, or `package:resource`.")
    revision: str | None = key("Branch, tag or commit of a hub checkpoint.", default=None)

    @property
    def calls(self) -> Calls:
        """For which batches one velocity makes the same calls of the networks; see `Calls`."""
        return "unknown"

    def packages(self) -> Mapping[str, str]:
        """Further packages that these keys or this checkpoint need: by module, what to install."""
        return {}

    def trains(self, part: str) -> bool:
        """Whether a model of the pipeline, by its name there, is one of the adapter's `networks`."""
        return part.startswith("transformer")


@attrs.frozen
class Branches:
    """How a trajectory divides, at stochastic steps, into several branches with noise of their own.

    width: into how many. at: at which of these steps; `None`: at every one.
    kind: "fan": a trajectory without noise continues, and the branches that leave it get no further noise. "tree":
        there is noise at every stochastic step, and branches divide again.
    """

    width: int
    at: tuple[int, ...] | None = None
    kind: Literal["fan", "tree"] = "fan"


@attrs.frozen(kw_only=True)
class Role:
    """A copy of the trained weights that is trained too, by its own optimizer with the keys of `[optimizer]`.

    steps: its optimizer steps in an update, each on all samples, before the step of the trained weights.
    lr: its learning rate, as a multiple of the trained weights'.
    """

    steps: int = 1
    lr: float = 1.0


@attrs.frozen(kw_only=True)
class Needs:
    """What a trainer needs from core.

    source: where the latents of an epoch come from: "rollouts"; or encoded from the files that the rows name: "media"
        (one sample a row) or "pairs" (a group of two, the chosen and then the rejected, advantages 1 and -1).
    scores: whether samples are scored and compared. If not, no reward is needed and every advantage is 0.
    gradient: through how many velocities, one after the other, the loss follows the rewards' own gradients
        (`Policy.decode`, `Policy.reward`); 0: it does not. Otherwise every reward that counts must have one.
    trajectory: "final" keeps the last latents only; "steps" also the stochastic steps and their log-probabilities;
        "states" the latents before and after every step, stochastic or not.
    old: what later updates use of each sampled stochastic step: its "logprobs", its "means" too, or it is "replayed".
    rollout: the weights that sample: "current", or one of `sets`.
    looks: what is scored besides the samples: the state before each stochastic step and the state after the last one,
        either "completed" without further noise or "estimated", by `x - sigma v`. See `Scores`.
    branches: how trajectories divide. Then their ends are scored, and one step of each branch is trained.
    density: what `Scheduler.logprob` must be: "gaussian", "any" (a Gaussian or a surrogate), or "none" (unused).
    batch: what a micro-batch never divides: a sample, or all usable samples of a group. A loss of groups is their mean.
    draws: which random streams the trainer draws from: one for each "sample", or one for all samples of a "group".
    reference: whether the trainer calls `Policy.using("reference")`.
    sets: further weight sets to keep in float32; only the trainer itself changes them.
    roles: further weights to train, by name. In every update each has a turn, in order, and then "current";
        `Batch.role` names it. `terms` and `loss` are called for each step, with the weights of the role in use.
    loaded: weight sets read from elsewhere, by name: a LoRA or a checkpoint of the model. They never change.
    columns: columns to read of each row, with the allowed values, one or a list; without one, its source's name counts.
    """

    source: Literal["rollouts", "media", "pairs"] = "rollouts"
    scores: bool = True
    gradient: int = 0
    trajectory: Literal["final", "steps", "states"] = "final"
    old: Literal["logprobs", "means", "replayed"] = "logprobs"
    looks: Literal["none", "completed", "estimated"] = "none"
    branches: Branches | None = None
    rollout: str = "current"
    density: Literal["gaussian", "any", "none"] = "none"
    batch: Literal["samples", "groups"] = "samples"
    draws: Literal["sample", "group"] = "sample"
    reference: bool = False
    sets: frozenset[str] = frozenset()
    roles: Mapping[str, Role] = attrs.field(factory=dict)
    loaded: Mapping[str, Location] = attrs.field(factory=dict)
    columns: Mapping[str, frozenset[str]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class TrainerSpec:
    """Keys every `[trainer]` table takes.

    even_calls: whether `terms` and `loss` compute equally many velocities for every batch; `[memory] shard` needs this.
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

    def learned(self, steps: int) -> range:
        """Which of `steps` deterministic steps it is trained at; here: any. The last are those nearest to the data."""
        return range(steps)

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int] | None:
        """How many velocities a turn computes for a group of samples, or branches: without a gradient, and with one.

        trained: how many stochastic steps of each are trained. steps: all of its steps. `None`: not known."""
        return None


@attrs.frozen(kw_only=True)
class Window:
    """Which steps of a trajectory are stochastic; only those are trained. The last step never is."""

    rule: Literal["all", "list", "random", "subset", "progressive"] = key(
        "`all` but the last step; the given `list`; `random`: `size` neighbouring steps, drawn again each epoch; "
        "`subset`: any `size` steps, drawn again each epoch; `progressive`: `size` neighbouring steps that move on "
        "after some epochs, from noise to data.",
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
        "First and last step that the window may contain, both inclusive; all but the last step when absent.",
        default=None,
        ge=0,
        le=998,
    )
    per: Literal["epoch", "prompt"] | None = key(
        "`random`, `subset`: whether they are drawn once an epoch, or for each prompt of it; `epoch` when absent.",
        default=None,
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
    """The noise levels a decoupled trainer trains at: several per sample, each drawn in one of equal strata."""

    rule: Literal[
        "uniform", "logit-normal", "mode", "discrete", "discrete-with-first", "discrete-without-first", "subset"
    ] = key(
        "`uniform`, `logit-normal` or `mode` noise levels; levels of the sampling schedule: `discrete`, with the first "
        "one always (`discrete-with-first`) or never (`discrete-without-first`) among them; all different (`subset`)."
    )
    count: int | None = key("Noise levels per sample; 6, or all but one (`subset`), when absent.", default=None, ge=1)
    range: tuple[float, float] | None = key(
        "`uniform`, `logit-normal`: lowest and highest noise level; 0.01 and 1 when absent.", default=None, ge=0, le=1
    )
    shift: float | None = key(
        "`uniform`, `logit-normal`, `mode`: moves levels towards noise, as a schedule's shift does; 1 when absent.",
        default=None,
        gt=0,
    )
    mean: float | None = key("`logit-normal`: mean of the logit before the shift; 0 when absent.", default=None)
    std: float | None = key("`logit-normal`: standard deviation of the logit; 1 when absent.", default=None, gt=0)
    peak: float | None = key(
        "`mode`: how much more often than others the middle levels are drawn; 1.29 when absent, 0 is `uniform`.",
        default=None,
        ge=-1,
        le=1.75,
    )
    table: int | None = key(
        "`uniform`, `logit-normal`, `mode`: only levels of a table with this many, evenly spaced before the shift; "
        "pretraining scripts have 1000. Any level when absent.",
        default=None,
        ge=1,
    )
    fraction: float | None = key(
        "`discrete…`: the share of the schedule's steps to draw from, counted from noise; 1 when absent.",
        default=None,
        gt=0,
        le=1,
    )

    def drawn(self, steps: int) -> int:
        """How many levels a sample has, where its trajectory has `steps` steps."""
        return self.count or (max(1, steps - 1) if self.rule == "subset" else 6)


@attrs.frozen(kw_only=True)
class Decay:
    """How a weight set follows the current ones: its decay is 0 before step `flat`, then `start`, rising by `rate`."""

    rate: float = key("Increase of the decay per optimizer step.", ge=0)
    limit: float = key("Largest decay.", ge=0, le=1)
    flat: int = key("Optimizer steps before it starts.", default=0, ge=0)
    start: float = key("The decay it starts at; at most `limit`.", default=0.0, ge=0, le=1)

    def at(self, step: int) -> float:
        """The decay after `step` optimizer steps."""
        return min(self.start + self.rate * (step - self.flat), self.limit) if step >= self.flat else 0.0


@attrs.frozen(kw_only=True)
class DecoupledSpec(TrainerSpec):
    """Keys of the trainers that train at other noise levels than those the samples were made with."""

    times: Times = key("Noise levels to train at.", default=Times(rule="discrete", fraction=0.9))


@attrs.frozen(kw_only=True)
class SchedulerSpec:
    """Base of every `[scheduler]` table: a deterministic dynamics, which has no log-probability."""

    density: ClassVar[Density] = "none"

    def calls(self, steps: int) -> int:
        """How many velocities the last `steps` steps of a trajectory need; see `Scheduler.look`."""
        return steps


@attrs.frozen(kw_only=True)
class StochasticSpec(SchedulerSpec):
    """Keys every stochastic `[scheduler]` table takes. With the `density` "none" it is for a `NoisyScheduler`."""

    density: ClassVar[Density] = "gaussian"

    window: Window = key("Which steps are stochastic.", default=Window())


@attrs.frozen(kw_only=True)
class DifferentiableSpec:
    """Base of the `[[reward]]` tables whose reward is a `DifferentiableReward`."""


@attrs.frozen
class NoKeys:
    """A reward's table that takes no keys of the reward's own."""
