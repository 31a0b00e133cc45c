"""What `[memory] offload` names is on the device only while it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.spec.tables import Full
from flowfactory_plugin_wan import WanI2VSpec
from flowfactory_plugin_wan.i2v import WanI2V
from more_families import EVERY, small_sizes
from PIL import Image

CPU, META = torch.device("cpu"), torch.device("meta")
SIZE = Size(32, 32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> PipelineAdapter[PipelineSpec]:
    path = PipelineAdapter.tiny(tmp_path_factory.mktemp("sd3"))
    adapter = PipelineAdapter(PipelineSpec(path=Location(str(path)), max_sequence_length=16))
    adapter.load(CPU, torch.float32)
    adapter.encode([Row("a cat")])
    adapter.drop_encoders()
    adapter.latent_shape(SIZE)
    return adapter


@pytest.fixture
def processes() -> Iterator[Processes]:
    from accelerate.state import AcceleratorState

    yield Processes("fp32")
    AcceleratorState._reset_state(True)


@pytest.fixture
def small_condition_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes(monkeypatch)


class Watched(PipelineAdapter[PipelineSpec]):
    """Notes where what decodes is moved, and when it decodes."""

    events: list[str]

    def place(self, device: torch.device) -> None:
        self.events.append(device.type)

    def decode(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        self.events.append("decode")
        if x.isnan().any():
            raise RuntimeError("out of memory")
        return x


def watched(processes: Processes, offload: bool) -> tuple[ModelPolicy, list[str]]:
    adapter = Watched(PipelineSpec(path=Location("nowhere")))
    adapter.events = []
    weights = Weights({}, Full(), [], [], 0)
    policy = ModelPolicy(adapter, weights, processes, torch.float32, 1.0, SIZE, offload)
    return policy.at(Size(64, 64)), adapter.events


def test_what_decodes_is_on_the_device_while_it_does(processes: Processes) -> None:
    policy, events = watched(processes, offload=True)
    policy.decode(torch.zeros(1, 4, 4, 4))
    assert events == [processes.device.type, "decode", "cpu"]


def test_it_leaves_after_an_error_too(processes: Processes) -> None:
    policy, events = watched(processes, offload=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        policy.decode(torch.full((1, 4, 4, 4), torch.nan))
    assert events[-1] == "cpu"


def test_it_stays_where_it_is_unless_it_is_to_move(processes: Processes) -> None:
    policy, events = watched(processes, offload=False)
    policy.decode(torch.zeros(1, 4, 4, 4))
    assert events == ["decode"]


def test_velocities_need_nothing_of_what_moves(adapter: PipelineAdapter[PipelineSpec]) -> None:
    """On the meta device nothing can be computed with what is needed elsewhere."""
    x, sigma, conditions = torch.randn(1, *adapter.latent_shape(SIZE)), torch.tensor([0.5]), adapter._stand_in()
    with torch.no_grad():
        before = adapter.velocity(x, sigma, conditions, 4.0, SIZE)
        vae = adapter.pipe.vae
        adapter.place(META)
        after = adapter.velocity(x, sigma, conditions, 4.0, SIZE)
    assert torch.equal(before, after)
    assert {p.device for p in vae.parameters()} == {META}
    assert {p.device for p in adapter.pipe.transformer.parameters()} == {CPU}


@pytest.mark.parametrize(
    ("name", "stays"), [("joyimage-edit", True), ("wan-vace", True), ("wan-i2v", True), ("flux-kontext", False)]
)
@torch.no_grad()
def test_what_encodes_in_every_call_stays(name: str, stays: bool, tmp_path: Path, small_condition_images: None) -> None:
    torch.manual_seed(0)
    kind: Any = WanI2V if name == "wan-i2v" else PipelineAdapter
    family = EVERY["wan-2.1-i2v" if name == "wan-i2v" else name]
    family.make().save_pretrained(tmp_path / "model")
    Image.linear_gradient("L").convert("RGB").resize((48, 32)).save(tmp_path / "picture.png")
    length = {} if family.max_sequence_length is None else {"max_sequence_length": family.max_sequence_length}
    spec = WanI2VSpec if name == "wan-i2v" else PipelineSpec
    adapter = kind(spec(path=Location(str(tmp_path / "model")), **length))
    adapter.load(CPU, torch.float32)
    conditions = adapter.encode([Row("a cat", images=(tmp_path / "picture.png",) * family.image)])
    adapter.drop_encoders()
    x, sigma = torch.randn(1, *adapter.latent_shape(family.size)), torch.tensor([0.5])
    before = adapter.velocity(x, sigma, conditions, family.guidance, family.size)
    adapter.place(META)
    assert torch.equal(adapter.velocity(x, sigma, conditions, family.guidance, family.size), before)
    assert {p.device for p in adapter.pipe.vae.parameters()} == {CPU if stays else META}


def test_it_stays_for_the_backward_pass_and_leaves_after_what_needs_none(processes: Processes) -> None:
    policy, events = watched(processes, offload=True)
    made = policy.decode(torch.zeros(1, 4, 4, 4, requires_grad=True))
    assert made.requires_grad
    assert events == [processes.device.type, "decode"]
    policy.decode(torch.zeros(1, 4, 4, 4))
    assert events[-1] == "cpu"
