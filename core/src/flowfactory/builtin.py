"""What core itself contributes, through the same hooks as everyone else: sampling dynamics. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from flowfactory.hooks import Provides, hookimpl
from flowfactory.spec import SchedulerSpec, StochasticSpec, key


@attrs.frozen(kw_only=True)
class FlowSDESpec(StochasticSpec):
    """Flow-GRPO's stochastic sampler; keeps the model's marginals."""

    eta: float = key("Noise: the first step's standard deviation; 0.7 for SD3.5, 0.9 for FLUX.", default=0.7, gt=0)


@attrs.frozen(kw_only=True)
class ODESpec(SchedulerSpec):
    """Euler steps of the probability-flow ODE."""


@hookimpl
def flowfactory_schedulers() -> Iterable[Provides]:
    home = "flowfactory.dynamics"
    yield Provides("flow-sde", FlowSDESpec, f"{home}.flow_sde:FlowSDE", "Flow-GRPO's SDE; keeps the marginals.")
    yield Provides("ode", ODESpec, f"{home}.ode:ODE", "Euler steps: deterministic, for decoupled trainers.")
