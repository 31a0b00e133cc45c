"""Distilled checkpoints are known by their names or configurations, and the advice depends on what is done to them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import run

import pytest
from flowfactory.builtin import CPSSpec, FlowSDESpec, ODESpec, PipelineSpec
from flowfactory.contracts.specs import DecoupledSpec, Needs, SchedulerSpec, TrainerSpec
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.errors import Problem
from flowfactory.plan import bases, disk
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Sampling, Size

ROOT = Path(__file__).parents[3]


def kind(path: str, **keys: str) -> str | None:
    found = bases.distilled(PipelineSpec(path=path, **keys))  # type: ignore[arg-type]
    return found and f"{found.kind}: {found.title}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("black-forest-labs/FLUX.1-schnell", "steps: FLUX.1 schnell"),
        ("black-forest-labs/FLUX.1-dev", "guidance: FLUX.1 dev"),
        ("black-forest-labs/FLUX.1-Krea-dev", "guidance: FLUX.1 dev"),
        ("black-forest-labs/FLUX.1-Kontext-dev", "guidance: FLUX.1 dev"),
        ("/models/flux1-dev", "guidance: FLUX.1 dev"),
        ("black-forest-labs/FLUX.2-dev", "guidance: FLUX.2 dev"),
        ("black-forest-labs/FLUX.2-klein-4B", "steps: FLUX.2 klein"),
        ("black-forest-labs/FLUX.2-klein-9b-kv", "steps: FLUX.2 klein"),
        ("black-forest-labs/FLUX.2-klein-base-9B", None),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "steps: Stable Diffusion 3.5 Turbo"),
        ("stabilityai/stable-diffusion-3.5-medium", None),
        ("Tongyi-MAI/Z-Image-Turbo", "steps: Z-Image-Turbo"),
        ("Tongyi-MAI/Z-Image", None),
        ("Qwen/Qwen-Image", None),
        ("somebody/Lightning-4step-Qwen-Image-2.1-Diffusers", "steps: this checkpoint, by its name,"),
        ("lightx2v/Qwen-Image-Lightning", "steps: Qwen-Image with few steps"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", None),
        ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", "steps: Wan with few steps"),
        ("lightx2v/Wan2.2-Lightning", "steps: Wan with few steps"),
        ("hunyuanvideo-community/HunyuanVideo", "guidance: HunyuanVideo"),
        ("InstantX/flux-dev-de-distill-diffusers", None),
        ("ostris/Flux-Dedistilled", None),
        ("somebody/my-distilled-model", "steps: this checkpoint, by its name,"),
        ("/turbo/runs/sd3", None),
        ("/cache/hub/models--black-forest-labs--FLUX.1-schnell/snapshots/0123abcd", "steps: FLUX.1 schnell"),
    ],
)
def test_a_checkpoint_is_known_by_its_name(path: str, expected: str | None) -> None:
    assert kind(path) == expected


def test_a_single_file_decides() -> None:
    assert kind("black-forest-labs/FLUX.1-dev", single_file="/x/flux1-schnell-Q4.gguf") == "steps: FLUX.1 schnell"


def test_the_table_is_in_order() -> None:
    """The specific before the general; those with steps say how many, those with guidance which."""
    *known, general = bases.table()
    assert general.name.startswith("(?<!de)")
    assert all(one.steps > 0 and one.instead for one in known if one.kind == "steps")
    assert all(one.guidance > 1 for one in known if one.kind == "guidance")


class Data(TrainerSpec):
    @property
    def needs(self) -> Needs:
        return Needs(source="media", scores=False)


def said(path: str, trainer: TrainerSpec, scheduler: SchedulerSpec, steps: int = 4, guidance: float = 1.0) -> str:
    found = bases.distilled(PipelineSpec(path=path))  # type: ignore[arg-type]
    assert found is not None
    sampling = Sampling(size=Size(512, 512), steps=steps, prompts=1, guidance=guidance)
    return "; ".join(bases.advice(found, sampling, scheduler, trainer, "mine"))


SCHNELL, DEV = "black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"


def test_of_few_steps_the_advice_is_what_to_change_first() -> None:
    online, flow = TrainerSpec(), FlowSDESpec()
    assert "trainer `mine` matches velocities at any noise level" in said(SCHNELL, DecoupledSpec(), flow)
    assert "trainer `mine` matches velocities at any noise level" in said(SCHNELL, Data(), ODESpec())
    assert "set [sampling] guidance to 1" in said(SCHNELL, online, flow, guidance=3.5)
    assert "set [sampling] steps to 4 at most" in said(SCHNELL, online, flow, steps=10)
    assert "set [scheduler] name to `cps`" in said(SCHNELL, online, flow)
    assert "watch evaluations with its own steps" in said(SCHNELL, online, CPSSpec())
    assert all(
        "start from black-forest-labs/FLUX.1-dev" in said(SCHNELL, trainer, scheduler)
        for trainer in (online, DecoupledSpec()) for scheduler in (flow, CPSSpec())
    )  # fmt: skip


def test_of_an_embedded_guidance_the_advice_is_which() -> None:
    assert "guidance to the one it will be used with, e.g. 3.5, instead of 1" in said(DEV, DecoupledSpec(), ODESpec())
    assert "use the trained model with the same scale, 3" in said(DEV, TrainerSpec(), FlowSDESpec(), guidance=3.0)


def notes(path: Path, *sets: str) -> list[Problem]:
    found: list[Problem] = []
    load_spec(path, Registry(installed_entries()), sets, also=disk.RULES, tell=found.append)
    return [note for note in found if note.kind == "distilled"]


EXAMPLES = sorted(ROOT.glob("plugins/*/examples/*.toml"))
NAMED = re.compile("flux|hunyuan", re.IGNORECASE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_with_distilled_bases_say_so_and_others_do_not(path: Path) -> None:
    text = path.read_text()
    if "[model]" not in text:
        pytest.skip("it has no model of its own")
    expected = NAMED.search(re.search(r'^path = "(.*)"$', text, re.MULTILINE)[1]) is not None  # type: ignore[index]
    assert len(notes(path)) == expected


def test_a_configuration_tells_of_embedded_guidance(tmp_path: Path) -> None:
    (tmp_path / "mine/transformer").mkdir(parents=True)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "mine/model_index.json").write_text(json.dumps(index))
    own = PipelineSpec(path=str(tmp_path / "mine"))  # type: ignore[arg-type]
    assert bases.distilled(own) is None
    found = bases.distilled(own, embeds_guidance=True)
    assert found is not None
    assert found.kind == "guidance"


def test_no_torch_is_needed() -> None:
    script = "import sys, flowfactory.plan.bases as b; b.table(); raise SystemExit('torch' in sys.modules)"
    run([sys.executable, "-c", script], check=True)


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_has_the_noise_that_the_schedulers_make() -> None:
    import torch
    from flowfactory.builtin import DanceSDESpec
    from flowfactory.schedulers.cps import CPS
    from flowfactory.schedulers.dance_sde import DanceSDE
    from flowfactory.schedulers.flow_sde import FlowSDE

    rows = re.findall(r"^\| (\d+), (\d) \|(.*)\| 1 \|$", (ROOT / "docs/bases.md").read_text(), re.MULTILINE)
    assert len(rows) == 5
    for steps, shift, cells in rows:
        even = torch.linspace(1, 0, int(steps) + 1, dtype=torch.float64)
        levels = (int(shift) * even / (1 + (int(shift) - 1) * even)).float()
        sigma, after = levels[:-2, None], levels[1:-1, None]
        kinds = (FlowSDE(FlowSDESpec()), FlowSDE(FlowSDESpec(eta=0.3)), DanceSDE(DanceSDESpec(eta=0.3)), CPS(CPSSpec()))
        shown = [*(cell.strip() for cell in cells.split("|")), "1.00, 1.00"]
        for scheduler, cell in zip(kinds, shown, strict=True):
            # Pure noise of level sigma: x = sigma X1, v = X1, X0 = 0. What is left of it, and what is added.
            moments = scheduler.moments(torch.ones_like(sigma), sigma, sigma, after, float(levels[1]))
            left = (moments.mean.square() + moments.std.square()).sqrt() / after
            assert cell == f"{float(left[: int(steps) // 2].max()):.2f}, {float(left.max()):.2f}"


def test_the_page_names_every_known_checkpoint() -> None:
    text = (ROOT / "docs/bases.md").read_text().lower()
    for title in (
        "schnell",
        "klein",
        "turbo",
        "z-image-turbo",
        "lightning",
        "fastwan",
        "flux.1 dev",
        "flux.2 dev",
        "hunyuanvideo",
    ):
        assert title in text
