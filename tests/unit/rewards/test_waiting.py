"""No value is read back from the device inside the sampling loop, so that a GPU's queue never runs dry.

On `meta`, which has shapes and no values, reading one raises.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.contracts.key import Size
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Conditions, Row, moved
from flowfactory.discovery.registry import Registry
from flowfactory.sampling.rollout import Noise, Trunks, rollout
from flowfactory_plugin_flux.flux import Flux
from flowfactory_plugin_qwen_image.qwen_image import QwenImage
from flowfactory_plugin_wan.wan import Wan
from torch import Tensor

SIZE, STEPS, META = Size(32, 32), 4, torch.device("meta")
STOCHASTIC, DETERMINISTIC = ("flow-sde", "dance-sde", "linear-sde", "cps"), ("ode", "dpm-solver", "unipc")


class OnMeta:
    """An adapter whose networks, and all that it is given, are on `meta`."""

    def __init__(self, kind: Any, model: str, folder: Path) -> None:
        kind.tiny(folder)
        spec = Registry().find("adapters", model).provides.spec
        self.adapter = kind(spec(path=str(folder), max_sequence_length=16))
        self.adapter.load(torch.device("cpu"), torch.float32)
        self.sigmas: Tensor = self.adapter.sigmas(STEPS, SIZE)
        self.conditions: Conditions = moved(self.adapter.encode([Row("a cat"), Row("a dog")]), META)
        shape = self.adapter.latent_shape(SIZE)
        start = Draws([(0,), (1,)]).normal(*shape)
        self.noise = Noise(start, Draws([(0,), (1,)]).normal(STEPS, *shape)).to(META)
        for network in self.adapter.networks().values():
            network.to(META)

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        v: Tensor = self.adapter.velocity(x, sigma, conditions, 1.0, SIZE)
        return v


@pytest.fixture(scope="module")
def on_meta(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnMeta]:
    return lambda kind, model: OnMeta(kind, model, tmp_path_factory.mktemp(model))


@pytest.fixture(scope="module")
def flux(on_meta: Callable[..., OnMeta]) -> OnMeta:
    return on_meta(Flux, "flux")


def sample(policy: Any, name: str, trunks: Trunks | None = None) -> Tensor:
    provided = Registry().find("schedulers", name).provides
    scheduler = Registry().target("schedulers", name)(provided.spec())
    steps = (1, 2) if name in STOCHASTIC else ()
    made = rollout(
        policy, scheduler, policy.sigmas, steps, policy.noise, policy.conditions, torch.bfloat16, trunks=trunks
    )
    return made.final


@pytest.mark.parametrize("scheduler", [*STOCHASTIC, *DETERMINISTIC])
def test_flux_samples_without_waiting(flux: OnMeta, scheduler: str) -> None:
    assert sample(flux, scheduler).device == META


def test_shared_trunks_do_not_wait_either(flux: OnMeta) -> None:
    assert sample(flux, "flow-sde", Trunks.by([0, 0])).device == META


@pytest.mark.parametrize(("kind", "model"), [(QwenImage, "qwen-image"), (Wan, "wan")])
def test_who_waits_is_known(on_meta: Callable[..., OnMeta], kind: Any, model: str) -> None:
    """Qwen-Image reads how long prompts are, Wan which expert a noise level is for: once in each velocity."""
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        sample(on_meta(kind, model), "ode")
