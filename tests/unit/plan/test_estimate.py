"""What `plan` says of memory, held to the real models: weights exactly, activations within a factor."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import diffusers
import pytest
import torch
from families import FAMILIES
from flowfactory.builtin import FlowSDESpec, ODESpec
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Needs, SchedulerSpec, TrainerSpec, Window
from flowfactory.contracts.types import Row
from flowfactory.discovery.registry import Registry
from flowfactory.models.tiny import stable_diffusion_3
from flowfactory.plan import checkpoint
from flowfactory.plan.checkpoint import Folder, Part
from flowfactory.plan.estimate import estimate
from flowfactory.plan.geometry import geometry
from flowfactory.policy import streamed
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import DTYPES
from flowfactory.runs import checkpoint as written
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Full, Spec
from flowfactory_plugin_flux.checkpoint import tiny_flux
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image
from flowfactory_plugin_wan.checkpoint import tiny_wan
from safetensors.torch import save_file

MAKE: dict[str, Callable[[], Any]] = {
    "flux": tiny_flux,
    "qwen-image": tiny_qwen_image,
    "wan": tiny_wan,
    "diffusers": stable_diffusion_3,
}
LORA, FULL = (), ("full={}",)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in MAKE}
    for name, folder in folders.items():
        MAKE[name]().save_pretrained(folder, max_shard_size="100KB")
    return folders


def spec_of(path: Path, checkpoint: Path, model: str, *sets: str) -> Spec:
    unset = ("lora",) if "full={}" in sets else ()
    changes = (f"model.path={checkpoint}", f"model.name={model}", "trainer.name=grpo", *sets)
    return load_spec(path, Registry(), changes, (*unset, "trainer.beta"))


def loaded(spec: Spec, adapter: Adapter[Any], *sets: str) -> Weights:
    adapter.load(torch.device("cpu"), DTYPES[spec.run.precision])
    targets = [] if isinstance(spec.tuning, Full) else adapter.lora_targets()
    return Weights(adapter.networks(), spec.tuning, targets, sets, 0)


def adapter_of(spec: Spec) -> Adapter[Any]:
    made: Adapter[Any] = Registry().target("adapters", spec.model.name)(spec.model.spec)
    return made


@attrs.frozen(kw_only=True)
class WantsSpec(TrainerSpec):
    """A trainer that asks for as much of a trajectory as it is told."""

    trajectory: Literal["final", "steps", "states"]
    old: Literal["logprobs", "means"] = "logprobs"

    @property
    def needs(self) -> Needs:
        return Needs(trajectory=self.trajectory, old=self.old)


@pytest.mark.parametrize(
    ("trajectory", "scheduler", "latents"),
    [
        ("final", FlowSDESpec(), 1),
        ("steps", FlowSDESpec(window=Window(rule="list", steps=(1, 2))), 4),
        ("states", FlowSDESpec(), 9),
        ("states", ODESpec(), 9),
    ],
)
def test_as_many_latents_are_counted_as_the_trainer_asks_for(
    spec: Path,
    checkpoints: dict[str, Path],
    trajectory: Literal["final", "steps", "states"],
    scheduler: SchedulerSpec,
    latents: int,
) -> None:
    made = spec_of(spec, checkpoints["flux"], "flux")

    def kept(wanted: Literal["final", "steps", "states"]) -> int | None:
        trainer = attrs.evolve(made.trainer, spec=WantsSpec(trajectory=wanted))
        return estimate(attrs.evolve(made, trainer=trainer, scheduler=attrs.evolve(made.scheduler, spec=scheduler)))[
            "trajectories"
        ]

    one = kept("final")
    assert one
    assert kept(trajectory) == latents * one


@pytest.mark.parametrize(("updates", "means"), [(1, 0), (2, 2)])
def test_old_means_are_counted_where_a_second_update_asks_for_them(
    spec: Path, checkpoints: dict[str, Path], updates: int, means: int
) -> None:
    made = spec_of(spec, checkpoints["flux"], "flux")
    dynamics = attrs.evolve(made.scheduler, spec=FlowSDESpec(window=Window(rule="list", steps=(1, 2))))
    sampling = attrs.evolve(made.sampling, storage="bf16")
    optimizer = attrs.evolve(made.optimizer, updates=updates)
    made = attrs.evolve(made, scheduler=dynamics, sampling=sampling, optimizer=optimizer)
    plain, kept = (
        estimate(attrs.evolve(made, trainer=attrs.evolve(made.trainer, spec=WantsSpec(trajectory="steps", old=old))))[
            "trajectories"
        ]
        for old in ("logprobs", "means")
    )
    assert plain is not None
    assert kept is not None
    assert kept - plain == means * 2 * plain // 4  # 4 latents of 2 bytes a number, means of 4


@pytest.mark.parametrize(
    ("model", "sets"),
    [
        ("flux", LORA),
        ("flux", ("lora.targets=['attn.to_q', 'proj_mlp']",)),
        ("flux", FULL),
        ("flux", ("run.precision=bf16",)),
        ("qwen-image", LORA),
        ("qwen-image", FULL),
        ("wan", LORA),
        ("wan", FULL),
        ("diffusers", LORA),
        ("diffusers", FULL),
    ],
)
def test_weights_are_counted_exactly(
    spec: Path, checkpoints: dict[str, Path], model: str, sets: tuple[str, ...]
) -> None:
    made = spec_of(spec, checkpoints[model], model, *sets)
    guess, adapter = estimate(made), adapter_of(made)
    trained = sum(p.nbytes for p in loaded(made, adapter).parameters.values())
    saved = [
        t for n in adapter.networks().values() for name, t in n.state_dict(keep_vars=True).items() if "lora" not in name
    ]
    frozen = sum(t.nbytes for t in saved if not t.requires_grad)
    if isinstance(made.tuning, Full):
        trained, frozen = (
            trained + frozen,
            0,
        )  # a table that is saved beside weights, as SD3's positions, looks like one
    assert guess["trained"] == trained
    assert guess["frozen"] == frozen
    others: dict[str, int] = {"vae": 0, "encoders": 0}
    for name, part in adapter.pipe.components.items():  # type: ignore[attr-defined]
        if isinstance(part, torch.nn.Module) and not name.startswith("transformer"):
            others["vae" if name == "vae" else "encoders"] += sum(p.nbytes for p in part.parameters())
    assert {name: guess[name] for name in others} == others
    assert guess["gradients"] == guess["trained"]
    assert guess["moments"] == 2 * guess["trained"]


@pytest.mark.parametrize(("model", "precision"), [("flux", "bf16"), ("wan", "fp32")])
def test_what_is_offloaded_is_counted_where_it_is(
    spec: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, model: str, precision: str
) -> None:
    """Streamed buffers to the byte; of the device's phases, two blocks and no moments."""
    how = (f"run.precision={precision}", "memory.offload=['weights', 'optimizer']")
    made, plain = (spec_of(spec, checkpoints[model], model, *sets) for sets in (how, how[:1]))
    homes: list[streamed.Home] = []
    monkeypatch.setattr(streamed, "Stream", lambda blocks, *_: homes.extend(blocks))
    adapter = adapter_of(made)
    adapter.load(torch.device("cpu"), DTYPES[made.run.precision])
    (network,) = adapter.networks().values()
    streamed.stream(network, torch.device("cpu"), recomputed=False)
    inside = {id(p) for home in homes for p in home.parameters}
    sizes = sorted(home.buffer.nbytes for home in homes)
    guess, whole = estimate(made), estimate(plain)
    assert guess["streamed"] == sum(sizes)
    assert guess["frozen"] == sum(p.nbytes for p in network.parameters() if id(p) not in inside) + sum(sizes[-2:])
    assert guess["moments"] == whole["moments"]
    for phase in ("sample", "update"):
        less = (whole[phase] or 0) - (guess[phase] or 0)
        assert less == (whole["frozen"] or 0) - (guess["frozen"] or 0) + (whole["moments"] or 0)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantized_base_is_counted(spec: Path, checkpoints: dict[str, Path], kind: str) -> None:
    """All but what does not grow with the weights: tables of 16 and 256 numbers beside each of nf4's."""
    made = spec_of(spec, checkpoints["flux"], "flux", f"model.quantize={kind}", "run.precision=bf16")
    adapter = adapter_of(made)
    loaded(made, adapter)
    saved = {name: t for n in adapter.networks().values() for name, t in n.state_dict().items() if "lora" not in name}
    assert any(t.dtype in (torch.int8, torch.uint8) for t in saved.values())
    stored = sum(t.nbytes for name, t in saved.items() if not name.endswith(("quant_map", "bitsandbytes__nf4")))
    one = estimate(made)["frozen"]
    assert one == pytest.approx(stored, rel=0.01)
    two = estimate(attrs.evolve(made, memory=attrs.evolve(made.memory, shard=True)), world=2)["frozen"]
    packed = sum(t.numel() for name, t in saved.items() if t.dtype == torch.uint8 and name.endswith(".weight"))
    scales = {"nf4": 2 * packed // 64, "int8": sum(t.nbytes for name, t in saved.items() if name.endswith(".SCB"))}
    assert 2 * (two or 0) - (one or 0) == pytest.approx(scales[kind], abs=4), "of two processes each has all scales"


def test_one_of_two_experts_is_trained(spec: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tiny_wan(experts=2).save_pretrained(tmp_path / "two")
    both, high = (
        estimate(spec_of(spec, tmp_path / "two", "wan", f"model.experts={which}")) for which in ("both", "high")
    )
    assert both["trained"] == 2 * (high["trained"] or 0) > 0
    assert both["frozen"] == high["frozen"]


def test_sets_and_bits(spec: Path, checkpoints: dict[str, Path]) -> None:
    def bytes_of(*sets: str) -> tuple[int, int]:
        made = estimate(spec_of(spec, checkpoints["flux"], "flux", *sets))
        trained = made["trained"] or 0
        return (made["sets"] or 0) // trained, (made["moments"] or 0) * 4 // trained

    assert bytes_of() == (1, 8)
    assert bytes_of("optimizer.ema=0", "optimizer.bits=8") == (0, 2)
    assert bytes_of("trainer.kl_beta=0.1") == (1, 8), "the reference of LoRA costs nothing"
    assert bytes_of("trainer.kl_beta=0.1", *FULL) == (2, 8)
    assert bytes_of("trainer.name=nft", *FULL) == (3, 8), "the average, the old policy, the reference"


@pytest.mark.parametrize("sets", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("model", list(MAKE))
def test_activations_are_within_a_factor(
    spec: Path, checkpoints: dict[str, Path], model: str, sets: tuple[str, ...]
) -> None:
    """Of what autograd keeps in one forward pass, at two sizes of micro-batch."""
    ratios = []
    for batch in (1, 3):
        made = spec_of(spec, checkpoints[model], model, f"optimizer.micro_batch={batch}", "sampling.size=256", *sets)
        adapter = adapter_of(made)
        loaded(made, adapter)
        ratios.append((estimate(made)["update_activations"] or 0) / kept(adapter, made, batch))
    assert 0.4 < ratios[0] < 2.5
    assert ratios[1] == pytest.approx(ratios[0], rel=0.2)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all(spec: Path, checkpoints: dict[str, Path]) -> None:
    plain, checkpointed = (
        estimate(spec_of(spec, checkpoints["flux"], "flux", f"memory.gradient_checkpointing={on}"))[
            "update_activations"
        ]
        for on in ("false", "true")
    )
    layers, values = 2, 18
    assert (checkpointed or 0) / (plain or 1) == pytest.approx((layers + values) / (layers * values))


@pytest.mark.parametrize("changes", [("lora.rank=4",), ("full={}", "optimizer.updates=2")])
def test_what_undoes_updates_is_as_large_as_planned(
    spec: Path, checkpoints: dict[str, Path], changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec_of(spec, checkpoints["flux"], "flux", *changes)
    weights, copying, copied = loaded(made, adapter_of(made), "ema"), written._copied, list[torch.Tensor]()

    def counted(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = copying(tensors)
        copied.extend(tensor for tensor in found.values() if tensor.dim())  # less the counters of steps
        return found

    optimizer = torch.optim.AdamW(weights.parameters.values())
    for parameter in weights.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    monkeypatch.setattr(written, "_copied", counted)
    written.held(weights, {"current": optimizer})
    assert estimate(made)["undo"] == sum(tensor.nbytes for tensor in copied)


@pytest.mark.parametrize("changes", [("full={}", "optimizer.updates=1"), ("lora.rank=4", "checkpoint.every=1")])
def test_what_need_not_be_undone_takes_nothing(
    spec: Path, checkpoints: dict[str, Path], changes: tuple[str, ...]
) -> None:
    parts = estimate(spec_of(spec, checkpoints["flux"], "flux", *changes)).parts
    assert "undo" not in [need.name for need in parts]


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ((), 40 + 6),  # five epochs of eight prompts, and those held out
        (("run.epochs=0",), 8 + 6),
        (("run.epochs=50",), 50 + 6),  # no more than there are
        (("sampling.refill=1",), 50 + 6),
        (("run.epochs=1", "sampling.refill=2"), 24 + 6),
        (("eval.every=0",), 40),
    ],
)
def test_conditions_are_those_of_the_rows_that_a_run_may_draw(
    spec: Path, checkpoints: dict[str, Path], changes: tuple[str, ...], rows: int
) -> None:
    for name, count in (("train.txt", 50), ("eval.txt", 6)):
        (spec.parent / name).write_text("".join(f"prompt {number}\n" for number in range(count)))
    each, all_of_them = (
        estimate(spec_of(spec, checkpoints["flux"], "flux", "run.epochs=5", "sampling.prompts=8", *more))["conditions"]
        for more in (("run.epochs=1", "sampling.prompts=2", "eval.every=0"), changes)
    )
    assert all_of_them == rows * (each or 0) // 2


def test_what_was_not_downloaded_is_unknown_and_the_hubs_cache_is_looked_at(
    spec: Path, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = load_spec(spec, Registry())
    (only,) = estimate(made).parts
    assert (only.bytes, estimate(made).phases) == (None, ())
    assert "some-org/some-model is not on this disk" in only.reason
    repository = tmp_path / "models--some-org--some-model"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots" / "0123").symlink_to(checkpoints["diffusers"])
    assert estimate(made)["vae"] == estimate(spec_of(spec, checkpoints["diffusers"], "diffusers"))["vae"]


def test_shards_and_variants(tmp_path: Path) -> None:
    """What is counted is what is read: every shard, and no second copy in another number format."""
    network = torch.nn.Linear(3, 5)
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    state = network.state_dict()
    save_file({"weight": state["weight"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"bias": state["bias"]}, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
    save_file({"weight": state["weight"].half()}, folder / "model.fp16.safetensors")
    assert Folder(tmp_path).read("transformer", None).shapes == {"weight": (5, 3), "bias": (5,)}  # type: ignore[union-attr]


def kept(adapter: Adapter[Any], spec: Spec, batch: int) -> int:
    """Bytes autograd keeps of one velocity."""
    size = spec.sampling.size
    conditions = adapter.encode([Row("a cat", "a dog")] * batch)
    x = Draws([(0, i) for i in range(batch)]).normal(*adapter.latent_shape(size))
    level = adapter.sigmas(spec.sampling.steps, size)[1]
    weights = {p.untyped_storage().data_ptr() for n in adapter.networks().values() for p in n.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        v = adapter.velocity(x, level.expand(batch), conditions, spec.sampling.guidance, size)
    assert v.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@attrs.frozen
class Published:
    """A model at its real size: the classes' own defaults, which are those of the first checkpoint.

    tokens: of one sample, with `text` ones if they pass through the same layers.
    """

    network: str
    vae: str
    size: str
    tokens: int
    width: int
    layers: int
    more: dict[str, Any] = attrs.field(factory=dict)


TEXT = 512
EIGHTH = {"block_out_channels": [1] * 4, "latent_channels": 16}
PUBLISHED = [
    Published("FluxTransformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 3072, 57, EIGHTH),
    Published("ChromaTransformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 3072, 57, EIGHTH),
    Published("ZImageTransformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 3840, 32, EIGHTH),
    Published("Lumina2Transformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 2304, 28, EIGHTH),
    Published("CogView4Transformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 2560, 30, EIGHTH),
    Published("Krea2Transformer2DModel", "AutoencoderKLQwenImage", "1024", 4096 + TEXT, 6144, 28),
    Published("QwenImageTransformer2DModel", "AutoencoderKLQwenImage", "1024", 4096 + TEXT, 3072, 60),
    Published("Flux2Transformer2DModel", "AutoencoderKLFlux2", "1024", 4096 + TEXT, 6144, 56),
    Published("AuraFlowTransformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 3072, 36, EIGHTH),
    Published("SanaTransformer2DModel", "AutoencoderDC", "1024", 1024, 2240, 20),
    Published("HiDreamImageTransformer2DModel", "AutoencoderKL", "1024", 4096 + TEXT, 2560, 48, EIGHTH | {
        "caption_channels": [4096, 4096]}),
    Published("HunyuanImageTransformer2DModel", "AutoencoderKLHunyuanImage", "2048", 4096 + TEXT, 3584, 62, {
        "latent_channels": 64, "spatial_compression_ratio": 32}),
    Published("HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo", "[720, 1280, 129]", 118_800 + TEXT, 3072,
        62),
    Published("HunyuanVideo15Transformer3DModel", "AutoencoderKLHunyuanVideo15", "[480, 832, 121]", 48_360 + TEXT, 2048,
        56),
    Published("LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo", "[512, 768, 121]", 6144, 2048, 28),
    Published("LTX2VideoTransformer3DModel", "AutoencoderKLLTX2Video", "[512, 768, 121]", 6144, 4096, 48),
    Published("MochiTransformer3DModel", "AutoencoderKLMochi", "[480, 848, 163]", 44_520 + TEXT, 3072, 48),
    Published("WanTransformer3DModel", "AutoencoderKLWan", "[480, 832, 81]", 32_760, 5120, 40),
    Published("Kandinsky5Transformer3DModel", "AutoencoderKLHunyuanVideo", "[512, 768, 121]", 47_616, 2048, 34),
]  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.network)
def test_every_familys_size_is_known_from_its_configs(model: Published, spec: Path) -> None:
    def defaults(name: str) -> dict[str, Any]:
        takes = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
        return {p.name: p.default for p in takes if p.default is not inspect.Parameter.empty}

    parts = {"transformer": defaults(model.network), "vae": defaults(model.vae)}
    parts = {name: json.loads(json.dumps(config | model.more)) for name, config in parts.items()}
    made = load_spec(spec, Registry(), ("model.name=diffusers", f"sampling.size={model.size}"))
    at = geometry(made.model.spec, made.sampling.size, {name: Part({}, config) for name, config in parts.items()})
    assert (at.tokens, at.width, at.layers) == (model.tokens, model.width, model.layers)
    assert at.caption > 0


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.image])
def test_activations_of_every_family(name: str, spec: Path, tmp_path: Path) -> None:
    """Within a factor of what autograd keeps; latents exactly."""
    family = FAMILIES[name]
    family.make().save_pretrained(tmp_path / "model")
    larger = attrs.evolve(family.size, height=2 * family.size.height, width=2 * family.size.width)
    size = [larger.height, larger.width, *([larger.frames] if larger.frames > 1 else [])]
    sets = [f"sampling.size={size}", f"sampling.guidance={family.guidance}", "optimizer.micro_batch=1"]
    sets += [f"model.max_sequence_length={family.max_sequence_length}"] if family.max_sequence_length else []
    made = spec_of(spec, tmp_path / "model", "diffusers", *sets)
    adapter = adapter_of(made)
    weights = loaded(made, adapter)
    guess = estimate(made)
    assert guess["trained"] == sum(p.nbytes for p in weights.parameters.values())
    parts = checkpoint.parts(checkpoint.Folder(tmp_path / "model"), made.model.spec)
    assert geometry(made.model.spec, made.sampling.size, parts).elements == math.prod(adapter.latent_shape(larger))
    assert 0.4 < (guess["update_activations"] or 0) / kept(adapter, made, 1) < 3, (
        "text is taken to be as long as it may be"
    )


def test_what_is_unknown_is_in_no_sum_and_no_reason(spec: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoints["diffusers"], tmp_path / "model"))
    config = model / "transformer/config.json"
    config.write_text(
        json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "num_attention_heads"})
    )
    guess = estimate(spec_of(spec, model, "diffusers"))
    assert guess["update_activations"] is None
    reasons = {need.name: need.reason for need in guess.phases}
    assert reasons["update"] == "frozen + trained + moments + sets + vae + gradients + copies"
    names = [*reasons["update"].split(" + ")]
    assert guess["update"] == sum(guess[name] or 0 for name in names)
