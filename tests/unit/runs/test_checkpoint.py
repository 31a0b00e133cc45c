"""Checkpoints: what is saved is what is restored, and what is not what was saved is noticed and named."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from flowfactory.contracts.specs import TrainerSpec
from flowfactory.errors import RunError
from flowfactory.policy.weights import Weights
from flowfactory.runs import archive, checkpoint
from flowfactory.runs.archive import Origin, checkpoints, damage, tidy
from flowfactory.runs.checkpoint import Progress
from flowfactory.spec.tables import Full, Lora
from safetensors.torch import load_file, save_file
from support import FORGETFUL, Forgetful
from torch import Tensor, nn

ORIGIN = Origin("0" * 64, 2, {"flowfactory": "0.1.0"})


def made(tuning: Lora | Full) -> tuple[nn.Linear, Weights, torch.optim.AdamW]:
    torch.manual_seed(0)
    net = nn.Linear(6, 6)
    weights = Weights({"net": nn.Sequential(net)}, tuning, ["0"], ["ema"], 0)
    return net, weights, torch.optim.AdamW(weights.parameters.values(), lr=0.1)


def train(weights: Weights, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        weights.networks["net"](x).square().mean().backward()
        optimizer.step()
        weights.move("ema", 0.5)


@pytest.mark.parametrize("tuning", [Full(), Lora(rank=2)])
def test_training_goes_on_bit_for_bit(tmp_path: Path, tuning: Lora | Full) -> None:
    _, weights, optimizer = made(tuning)
    train(weights, optimizer, range(3))
    path = checkpoint.save(tmp_path, Progress(3, 3), weights, {"current": optimizer}, {}, ORIGIN)
    train(weights, optimizer, range(3, 6))
    _, resumed, fresh = made(tuning)
    assert damage(path) == ""
    assert checkpoint.load(path, resumed, {"current": fresh}, FORGETFUL) == Progress(3, 3)
    train(resumed, fresh, range(3, 6))
    for kept in ("current", "ema"):
        for name, tensor in weights.tensors(kept).items():
            assert torch.equal(tensor, resumed.tensors(kept)[name]), (kept, name)
    state = archive.read(path)
    assert (state.epoch, state.step, state.origin) == (3, 3, ORIGIN)
    assert state.files.keys() == {"current.safetensors", "ema.safetensors", "optimizer.safetensors"}


class Counting(Forgetful):
    """Remembers a number."""

    counted = torch.zeros((), dtype=torch.float64)

    def state(self) -> Mapping[str, Tensor]:
        return {"counted": self.counted}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.counted = state["counted"]


def test_what_a_trainer_remembers_is_kept(tmp_path: Path) -> None:
    _, weights, optimizer = made(Full())
    before, after = Counting(TrainerSpec()), Counting(TrainerSpec())
    before.counted = torch.tensor(1 / 3, dtype=torch.float64)
    path = checkpoint.save(tmp_path, Progress(1, 1), weights, {"current": optimizer}, before.state(), ORIGIN)
    before.counted = torch.tensor(2.0)
    assert damage(path) == ""
    checkpoint.load(path, weights, {"current": optimizer}, after)
    assert float(after.counted) == 1 / 3
    assert after.counted.dtype == torch.float64
    flip(path / "trainer.safetensors", -1)
    assert "/trainer.safetensors has another content than" in damage(path)


def saved(folder: Path, *epochs: int) -> list[Path]:
    """Real checkpoints after these epochs."""
    _, weights, optimizer = made(Full())
    train(weights, optimizer, range(1))
    return [
        checkpoint.save(folder, Progress(epoch, epoch), weights, {"current": optimizer}, {}, ORIGIN) for epoch in epochs
    ]


@pytest.mark.parametrize(
    ("best", "left"),
    [(None, [9999, 10000]), (10000, [9999, 10000]), (9998, [9998, 9999, 10000]), (9000, [9999, 10000])],
)
def test_the_latest_and_the_best_are_kept_and_order_is_by_number(
    tmp_path: Path, best: int | None, left: list[int]
) -> None:
    saved(tmp_path, 9997, 9998, 9999, 10000)
    tidy(tmp_path, keep=2, best=best)
    assert [archive.epoch_of(path) for path in checkpoints(tmp_path)] == left
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(archive.name, left))


def test_an_unfinished_checkpoint_is_not_found_and_does_not_hinder(tmp_path: Path) -> None:
    for left in (".writing-epoch-0001", ".writing-epoch-0000"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "current.safetensors").write_bytes(b"cut sho")
    assert checkpoints(tmp_path) == []
    (path,) = saved(tmp_path, 1)
    tidy(tmp_path, keep=2, best=None)
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_loses_its_name_before_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process is killed while it removes them."""
    saved(tmp_path, 1, 2)
    monkeypatch.setattr(archive.shutil, "rmtree", lambda path, ignore_errors: (path / "state.json").unlink())
    tidy(tmp_path, keep=1, best=None)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-0002"]
    tidy(tmp_path, keep=1, best=None)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0002"]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda c: cut(c / "ema.safetensors", 100), r"/ema\.safetensors has 100 bytes; \d+ were written$"),
    "gone": (lambda c: (c / "current.safetensors").unlink(), r"/current\.safetensors is missing; \d+ were written$"),
    "bit": (lambda c: flip(c / "optimizer.safetensors", -9), r"/optimizer\.safetensors has another content than"),
    "extra": (lambda c: (c / "old.safetensors").write_bytes(b""), r"/old\.safetensors was not written with this"),
    "no state": (lambda c: (c / "state.json").unlink(), r"/state\.json cannot be read: .*No such file or directory$"),
    "cut state": (lambda c: cut(c / "state.json", 70), r"/state\.json cannot be read: Unterminated string"),
    "empty state": (lambda c: (c / "state.json").write_text("{}"), r"/state\.json cannot be read: it lacks 'crc32'$"),
    "no object": (lambda c: (c / "state.json").write_text("[3]"), r"/state\.json cannot be read: it is not what"),
    "state bit": (lambda c: flip(c / "state.json", 13), r"/state\.json cannot be read: its checksum is another"),
    "renamed": (lambda c: c.rename(c.with_name("epoch-0008")), r"/state\.json is of epoch-0007$"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed_and_the_file_named(tmp_path: Path, kind: str) -> None:
    (path,) = saved(tmp_path, 7)
    assert damage(path) == ""
    do, expected = DAMAGES[kind]
    do(path)
    (found,) = checkpoints(tmp_path)
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(damage(found))


def test_a_flip_of_any_bit_is_noticed(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    for file in sorted(path.iterdir()):
        for place in range(0, file.stat().st_size, 97):
            flip(file, place)
            assert file.name in damage(path), (file.name, place)
            flip(file, place)
    assert damage(path) == ""


def test_weights_of_another_network_are_not_loaded(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    _, lora, optimizer = made(Lora(rank=2))
    with pytest.raises(RunError, match=r"current\.safetensors is not of this run's network: net\.0\.\S+ has the shape"):
        checkpoint.load(path, lora, {"current": optimizer}, FORGETFUL)
    net = nn.Linear(6, 6)
    fewer = Weights({"net": nn.Sequential(net)}, Full(), [], [], 0)
    with pytest.raises(RunError, match="has the weights `current`, `ema`; this run keeps `current`"):
        checkpoint.load(path, fewer, {"current": torch.optim.AdamW(net.parameters())}, FORGETFUL)


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"checkpoints/epoch-0001 cannot be written: Not a directory$"):
        saved(tmp_path / "checkpoints", 1)


def test_a_checkpoint_that_is_read_is_not_tidied_away(tmp_path: Path) -> None:
    first, *_ = saved(tmp_path, 1, 2, 3)
    with archive.reading(first):
        tidy(tmp_path, keep=1, best=None)
        assert [archive.epoch_of(path) for path in checkpoints(tmp_path)] == [1, 3]
    tidy(tmp_path, keep=1, best=None)
    assert [archive.epoch_of(path) for path in checkpoints(tmp_path)] == [3]
    with pytest.raises(RunError, match="is being removed"), archive.reading(first):
        pass


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0001", "._ema.safetensors"])
def test_what_systems_leave_is_no_damage(tmp_path: Path, name: str) -> None:
    (path,) = saved(tmp_path, 1)
    (path / name).write_bytes(b"x")
    assert damage(path) == ""


@pytest.mark.parametrize("file", ["current", "ema", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, file: str, value: float) -> None:
    """A run of an earlier version may have left them."""
    (path,) = saved(tmp_path, 1)
    tensors = load_file(path / f"{file}.safetensors")
    name = sorted(name for name in tensors if tensors[name].dim())[0]
    tensors[name].flatten()[-1] = value
    save_file(tensors, path / f"{file}.safetensors")
    _, weights, optimizer = made(Full())
    with pytest.raises(RunError, match=rf"{file}\.safetensors: 1 of .* not finite, `{name}` first"):
        checkpoint.load(path, weights, {"current": optimizer}, FORGETFUL)
