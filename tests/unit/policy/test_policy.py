"""What trainers and the rollout ask of the policy, answered by a real pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from accelerate.state import AcceleratorState
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.policy import FORWARD, TRAINED, ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.spec.tables import Full
from torch import Tensor

SIZE = Size(32, 32)

Maker = Callable[[float], ModelPolicy]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> PipelineAdapter[PipelineSpec]:
    path = PipelineAdapter.tiny(tmp_path_factory.mktemp("sd3"))
    adapter = PipelineAdapter(PipelineSpec(path=Location(str(path)), max_sequence_length=16))
    adapter.load(torch.device("cpu"), torch.float32)
    return adapter


@pytest.fixture(scope="module")
def conditions(adapter: PipelineAdapter[PipelineSpec]) -> Mapping[str, Tensor]:
    return adapter.encode([Row("a cat"), Row("a dog")])


@pytest.fixture
def at(adapter: PipelineAdapter[PipelineSpec]) -> Iterator[Maker]:
    """The policy at some guidance."""
    processes, weights = Processes("fp32"), Weights(adapter.networks(), Full(), [], [], 0)
    yield lambda guidance: ModelPolicy(adapter, weights, processes, torch.float32, guidance, SIZE)
    AcceleratorState._reset_state(True)


def test_a_trainer_may_ask_for_another_guidance(at: Maker, conditions: Mapping[str, Tensor]) -> None:
    x, sigma = torch.randn(2, *at(1.0).latent_shape()), torch.full((2,), 0.5)
    with torch.no_grad():
        plain, guided = (at(guidance).velocity(x, sigma, conditions) for guidance in (1.0, 4.0))
        assert not torch.equal(plain, guided)
        assert torch.equal(at(1.0).velocity(x, sigma, conditions, guidance=4.0), guided)
        assert torch.equal(at(4.0).velocity(x, sigma, conditions, guidance=1.0), plain)


def test_samples_are_counted_by_whether_a_gradient_follows(at: Maker, conditions: Mapping[str, Tensor]) -> None:
    policy, sigma = at(1.0), torch.full((2,), 0.5)
    x = torch.randn(2, *policy.latent_shape())
    policy.velocity(x, sigma, conditions)
    with torch.no_grad():
        policy.velocity(x, sigma, conditions, guidance=4.0)
        policy.velocity(x, sigma, conditions)
    assert policy.read_counts() == {FORWARD: 4.0, TRAINED: 2.0}
    assert policy.read_counts() == {FORWARD: 0.0, TRAINED: 0.0}


def test_media_have_a_gradient_where_latents_have_one(at: Maker, conditions: Mapping[str, Tensor]) -> None:
    """The same media, and the same gradient where the decoder computes again, which it does once for each sample."""
    policy = at(1.0)
    x = torch.randn(2, *policy.latent_shape())
    plain = policy.decode(x)
    assert not plain.requires_grad
    slopes = []
    for recompute in (False, True):
        given, own = x.clone().requires_grad_(), vars(policy)
        own["_recompute"] = recompute
        media = policy.decode(given)
        torch.testing.assert_close(media, plain)
        media.square().mean().backward()
        assert given.grad is not None
        slopes.append(given.grad)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert (slopes[0].flatten(1).norm(dim=1) > 0).all()


def test_media_stay_on_the_device_where_they_are_to(at: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = at(1.0)
    x = torch.randn(2, *policy.latent_shape())
    assert torch.equal(policy.decode(x, stay=True), policy.decode(x))
    monkeypatch.setattr(policy, "_decoded", lambda x: x.to("meta"))
    assert policy.decode(x, stay=True).device.type == "meta"
    with pytest.raises(NotImplementedError, match="meta"):
        policy.decode(x)  # on its way to main memory


def test_the_gradient_of_media_is_what_a_small_step_changes(at: Maker, conditions: Mapping[str, Tensor]) -> None:
    policy = at(1.0)
    x = torch.randn(1, *policy.latent_shape())
    given = x.clone().requires_grad_()
    policy.decode(given).mean().backward()
    assert given.grad is not None
    step = 3e-3 * given.grad / given.grad.square().mean().sqrt()
    ahead, back = (float(policy.decode(x + sign * step).double().mean()) for sign in (1, -1))
    assert (ahead - back) / 2 == pytest.approx(float((given.grad * step).sum()), rel=0.02)


def test_without_rewards_nobody_can_be_asked(at: Maker) -> None:
    with pytest.raises(TypeError, match="no rewards are loaded"):
        at(1.0).reward(torch.zeros(1, 3, 32, 32), [Row("a cat")])
