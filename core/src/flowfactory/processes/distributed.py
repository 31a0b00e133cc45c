"""The processes of a run, through accelerate. Nothing else knows how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flowfactory.contracts.key import Precision
from flowfactory.errors import FAILED, RunError, everywhere
from flowfactory.plan.plan import Plan
from flowfactory.processes import context, heap, launch, sharding
from flowfactory.processes.context import Team
from flowfactory.spec.tables import Memory

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

PATIENCE = timedelta(hours=1)
"""How long processes wait for each other: long enough for slow rewards, since a lost process is noticed otherwise."""

STOP = "flowfactory-stop"
"""Where a process leaves word that it was asked to stop, for those that wait elsewhere."""


class PeerLost(RunError):
    """This process has to stop because another one failed, and with the same exit code where that is known."""

    def __init__(self, why: str, code: int = FAILED) -> None:
        super().__init__(why)
        self.code = code


def numbered(device: torch.device | str) -> torch.device:
    """The device with its number, by which threads choose it and tensors compare it; `cuda` is the current one."""
    named = torch.device(device)
    if named.type == "cpu" or named.index is not None:
        return named
    return torch.device(named.type, torch.accelerator.current_device_index())


class Processes:
    """One process among `world`, with its device and arithmetic.

    Some make a team: they compute the same samples together, and count as one where samples are shared out, gathered
    and counted. Each is a team of its own unless it is said otherwise.

    Args:
        memory: how the processes divide weights and samples, where there are several.

    Raises:
        RunError: the device cannot compute in that precision.
    """

    def __init__(self, precision: Precision, memory: Memory | None = None) -> None:
        if precision == "fp16" and not torch.cuda.is_available():
            raise RunError('[run] precision = "fp16" needs a CUDA device; "bf16" and "fp32" run anywhere')
        memory = memory or Memory()
        # Without an accelerator, only `cpu=True` makes accelerate see that there are several processes.
        on_cpu = not torch.accelerator.is_available()
        if on_cpu:
            heap.keep()
        launch.settle()
        # cuDNN's attention, which torch prefers on some cards, has ended in illegal memory accesses and NaN gradients
        # there. Whoever wants it asks for it by `[memory] attention`.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self._mesh: DeviceMesh | None = None
        if memory.shard and self.world > 1:
            self._mesh = init_device_mesh(self.device.type, (self.world,))
        self.team = Team.of(self.rank, self.world, memory, self.device.type)

    @property
    def rank(self) -> int:
        """Number of this process, from 0; 0 is the main one."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return numbered(self.accelerator.device)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return bool(self.accelerator.is_main_process)

    @property
    def sharded(self) -> bool:
        """Whether weights are divided, so that every process has to call the networks as often as the others."""
        return self._mesh is not None

    @property
    def accompanied(self) -> bool:
        """Whether other processes call the networks together with this one: all of them, or those of its team."""
        return self.sharded or self.team.size > 1

    def divide(self, network: nn.Module, prepare: Callable[[nn.Module], None]) -> None:
        """`prepare` a network, part by part; divide its samples in teams, and its weights, if they are to be.

        Raises:
            RunError: it cannot be called by a team, or torch cannot divide one of its parameters.
        """
        try:
            self.team.divide(network)
        except RunError as error:
            self.refuse(str(error))
        if self._mesh is None:
            return prepare(network)
        try:
            sharding.divide(network, self._mesh, prepare)
        except (ValueError, NotImplementedError) as error:
            self.refuse(f"[memory] shard cannot divide {type(network).__name__}: {error}")

    def most(self, calls: int) -> int:
        """How often this process has to do what it would do `calls` times: where weights are divided, as any other."""
        return int(self.gather(torch.tensor([calls])).max()) if self.sharded else calls

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While a network is called: mixed-precision arithmetic, as `[run] precision` asks.

        Raises:
            Uneven: a team cannot divide its samples.
            PeerLost: another process has failed.
        """
        try:
            with self.accelerator.autocast(), together(), self.team.evenly():
                yield
        except context.Uneven as error:
            raise error if self.team.leads else PeerLost(str(error)) from error

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; scaled where float16 needs it."""
        with together():
            self.accelerator.backward(loss)

    @property
    def rescaling(self) -> bool:
        """Whether float16's loss scaling may still pass over a gradient that is not finite, and scale the next less."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def agree(self, plan: Plan) -> None:
        """Make sure that every process has the same plan.

        Raises:
            RunError: on the main process, if they differ; `PeerLost` on the others.
        """
        digests = self._of_all([plan.digest])
        different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        problem = ""
        if self.world != plan.world:
            problem = f"planned for {plan.world} processes, but there are {self.world}"
        elif different:
            problem = f"processes {different} read another spec, or other files, than process 0; nothing was run"
        if problem:
            self.refuse(problem)

    def go_on_unless(self, error: RunError | None) -> None:
        """End the run on every process if anything is wrong on any; all have to ask.

        Raises:
            RunError: `error`, on the first process that has one; `PeerLost` on the others.
        """
        codes = self._of_all([error.code if error else 0])
        teller = next((rank for rank, code in enumerate(codes) if code), None)
        if teller is not None:
            lost = PeerLost("another process has failed", codes[teller])
            raise everywhere(error if error and self.rank == teller else lost)

    def refuse(self, why: str, kind: type[RunError] = RunError) -> NoReturn:
        """End the run where all processes refuse together: the main one says why.

        Raises:
            RunError: of `kind`, on the main process; `PeerLost` on the others.
        """
        raise everywhere(kind(why) if self.main else PeerLost(why))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients over all processes, in one message. Those of divided weights have been, as they were made.

        Processes of a team have gradients of their own, each what follows from its share of their samples' tokens.

        A parameter that no process has a gradient for is left without, as in one process: the optimizer passes it by.
        """
        if self.world == 1 or self.sharded:
            return
        trained = [p for p in parameters if p.requires_grad]
        present = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        with together():
            total = self.accelerator.reduce(
                torch.cat([present, *(_gradient(p).flatten() for p in trained)]), reduction="sum"
            )
        anywhere, *parts = total.split([len(trained), *(p.numel() for p in trained)])
        for parameter, part, holders in zip(trained, parts, anywhere.tolist(), strict=True):
            if holders:
                parameter.grad = part.view_as(parameter)

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate equally shaped tensors of all teams, by number; members of a team have the same."""
        everyone = self._gathered(values).reshape(self.team.count, self.team.size, *values.shape)
        return everyone[:, 0].flatten(0, 1)

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """Concatenate short lists of small plain values of all teams, by number: those of who leads each."""
        return self._of_all(values if self.team.leads else [])

    def led(self, value: Any) -> Any:
        """A small plain value of who leads the team, for all of it."""
        return self.gather_objects([value])[self.team.number] if self.team.size > 1 else value

    def sum(self, count: int) -> int:
        """A number added up over all teams."""
        return int(self.gather(torch.tensor([count])).sum()) if self.world > 1 else count

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return bool(self._gathered(torch.tensor([flag])).any()) if self.world > 1 else flag

    def told(self, flag: bool) -> bool:
        """Whether any process has said yes so far. Unlike `any` it waits for nobody, and may be asked from a thread."""
        if self.world == 1:
            return flag
        store = torch.distributed.distributed_c10d._get_default_store()
        with together():
            if flag:
                store.set(STOP, "asked")
            return flag or bool(store.check([STOP]))

    def told_together(self, flag: bool) -> bool:
        """What `told` says, as one for all who call the networks together with this process; they ask together."""
        if self.sharded:
            return self.any(flag)
        heard = self.told(flag)
        with together():
            return self.team.any(heard, self.device)

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer, with accelerate's loss scaling around its steps where float16 needs that."""
        scaled: torch.optim.Optimizer = self.accelerator.prepare(optimizer) if self.accelerator.scaler else optimizer
        return scaled

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> Tensor:
        """Scale the gradient down to `norm` where it is longer; returns its length before."""
        with together():
            length: Tensor = self.accelerator.clip_grad_norm_(list(parameters), norm)
            return sharding.whole(length)

    def wait(self) -> None:
        """Go on when every process has come this far."""
        with together():
            self.accelerator.wait_for_everyone()

    def _gathered(self, values: Tensor) -> Tensor:
        """Concatenate equally shaped tensors of all processes, by rank."""
        with together():
            gathered: Tensor = self.accelerator.gather(values.to(self.device))
        return gathered.to(values.device)

    def _of_all(self, values: list[Any]) -> list[Any]:
        """Concatenate short lists of small plain values of all processes, by rank."""
        if self.world == 1:
            return values
        with together():
            return list(gather_object(values))


@contextmanager
def together() -> Iterator[None]:
    """What processes do together ends when one of them does; it, or who started it, says why.

    Raises:
        PeerLost: another process has failed.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise PeerLost("another process has failed") from error
        raise


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
