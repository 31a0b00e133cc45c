"""Teams of processes, among which the tokens of a sample are divided: diffusers' context parallelism.

Nothing else knows how.

A network is called as ever, by all processes of a team with the same samples. Each computes with its own share of their
tokens; for attention they exchange tokens for heads (Ulysses), or keys and values go round (ring attention), and every
one has the whole velocity in the end. Its gradients are those of its own tokens, whatever the loss: added up over a
team they are those of the samples, counted once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.functional import pad

from flowfactory.errors import RunError
from flowfactory.spec.rules.teams import teams_of, told
from flowfactory.spec.tables import Memory

WAYS = ("ring", "ulysses")
"""How a team divides what attention needs, under diffusers' names."""

UNEVEN = "must be divisible by mesh size"
"""What diffusers says of tokens that do not divide."""

OLDER = "`torch.distributed._functional_collectives.* is deprecated"
"""What torch says of names by which diffusers calls it."""

TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
"""How a network is given prompts of lengths of their own. The mask knows no heads, and diffusers gathers it again."""

BESIDE = "diffusers.hooks.context_parallel"
"""Who warns of noise levels that are not divided since a sample has one for all of its tokens, as it should."""


class Uneven(RunError):
    """The tokens of a sample, or of its prompt, do not divide among those of a team."""


@attrs.frozen(eq=False)
class Team:
    """Processes that compute the same samples together.

    number: of this team, from 0. count: how many there are. leads: whether this process speaks for it.
    mesh: who belongs to it; none where each process is a team of its own. asked: the keys that say how many it has.
    """

    number: int
    count: int
    leads: bool
    mesh: DeviceMesh | None
    asked: str = ""

    @classmethod
    def of(cls, rank: int, world: int, memory: Memory, device: str) -> Team:
        """That of process `rank` among `world`; processes of successive numbers make one."""
        count = teams_of(world, memory)
        if count == world:
            return cls(rank, world, True, None)
        size, shape = world // count, (count, memory.ring, memory.ulysses)
        mesh = init_device_mesh(device, shape, mesh_dim_names=("team", *WAYS))
        return cls(rank // size, count, rank % size == 0, mesh[WAYS], told(memory))

    @property
    def size(self) -> int:
        """How many processes it has."""
        return self.mesh.size() if self.mesh else 1

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process of the team says yes; all have to ask."""
        if self.mesh is None:
            return flag
        said = torch.tensor(float(flag), device=device)
        for way in WAYS:
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, self.mesh[way].get_group())
        return bool(said)

    @contextmanager
    def evenly(self) -> Iterator[None]:
        """While a network is called.

        Raises:
            Uneven: the team cannot divide its samples.
        """
        try:
            yield
        except AssertionError as error:
            if UNEVEN not in str(error):
                raise
            what = f"{self.asked} does not divide the tokens of a sample, or those of its prompt"
            raise Uneven(f"{what}; choose another size, or leave it out") from error

    def divide(self, network: nn.Module) -> None:
        """Let the team compute a network together, in place; after LoRA, and before weights are divided.

        Raises:
            RunError: the network cannot be computed that way, or its attention.
        """
        if self.mesh is None:
            return
        from diffusers import ContextParallelConfig, ModelMixin  # takes seconds, and rewards elsewhere need none of it

        name, (ring, ulysses) = type(network).__name__, self.mesh.shape
        if not isinstance(network, ModelMixin) or not divisible(network._cp_plan):
            raise RunError(f"{self.asked}: tokens of {name} cannot be divided among processes; leave it out")
        masked = MASK in _split(network._cp_plan)
        if masked and ring > 1:
            raise RunError(
                f"{self.asked}: prompts of {name} have masks, which no ring divides; leave out [memory] ring"
            )
        if (heads := network.config.get("num_attention_heads")) and heads % ulysses:
            raise RunError(f"[memory] ulysses = {ulysses} does not divide the {heads} attention heads of {name}")
        config = ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses, mesh=self.mesh)
        logging.getLogger(BESIDE).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", OLDER, FutureWarning)
        if ring > 1:
            _look_once()
        try:
            _enable(network, config, self.mesh)
        except ValueError as error:
            raise RunError(f"{self.asked}: {error}") from error
        if masked:
            network.register_forward_pre_hook(_padding(self.size), with_kwargs=True)


def divisible(plan: Mapping[str, Any] | None) -> bool:
    """Whether, by diffusers' plan of a network, its tokens are divided and gathered only at its end.

    What is computed between two gatherings has the whole gradient in every process, and sums would count it again.
    Masks of all heads do not fit the heads of one process.
    """
    if plan is None:
        return False
    gathered = [name for name, part in plan.items() if not isinstance(part, Mapping)]
    masks = [name for name in _split(plan) if "mask" in str(name) and name != MASK]
    return not masks and not any("." in name for name in gathered)


def _split(plan: Mapping[str, Any]) -> list[Any]:
    """What is divided before a part of a network computes."""
    return [name for part in plan.values() if isinstance(part, Mapping) for name in part]


def _padding(
    size: int,
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """What makes the prompts that a network is called with as long as `size` processes can divide, under their mask."""

    def padded(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        text, mask = named[TEXT], named.get(MASK)
        if lacking := -text.shape[1] % size:
            mask = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
            named = {**named, TEXT: pad(text, (0, 0, 0, lacking)), MASK: pad(mask, (0, lacking))}
        return args, named

    return padded


class Once:
    """What a backward pass remembers of its forward pass, whose tensors are asked for once."""

    def __init__(self, remembered: Any) -> None:
        self._remembered, self.saved_tensors = remembered, remembered.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remembered, name)


def _look_once() -> None:
    """Let diffusers' ring ask once for what it computes again: gradient checkpointing gives it once, and a ring asks in
    each of its rounds."""
    from diffusers.models.attention_dispatch import TemplatedRingAttention

    backward = TemplatedRingAttention.backward
    if backward.__module__ != __name__:

        def once(remembered: Any, *gradients: Any) -> Any:
            return backward(Once(remembered), *gradients)

        TemplatedRingAttention.backward = staticmethod(once)


def _enable(network: Any, config: Any, mesh: DeviceMesh) -> None:
    """`enable_parallelism`, which on a machine without an accelerator divides by how many there are."""
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig

    if torch.accelerator.is_available():
        network.enable_parallelism(config=config)
        return
    whole = ParallelConfig(context_parallel_config=config)
    whole.setup(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"), mesh=mesh)
    network._parallel_config = whole
    for processor in network.attn_processors.values():
        processor._parallel_config = whole
    apply_context_parallel(network, config, network._cp_plan)
