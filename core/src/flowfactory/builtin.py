"""What core itself contributes, through the same hooks as everyone else. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import attrs

from flowfactory.contracts.hooks import Provides, hookimpl
from flowfactory.contracts.key import Calls, Density, Location, key
from flowfactory.contracts.specs import AdapterSpec, SchedulerSpec, StochasticSpec

WITH_TORCHVISION = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor", "CosmosTransformer3DModel")
"""Parts of checkpoints that need torchvision: processors, for their videos, and networks that scale masks by it."""

Quantization = Literal["int8", "nf4"]


@attrs.frozen(kw_only=True)
class PipelineSpec(AdapterSpec):
    """Any flow-matching diffusers pipeline."""

    variant: str | None = key(
        "Which weights of the checkpoint, if it has several: `fp16` for files named `….fp16.safetensors`.",
        default=None,
        pattern=r"\w+",
    )
    single_file: Location | None = key(
        "The network's weights in one .safetensors or .gguf file, as for ComfyUI, in place of those at `path`; .gguf "
        "needs `flowfactory[gguf]`.",
        default=None,
        exists=True,
    )
    max_sequence_length: int | None = key(
        "Text tokens of a prompt, padding included; the pipeline's own number when absent.", default=None, ge=1
    )
    true_cfg: float = key(
        "Classifier-free guidance, with the negative prompt, of a model that also embeds `guidance`; 1 is none.",
        default=1.0,
        ge=1,
    )

    quantize: Quantization | None = key(
        "Number format of the frozen blocks under LoRA: LLM.int8() or QLoRA's nf4; as `[run] precision` when absent. "
        "Needs `flowfactory[bitsandbytes]`.",
        default=None,
    )

    @property
    def calls(self) -> Calls:
        return "sample"

    def packages(self) -> Mapping[str, str]:
        wanted = {"bitsandbytes": "flowfactory[bitsandbytes]"} if self.quantize else {}
        index = Path(self.path) / "model_index.json"
        try:
            parts = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        except (OSError, ValueError, RecursionError):
            parts = {}  # what is wrong with it is told by those who look at the checkpoint
        named = parts.values() if isinstance(parts, dict) else ()
        if any(isinstance(part, list) and part and part[-1] in WITH_TORCHVISION for part in named):
            wanted["torchvision"] = "flowfactory[vision]"
        return wanted


@attrs.frozen(kw_only=True)
class FlowSDESpec(StochasticSpec):
    """Flow-GRPO's stochastic sampler; keeps the model's marginals."""

    eta: float = key("Noise: the first step's standard deviation; 0.7 for SD3.5, 0.9 for FLUX.", default=0.7, gt=0)


@attrs.frozen(kw_only=True)
class DanceSDESpec(StochasticSpec):
    """DanceGRPO's stochastic sampler: a constant diffusion coefficient."""

    eta: float = key("Noise per root of sigma; 0.3 for FLUX, 0.25 for HunyuanVideo.", default=0.3, gt=0)


@attrs.frozen(kw_only=True)
class LinearSDESpec(StochasticSpec):
    """Flow-GRPO's stochastic sampler for Wan, and Flash-GRPO's: a diffusion coefficient that falls with sigma."""

    eta: float = key("Noise, as a multiple of the authors' noise, which has no such key.", default=1.0, gt=0)


@attrs.frozen(kw_only=True)
class CPSSpec(StochasticSpec):
    """FlowCPS's stochastic sampler: the noise of a step replaces as much predicted noise."""

    density: ClassVar[Density] = "squared-error"

    eta: float = key(
        "How much of the noise is drawn anew in each stochastic step: an angle of eta x 90 degrees; 1 draws all anew.",
        default=0.8,
        gt=0,
        le=1,
    )


@attrs.frozen(kw_only=True)
class ODESpec(SchedulerSpec):
    """Euler steps of the probability-flow ODE."""


@attrs.frozen(kw_only=True)
class DPMSolverSpec(SchedulerSpec):
    """DPM-Solver++(2M): second order, one network call per step."""


@attrs.frozen(kw_only=True)
class UniPCSpec(SchedulerSpec):
    """UniPC: second order predictor and corrector, one network call per step."""


@attrs.frozen(kw_only=True)
class HeunSpec(SchedulerSpec):
    """Heun's method: second order, two network calls per step but for the last."""

    def calls(self, steps: int) -> int:
        return max(0, 2 * steps - 1)


@attrs.frozen(kw_only=True)
class SASolverSpec(StochasticSpec):
    """SA-Solver: second order with noise of no known density, one network call per step."""

    density: ClassVar[Density] = "none"

    tau: float = key(
        "Noise of the stochastic steps; 1 is the reverse SDE's. AWM has 0.4 for SD3.5, at levels from 0.9 to 0.3.",
        default=0.4,
        ge=0,
    )


@attrs.frozen(kw_only=True)
class JpegSpec:
    """Sizes of JPEG files."""

    quality: int = key("JPEG quality; DDPO's is 95.", default=95, ge=1, le=100)


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    target = "flowfactory.models.pipeline:PipelineAdapter"
    yield Provides("diffusers", PipelineSpec, target, "Any flow-matching diffusers pipeline, through its own call.")


@hookimpl
def flowfactory_schedulers() -> Iterable[Provides]:
    home = "flowfactory.schedulers"
    yield Provides("flow-sde", FlowSDESpec, f"{home}.flow_sde:FlowSDE", "Flow-GRPO's SDE; keeps the marginals.")
    yield Provides("dance-sde", DanceSDESpec, f"{home}.dance_sde:DanceSDE", "DanceGRPO's SDE; constant noise.")
    linear = "Flow-GRPO's SDE for Wan; noise falls with sigma."
    yield Provides("linear-sde", LinearSDESpec, f"{home}.linear_sde:LinearSDE", linear)
    yield Provides("cps", CPSSpec, f"{home}.cps:CPS", "FlowCPS: fresh noise replaces predicted noise.")
    yield Provides("ode", ODESpec, f"{home}.ode:ODE", "Euler steps: deterministic, for decoupled trainers.")
    yield Provides("dpm-solver", DPMSolverSpec, f"{home}.dpm_solver:DPMSolver", "DPM-Solver++(2M); deterministic.")
    yield Provides("unipc", UniPCSpec, f"{home}.unipc:UniPC", "UniPC of second order; deterministic.")
    yield Provides("heun", HeunSpec, f"{home}.heun:Heun", "Heun's second order, by two calls; deterministic.")
    adams = "SA-Solver, AWM's: second order, with noise."
    yield Provides("sa-solver", SASolverSpec, f"{home}.sa_solver:SASolver", adams)


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    small, large = "flowfactory.rewards.jpeg:Compressibility", "flowfactory.rewards.jpeg:Incompressibility"
    yield Provides("jpeg-compressibility", JpegSpec, small, "Images that make small JPEG files, as in DDPO.")
    yield Provides("jpeg-incompressibility", JpegSpec, large, "Images that make large JPEG files, as in DDPO.")
