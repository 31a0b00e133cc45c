"""The reference of a run that began elsewhere, and sets that never move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from flowfactory.policy import loras
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full, Lora
from lowrank import loaded, velocity, written

# --- the reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["start", "base"])
@pytest.mark.parametrize("tuning", [Lora, Full])
def test_the_reference_is_the_start_or_the_base(
    tuning: Any, reference: str, checkpoint: Path, pipe: Any, tmp_path: Path
) -> None:
    location, networks = written(tmp_path, checkpoint, "diffusers"), {"transformer": pipe.transformer}
    base = velocity(pipe.transformer)
    given = loras.read(str(location), networks, pipe)
    weights = Weights(networks, tuning(from_="x", reference=reference), [], ["reference", "ema"], 0, start=given)
    start = velocity(pipe.transformer)
    assert (start - base).abs().max() > 1e-2
    with torch.no_grad():
        for parameter in weights.parameters.values():
            parameter += 0.01
    moved = velocity(pipe.transformer)
    with weights.using("reference"):
        assert torch.equal(velocity(pipe.transformer), start if reference == "start" else base)
    with weights.using("ema"):
        assert torch.equal(velocity(pipe.transformer), start)
    assert torch.equal(velocity(pipe.transformer), moved)
    copied = tuning is Full or reference == "start"
    assert set(weights.sets) == ({"ema", "reference"} if copied else {"ema"})


# --- sets that never move ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [Lora(rank=3, targets=("to_q", "to_k")), Full()])
def test_teachers_from_files_are_those_in_memory_and_never_move(
    tuning: Lora | Full, checkpoint: Path, pipe: Any, other: Any, tmp_path: Path
) -> None:
    location = written(tmp_path, checkpoint, "diffusers")
    other.save_pretrained(tmp_path / "whole")
    base, whole = velocity(pipe.transformer), velocity(other)
    adapted = velocity(loaded(FluxPipeline.from_pretrained(checkpoint), location)[0])
    networks = {"transformer": pipe.transformer}
    others = {n: loras.read(str(p), networks, pipe) for n, p in (("ocr", location), ("taste", tmp_path / "whole"))}
    weights = Weights(networks, tuning, [], ["reference"], 0, others=others)
    assert torch.equal(velocity(pipe.transformer), base)
    optimizer = torch.optim.AdamW(weights.parameters.values(), lr=1e-2)
    for _ in range(2):
        with weights.using("ocr"):
            assert (velocity(pipe.transformer) - adapted).abs().max() < 1e-5
            assert not any(p.requires_grad and ".ocr." in name for name, p in pipe.transformer.named_parameters())
            with weights.using("taste"):
                assert torch.equal(velocity(pipe.transformer), whole)
            with weights.using("reference"):
                assert torch.equal(velocity(pipe.transformer), base)
            assert (velocity(pipe.transformer) - adapted).abs().max() < 1e-5
        with weights.using("reference"), weights.using("ocr"):
            assert (velocity(pipe.transformer) - adapted).abs().max() < 1e-5
        names = [name for name, p in pipe.transformer.named_parameters() if p.requires_grad]
        assert {f"transformer.{name}" for name in names} == set(weights.parameters)
        for parameter in weights.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert not torch.equal(velocity(pipe.transformer), base)


def test_teachers_keep_the_networks_format_and_share_what_they_do_not_adapt(
    checkpoint: Path, other: Any, tmp_path: Path
) -> None:
    location = written(tmp_path, checkpoint, "diffusers")
    other.save_pretrained(tmp_path / "whole")
    for tuning in (Lora(rank=3, targets=("to_q",)), Full()):
        pipe: Any = FluxPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
        networks = {"transformer": pipe.transformer}
        others = {n: loras.read(str(p), networks, pipe) for n, p in (("a", location), ("b", tmp_path / "whole"))}
        others["c"] = others["a"]
        weights = Weights(networks, tuning, [], [], 0, others=others)
        assert {p.dtype for p in weights.parameters.values()} == {torch.float32}
        frozen = [t for name in "abc" for _, t in weights._frozen[name].tensors]
        frozen += [p for name, p in pipe.transformer.named_parameters() if ".a." in name or ".c." in name]
        assert {t.dtype for t in frozen} == {torch.bfloat16}
        if isinstance(tuning, Full):
            a, c = ({t.data_ptr() for _, t in weights._frozen[name].tensors} for name in "ac")
            assert len(a - c) == 3
        with weights.using("b"):
            assert {p.dtype for n, p in pipe.transformer.named_parameters() if "lora" not in n} == {torch.bfloat16}


def test_a_set_cannot_move_while_a_teacher_is_in_use(checkpoint: Path, pipe: Any, tmp_path: Path) -> None:
    networks = {"transformer": pipe.transformer}
    others = {"ocr": loras.read(str(written(tmp_path, checkpoint, "diffusers")), networks, pipe)}
    weights = Weights(networks, Full(), [], ["old"], 0, others=others)
    with weights.using("ocr"), pytest.raises(RuntimeError, match="'old' cannot move while another set is in use"):
        weights.move("old", 0.5)
    with pytest.raises(KeyError, match="no weight set 'x'; there are current, old, ocr"), weights.using("x"):
        pass
