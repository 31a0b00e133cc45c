"""Whole runs on other families' tiny checkpoints: LoRA and full fine-tuning, one network and two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory_plugin_qwen_image.qwen_image import QwenImage
from flowfactory_plugin_wan.wan import Wan

CHECKPOINTS: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "qwen-image": ("qwen-image", QwenImage.tiny, ["-model.max_sequence_length", "sampling.size=32"]),
    "wan-2.2": ("wan", lambda folder: Wan.tiny(folder, experts=2), ["sampling.size=[32,32,5]"]),
}
SHORT = ["sampling.prompts=2", "sampling.group=2", "sampling.micro_batch=4", "optimizer.updates=1", "eval.every=0"]


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_trains(name, tuning, run, tmp_path):
    adapter, tiny, changes = CHECKPOINTS[name]
    path = tiny(tmp_path / "checkpoint")
    options = [f"model.name={adapter}", f"model.path={path}", "sampling.guidance=2.0", *changes, *SHORT]
    if tuning == "lora":
        options += ["-full", "lora.rank=2", "memory.gradient_checkpointing=true", "memory.attention=native"]
    folder = run("family", *options, "scheduler.window={rule='list',steps=[0,2]}", "run.epochs=1")
    last = metrics(folder)[-1]
    assert last["train/gradient_norm"] > 0
    if name == "wan-2.2":
        assert len(list((folder / "samples" / "epoch-0001").glob("*.mp4"))) == 4


def test_a_template_that_leaves_no_room_for_prompts_is_told(run, tmp_path, capsys):
    options = ["model.name=qwen-image", f"model.path={QwenImage.tiny(tmp_path / 'checkpoint')}", *SHORT]
    with pytest.raises(AssertionError, match="assert 1 == 0"):
        run("deaf", *options)
    said = " ".join(capsys.readouterr().err.split())
    assert "does not depend on the prompt: [model] max_sequence_length = 16 leaves nothing of it; set more" in said


def test_an_attention_that_is_not_there_is_refused(spec, tmp_path, capsys):
    assert main(["run", str(spec), "--folder", str(tmp_path / "r"), "--set", "memory.attention=magic"]) == 1
    assert "[memory] attention: diffusers knows no `magic`; there is: " in capsys.readouterr().err


def test_blocks_are_compiled(checkpoint):
    """Those that repeat, each by itself."""
    from flowfactory.spec.tables import Memory
    from flowfactory.training.networks import set_up
    from flowfactory_plugin_flux.checkpoint import tiny_flux

    network = tiny_flux().transformer
    set_up(network, Memory(compile=True))
    compiled = [name for name, module in network.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["transformer_blocks.0", "single_transformer_blocks.0"]
