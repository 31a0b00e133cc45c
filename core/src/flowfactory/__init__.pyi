"""The public names of flowfactory: all that plugins import, beside `flowfactory.testing` and `flowfactory.models.tiny`.

This stub is the list: the package loads each name from where it says, on first use.
"""

# Every hook module: what there is, under which name, and the keys its table takes.
from .contracts.hooks import Provides as Provides, hookimpl as hookimpl
from .contracts.key import Function as Function, Location as Location, Precision as Precision, Size as Size, key as key
from .contracts.specs import NoKeys as NoKeys

# Adapters: a model family as a velocity field.
from .builtin import PipelineSpec as PipelineSpec
from .contracts.adapter import Adapter as Adapter
from .contracts.key import Calls as Calls
from .contracts.specs import AdapterSpec as AdapterSpec
from .contracts.types import Conditions as Conditions, Cut as Cut, Row as Row
from .models.pipeline import PipelineAdapter as PipelineAdapter
from .models.recording import flatten as flatten, lengths as lengths, together as together
from .models.tap import IMAGE as IMAGE

# Schedulers: a sampling dynamics.
from .contracts.key import Density as Density
from .contracts.scheduler import (
    Field as Field,
    Moments as Moments,
    NoisyScheduler as NoisyScheduler,
    Scheduler as Scheduler,
    State as State,
    StochasticScheduler as StochasticScheduler,
    euler as euler,
    like_latents as like_latents,
    per_sample_mean as per_sample_mean,
)
from .contracts.specs import SchedulerSpec as SchedulerSpec, StochasticSpec as StochasticSpec, Window as Window

# Trainers: an algorithm.
from .contracts.seeds import Draws as Draws
from .contracts.specs import (
    Branches as Branches,
    Decay as Decay,
    DecoupledSpec as DecoupledSpec,
    Needs as Needs,
    Role as Role,
    Times as Times,
    TrainerSpec as TrainerSpec,
)
from .contracts.trainer import Policy as Policy, Trainer as Trainer
from .rewards.advantages import Scores as Scores
from .contracts.types import Batch as Batch, Lineage as Lineage, Loss as Loss, Rollout as Rollout, Update as Update
from .losses.clipping import (
    ClippedTerm as ClippedTerm,
    Old as Old,
    clipped as clipped,
    clipped_loss as clipped_loss,
    clipped_terms as clipped_terms,
    divergence as divergence,
    old_logprob as old_logprob,
    old_mean as old_mean,
    ratio_metrics as ratio_metrics,
    reference_velocity as reference_velocity,
    replayed as replayed,
)
from .losses.specs import ClippedSpec as ClippedSpec, RatioSpec as RatioSpec
from .losses.groups import averaging as averaging, over_groups as over_groups
from .losses.times import (
    levels_and_noise as levels_and_noise,
    noise_levels as noise_levels,
    noised as noised,
    velocities as velocities,
)
from .losses.transition import Transition as Transition, field_of as field_of

# Rewards: a number for a sample.
from .contracts.reward import (
    DifferentiableReward as DifferentiableReward,
    GroupReward as GroupReward,
    Reward as Reward,
    Score as Score,
    Shared as Shared,
)
from .contracts.specs import DifferentiableSpec as DifferentiableSpec
from .rewards.asking import Composite as Composite
from .rewards.secrets import SecretError as SecretError, secret as secret
from .rewards.server import Server as Server, ServerError as ServerError, Unavailable as Unavailable
from .contracts.types import Sample as Sample
from .rewards.retry import retried as retried
from .runs.media import some_frames as some_frames, to_bytes as to_bytes, to_image as to_image

# Observers, trackers and commands: a run as they see it, rewards outside one, and the command line as a function.
from .cli.main import main as main
from .contracts.hooks import Plan as Plan, Run as Run, Tracker as Tracker
from .errors import RunError as RunError, shown as shown
from .metrics.display import Display as Display, Phase as Phase
from .rewards.asking import Asked as Asked, RewardError as RewardError
from .rewards.standalone import open_rewards as open_rewards
from .runs.files import see_writable as see_writable, write_whole as write_whole
from .runs.history import History as History, Shot as Shot, read_runs as read_runs
from .data.store import user_folder as user_folder
from .spec.structure import read_spec as read_spec
from .spec.tables import Spec as Spec
