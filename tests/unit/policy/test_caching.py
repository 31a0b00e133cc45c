"""Blocks that are left out while samples are made, and computed again afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.caching import BlockCache
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.spec.tables import Full
from flowfactory_plugin_flux.flux import Flux
from torch import Tensor, nn

SIZE = Size(32, 32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> PipelineAdapter[PipelineSpec]:
    path = Flux.tiny(tmp_path_factory.mktemp("flux"))
    adapter = PipelineAdapter(PipelineSpec(path=Location(str(path)), max_sequence_length=16))
    adapter.load(torch.device("cpu"), torch.float32)
    return adapter


@pytest.fixture
def policy(adapter: PipelineAdapter[PipelineSpec]) -> Iterator[ModelPolicy]:
    """One that skips all it may, since everything changes by less than the whole."""
    processes, weights = Processes("fp32"), Weights(adapter.networks(), Full(), [], [], 0)
    cache = BlockCache(adapter.networks(), 0.99)
    cache.check()
    yield ModelPolicy(adapter, weights, processes, torch.float32, 4.0, SIZE, cache=cache)
    AcceleratorState._reset_state(True)


@torch.no_grad()
def passes(policy: ModelPolicy, conditions: Conditions, samples: int = 2) -> list[Tensor]:
    """Three, at falling noise levels."""
    x = torch.randn(2, *policy.latent_shape(), generator=torch.Generator().manual_seed(0))[:samples]
    own = {name: tensor[:samples] for name, tensor in conditions.items()}
    return [policy.velocity(x, torch.full((samples,), level), own) for level in (0.9, 0.89, 0.88)]


@torch.no_grad()
def test_blocks_are_left_out_while_samples_are_made_and_only_then(
    adapter: PipelineAdapter[PipelineSpec], policy: ModelPolicy
) -> None:
    conditions = adapter.encode([Row("a cat"), Row("a dog")])
    passes(policy, conditions)  # the pipeline is asked what it does, once
    calls: list[nn.Module] = []
    last = adapter.networks()["transformer"].get_submodule("single_transformer_blocks")[-1]  # type: ignore[index]
    hook = last.attn.register_forward_hook(lambda module, *_: calls.append(module))
    exact = passes(policy, conditions)
    every = len(calls)
    assert every == 3
    for _ in range(2):  # nothing is remembered from one micro-batch to the next
        calls.clear()
        with policy.sampling("current"):
            skipped = passes(policy, conditions)
        assert len(calls) == every // 3
        assert torch.equal(skipped[0], exact[0])
        assert not torch.equal(skipped[1], exact[1])
    calls.clear()
    with policy.sampling("current"):
        passes(policy, conditions)
        passes(policy, conditions, samples=1)  # of other samples, which are compared with none of those
    assert len(calls) == 2 * every // 3
    calls.clear()
    with policy.sampling("current", exactly=True):
        assert all(map(torch.equal, passes(policy, conditions), exact))
    assert all(map(torch.equal, passes(policy, conditions), exact))
    assert len(calls) == 2 * every
    hook.remove()


def test_networks_without_such_a_cache_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"first_block_cache: `net`, a Linear, takes none of diffusers' caches"):
        BlockCache({"net": nn.Linear(2, 2)}, 0.1).check()
