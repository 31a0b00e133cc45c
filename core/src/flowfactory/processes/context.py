"""Teams of processes, among which the tokens of a sample are divided: diffusers' context parallelism.

Nothing else knows how.

A network is called as ever, by all processes of a team with the same samples. Each computes with its own share of their
tokens, for attention they exchange heads (Ulysses), and every one has the whole velocity in the end. Its gradients are
those of its own tokens, whatever the loss: added up over a team they are those of the samples, counted once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flowfactory.errors import RunError

UNEVEN = "must be divisible by mesh size"
"""What diffusers says of tokens that do not divide."""

OLDER = "`torch.distributed._functional_collectives.* is deprecated"
"""What torch says of names by which diffusers calls it."""

BESIDE = "diffusers.hooks.context_parallel"
"""Who warns of noise levels that are not divided since a sample has one for all of its tokens, as it should."""


class Uneven(RunError):
    """The tokens of a sample, or of its prompt, do not divide among those of a team."""


@attrs.frozen(eq=False)
class Team:
    """Processes that compute the same samples together.

    number: of this team, from 0. count: how many there are. leads: whether this process speaks for it.
    mesh: who belongs to it; none where each process is a team of its own.
    """

    number: int
    count: int
    leads: bool
    mesh: DeviceMesh | None

    @classmethod
    def of(cls, rank: int, world: int, size: int, device: str) -> Team:
        """That of process `rank` among `world`; processes of successive numbers make one."""
        if size == 1 or world == 1:
            return cls(rank, world, True, None)
        shape = (world // size, 1, size)
        mesh = init_device_mesh(device, shape, mesh_dim_names=("team", "ring", "ulysses"))  # diffusers' names
        return cls(rank // size, world // size, rank % size == 0, mesh["ring", "ulysses"])

    @property
    def size(self) -> int:
        """How many processes it has."""
        return self.mesh.size() if self.mesh else 1

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process of the team says yes; all have to ask."""
        if self.mesh is None:
            return flag
        said = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, self.mesh["ulysses"].get_group())
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
            what = f"[memory] ulysses = {self.size} does not divide the tokens of a sample, or those of its prompt"
            raise Uneven(f"{what}; choose another size, or leave it out") from error

    def divide(self, network: nn.Module) -> None:
        """Let the team compute a network together, in place; after LoRA, and before weights are divided.

        Raises:
            RunError: the network cannot be computed that way, or its attention.
        """
        if self.mesh is None:
            return
        from diffusers import ContextParallelConfig, ModelMixin  # takes seconds, and rewards elsewhere need none of it

        name = type(network).__name__
        if not isinstance(network, ModelMixin) or not divisible(network._cp_plan):
            raise RunError(f"[memory] ulysses: tokens of {name} cannot be divided among processes; leave it out")
        if (heads := network.config.get("num_attention_heads")) and heads % self.size:
            raise RunError(f"[memory] ulysses = {self.size} does not divide the {heads} attention heads of {name}")
        config = ContextParallelConfig(ulysses_degree=self.size, mesh=self.mesh)
        logging.getLogger(BESIDE).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", OLDER, FutureWarning)
        try:
            _enable(network, config, self.mesh)
        except ValueError as error:
            raise RunError(f"[memory] ulysses: {error}") from error


def divisible(plan: Mapping[str, Any] | None) -> bool:
    """Whether, by diffusers' plan of a network, its tokens are divided without masks, and gathered only at its end.

    What is computed between two gatherings has the whole gradient in every process, and sums would count it again.
    Masks of all heads do not fit the heads of one process.
    """
    if plan is None:
        return False
    split = [name for part in plan.values() if isinstance(part, Mapping) for name in part]
    gathered = [name for name, part in plan.items() if not isinstance(part, Mapping)]
    return not any("mask" in str(name) for name in split) and not any("." in name for name in gathered)


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
