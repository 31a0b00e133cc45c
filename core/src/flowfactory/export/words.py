"""What an export says about itself: the metadata of its files, and the Python that loads and calls it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from flowfactory.builtin import PipelineSpec
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.processes.distributed import DTYPES
from flowfactory.spec.tables import Spec

MODULES = "flowfactory.modules"
"""In a LoRA's metadata: the names of the adapted modules in diffusers, as JSON."""

PROMPT = "a photo of a cat"

ARCHITECTURES = {
    "FluxTransformer2DModel": "flux-1-dev",
    "QwenImageTransformer2DModel": "qwen-image",
    "SD3Transformer2DModel": "stable-diffusion-v3",
    "WanTransformer3DModel": "wan",
}
"""By network class, names that programs know; others go by their class."""


def described_as(spec: Spec, network: str, rank: int, alpha: float) -> dict[str, str]:
    """Metadata of a LoRA's file, by the names of the Stability AI model spec and of kohya's programs.

    Args:
        network: its class. rank: of most of its layers. alpha: their outputs are scaled by alpha / rank.
    """
    size, base = spec.sampling.size, base_name(spec)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURES.get(network, network)}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": spec.run.name,
        "modelspec.description": f"LoRA of {base}, fine-tuned by reinforcement learning with {spec.trainer.name}",
        "modelspec.resolution": f"{size.width}x{size.height}",
        "ss_output_name": spec.run.name,
        "ss_sd_model_name": base,
        "ss_base_model_version": ARCHITECTURES.get(network, network),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }


def base_id(spec: Spec) -> str:
    """The base model's id on the hub; empty for a folder that is not the hub's."""
    path = Path(spec.model.spec.path)
    if not path.is_absolute():
        return str(path)
    cached = [part.removeprefix("models--") for part in path.parts if part.startswith("models--")]
    return cached[-1].replace("--", "/", 1) if cached and "snapshots" in path.parts else ""


def base_name(spec: Spec) -> str:
    """The base model as a reader elsewhere can know it: its id on the hub, its package, or its folder's name."""
    path = spec.model.spec.path
    return base_id(spec) or packaged(path) or Path(path).name


def packaged(path: str) -> str:
    """`package:resource` of what lies in an installed package; empty for anything else."""
    for folder in Path(path).parents:
        found = importlib.util.find_spec(folder.name) if (folder / "__init__.py").is_file() else None
        if found is not None and str(folder) in (found.submodule_search_locations or ()):
            return f"{folder.name}:{Path(path).relative_to(folder).as_posix()}"
    return ""


def seen_from(folder: Path, run: Path, path: str) -> str:
    """A path as an export in `folder` may name it: by its package, relative where it lies beside the run, or else its
    last part.

    What is above the folder of runs says nothing to others, and where this machine keeps things is not theirs to know.
    """
    if resource := packaged(path):
        return resource
    beside = run.resolve().parent.parent
    if Path(path).is_relative_to(beside) and beside != Path(beside.anchor):
        return os.path.relpath(path, folder.resolve())
    return Path(path).name


def loading(adapter: PipelineAdapter[Any], spec: Spec, base: str) -> str:
    """Python that loads a pipeline as the adapter does. base: its id, or where it is, also as `package:resource`."""
    package, _, resource = packaged(spec.model.spec.path).partition(":")
    within = package != "" and base == f"{package}:{resource}"
    where = f"str(files({package!r}) / {resource!r})" if within else repr(base)
    own, name = spec.model.spec, type(adapter.pipe).__name__
    dtype = f"dtype={DTYPES[spec.run.precision]}"
    said = {"revision": own.revision, "variant": own.variant} if isinstance(own, PipelineSpec) else {}
    options = "".join(f", {key}={value!r}" for key, value in said.items() if value)
    imports, before = [name], ""
    if isinstance(own, PipelineSpec) and own.single_file:
        ((part, network),) = adapter.networks().items()
        kind = type(network).__name__
        given = f"{Path(own.single_file).name!r}, config={where}, subfolder={part!r}, {dtype}"
        if own.single_file.endswith(".gguf"):
            imports.append("GGUFQuantizationConfig")
            given += f", quantization_config=GGUFQuantizationConfig(compute_{dtype})"
        imports.append(kind)
        before, options = f"{part} = {kind}.from_single_file({given})\n", f"{options}, {part}={part}"
    head = "from importlib.resources import files\n\n" if within else ""
    head += f"import torch\nfrom diffusers import {', '.join(sorted(imports))}\n\n"
    return f"{head}{before}pipe = {name}.from_pretrained({where}{options}, {dtype})"


def calling(adapter: PipelineAdapter[Any], spec: Spec, edits: bool) -> str:
    """Python that makes one sample with `pipe`, at the size, steps and guidance it was trained at."""
    takes, size = tap.parameters(adapter.pipe), spec.sampling.size
    said: dict[str, Any] = {"height": size.height, "width": size.width, "num_frames": size.frames}
    said |= {"num_inference_steps": spec.sampling.steps, **adapter.guidance_scales(spec.sampling.guidance)}
    said |= {"max_area": size.height * size.width, "use_resolution_binning": False}
    own = spec.model.spec
    if isinstance(own, PipelineSpec) and own.max_sequence_length is not None:
        said["max_sequence_length"] = own.max_sequence_length
    arguments = [f"{name}={value!r}" for name, value in said.items() if name in takes]
    before, what = "", "images" if size.frames == 1 else "frames"
    if said.get("true_cfg_scale", 1) > 1 and "negative_prompt" in takes:
        arguments.insert(0, 'negative_prompt=" "')
    if edits:
        before = f'from PIL import Image\n\npicture = Image.new("RGB", {(size.width, size.height)})  # yours\n'
        arguments.insert(0, "image=picture")
    lines = ",\n    ".join([f'prompt="{PROMPT}"', *arguments])
    device = 'pipe.to("cuda" if torch.cuda.is_available() else "cpu")\n'
    return f"{device}{before}made = pipe(\n    {lines},\n).{what}[0]"


def task(spec: Spec, edits: bool) -> str:
    """By the hub's name."""
    return f"{'image' if edits else 'text'}-to-{'image' if spec.sampling.size.frames == 1 else 'video'}"
