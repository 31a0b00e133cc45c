"""What `make gpu` measures, a function for each part: it makes what it needs in a folder, and returns rows of figures.

`tiny` asks for the smallest sizes, at which every part runs on a CPU in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import made
import torch
from accelerate.state import AcceleratorState
from flowfactory.cli.main import main
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.running import resolved
from flowfactory.contracts.reward import DifferentiableReward
from flowfactory.contracts.types import Row as Prompt
from flowfactory.contracts.types import Sample
from flowfactory.discovery.registry import Registry
from flowfactory.plan.estimate import estimate
from flowfactory.plan.plan import make_plan
from flowfactory.policy.weights import masters
from flowfactory.processes import sharding
from flowfactory.processes.distributed import numbered
from flowfactory.rewards.asking import Asked
from flowfactory.rewards.scoring import FunctionReward, Judge
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import RewardEntry
from flowfactory.training import exact
from flowfactory.training.bench import Bench, bench
from flowfactory.training.encoding import load_model
from safetensors.torch import load_file

Row = dict[str, Any]
"""`what` was measured, and figures by name."""

SPEC = """
plugins = ["./rewards.py"]
run = {{ name = "gpu", epochs = 1, save_samples = 0, precision = "bf16" }}
model = {{ name = "{family}", path = "{path}" }}
lora = {{ rank = 64, alpha = 128 }}
data = {{ prompts = "prompts.txt" }}
sampling = {{ size = {size}, steps = {steps}, prompts = {prompts}, group = {group}, micro_batch = {batch}, \
guidance = {guidance} }}
scheduler = {{ name = "flow-sde", eta = 0.7, window = {{ rule = "list", steps = [1, 2] }} }}
trainer = {{ name = "grpo" }}
optimizer = {{ lr = 1e-5, micro_batch = {batch}, ema = 0.0 }}
eval = {{ every = 0 }}
memory = {{ {memory} }}

[[reward]]
name = "eye"
layers = {layers}
width = {width}
"""

REWARDS = Path(__file__).with_name("rewards.py")


@attrs.frozen(kw_only=True)
class Setting:
    """A geometry: of a family, at published sizes or at tiny ones."""

    family: str
    sizes: made.Sizes
    tiny: bool
    size: Any = 512
    steps: int = 6
    prompts: int = 2
    group: int = 8
    batch: int = 8
    guidance: float = 1.0
    memory: str = "gradient_checkpointing = true"
    layers: int = 2
    width: int = 1280

    def written(self, folder: Path) -> Path:
        """The spec, with its checkpoint and its prompts."""
        registry, checkpoint = Registry(), folder / "checkpoint"
        adapter: Any = registry.target("adapters", self.family)
        adapter.tiny(checkpoint)
        if not self.tiny:
            made.resize(checkpoint, self.sizes)
            if self.family == "qwen-image":
                made.resize_text_of_qwen(checkpoint)
        (folder / "prompts.txt").write_text("a cat\na dog on the moon\na red bird\n" * 16)
        (folder / "rewards.py").write_text(REWARDS.read_text())
        own = attrs.asdict(self, recurse=False)
        if self.tiny:
            video = self.family == "wan"
            own |= {"size": [32, 32, 5] if video else 32, "steps": 4, "prompts": 1, "group": 2}
            own |= {"batch": 2, "layers": 1, "width": 32}
        file = folder / "spec.toml"
        file.write_text(SPEC.format(path=checkpoint, **own))
        return file


# --- measuring -----------------------------------------------------------------------------------------------------


def measured(folder: Path, setting: Setting, *sets: str, cached: bool = True, warmup: int = 1) -> Bench:
    """Epochs of a spec with some changes: `warmup` that do not count, and one that does."""
    registry = Registry()
    folder.mkdir(parents=True)
    spec = load_spec(setting.written(folder), registry, sets)
    try:
        plan = make_plan(spec, registry.versions())
        return bench(
            plan, resolved(spec, registry), Ui(quiet=True), 0 if setting.tiny else warmup, 1, made.loading(cached)
        )
    finally:
        AcceleratorState._reset_state(True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def figures(what: str, found: Bench) -> Row:
    """Where the time went, and how fast it was."""
    row: Row = {"what": what, "seconds an epoch": found.seconds, "samples/s": found.samples / found.seconds}
    for phase, seconds in found.network.items():
        row[f"network of {phase} %"] = 100 * seconds / found.phases[phase]
    if found.flops is not None and found.utilisation is not None:
        row |= {"utilisation %": 100 * found.utilisation, "ceiling TFLOP/s": found.flops.ceiling / 1e12}
    return row | {"peak GiB": (found.peak_device or found.peak_rss) / 2**30}


# --- the parts -----------------------------------------------------------------------------------------------------


def ratio(folder: Path, tiny: bool) -> list[Row]:
    """How far ratios are from 1 in the first update, by what differs from sampling; in FLUX's width, cut short."""
    setting = Setting(family="flux", sizes=made.FLUX_SHORT, tiny=tiny, guidance=3.5, memory="", batch=4)
    changes: dict[str, tuple[str, ...]] = {
        "alike": (),
        "smaller micro-batches in the update": ("optimizer.micro_batch=1",),
        "the same, replayed": ("optimizer.micro_batch=1", "trainer.old=replayed"),
        "gradient checkpointing": ("memory.gradient_checkpointing=true",),
        "attention _native_math": ("memory.attention=_native_math",),
    }
    if torch.cuda.is_available():
        kernels = ("_native_flash", "_native_efficient")
        changes |= {f"attention {name}": (f"memory.attention={name}",) for name in kernels}
    rows = []
    for number, (what, sets) in enumerate(changes.items()):
        found = measured(folder / str(number), setting, *sets, warmup=0).training
        names = {"deviation": "train/ratio_deviation", "in clip widths": "train/first_deviation"}
        rows.append({"what": what, **{said: found[name] for said, name in names.items()}})
    return rows


def verbs(folder: Path, tiny: bool) -> list[Row]:
    """What a person types, on the checkpoint of `shapes`: a run, the same again, one resumed, and what follows."""
    few = ["sampling.prompts=2", "sampling.group=2", "sampling.micro_batch=2", "eval.steps=1"] if tiny else []
    sets = [part for each in ["optimizer.lr_schedule=constant", *few] for part in ("--set", each)]
    spec = "flowfactory_plugin_shapes:examples/shapes-grpo.toml"
    one, two, three = (str(folder / name) for name in ("one", "two", "three"))
    typed: dict[str, list[str]] = {
        "run of 2 epochs": ["run", spec, "--folder", one, *sets, "--set", "run.epochs=2"],
        "the same again": ["run", spec, "--folder", two, *sets, "--set", "run.epochs=2"],
        "run of 1 epoch": ["run", spec, "--folder", three, *sets, "--set", "run.epochs=1"],
        "resumed for another": ["resume", three, "--epochs", "2"],
        "evaluate": ["evaluate", one, "--steps", "4"],
        "sample": ["sample", one, "a red circle"],
        "export": ["export", one, "--form", "merged"],
    }
    rows: list[Row] = [{"what": what, "seconds": typing(words)} for what, words in typed.items()]
    rows[1]["difference of weights"] = differing(folder / "one", folder / "two")
    rows[3]["difference of weights"] = differing(folder / "one", folder / "three")
    return rows


def typing(words: Sequence[str]) -> float:
    """The seconds of a command, in this process."""
    start = time.perf_counter()
    if code := main(words):
        raise RuntimeError(f"flowfactory {' '.join(words)} ended with {code}")
    return time.perf_counter() - start


def differing(one: Path, other: Path) -> float:
    """The largest difference of any number in the last checkpoints of two runs."""
    files = [sorted((run / "checkpoints").rglob("*.safetensors")) for run in (one, other)]
    last = [{file.name: load_file(file) for file in each if file.parent == each[-1].parent} for each in files]
    return max(
        float((tensor.double() - last[1][name][key].double()).abs().max())
        for name, tensors in last[0].items()
        for key, tensor in tensors.items()
    )


def rollouts(folder: Path, tiny: bool) -> list[Row]:
    """What makes the network itself faster, in FLUX's width, cut short: merged LoRA, and compiled blocks."""
    setting = Setting(family="flux", sizes=made.FLUX_SHORT, tiny=tiny, guidance=3.5)
    changes: dict[str, tuple[str, ...]] = {
        "LoRA apart": (),
        "LoRA merged while sampling": ("trainer.old=replayed", "sampling.merged=true"),
    }
    if torch.cuda.is_available():
        changes["compiled"] = ("memory.compile=true",)
    rows: list[Row] = []
    for number, (what, sets) in enumerate(changes.items()):
        found = measured(folder / str(number), setting, *sets)
        row: Row = {"what": what} | {f"seconds of {name}": found.phases[name] for name in ("sample", "update")}
        if found.warmup:
            row["seconds of the first epoch"] = found.warmup[0]
        rows.append(row | {"deviation": found.training["train/ratio_deviation"]})
    return rows


def flux(folder: Path, tiny: bool) -> list[Row]:
    """FLUX.1-dev at its size, LoRA of rank 64, 512 x 512."""
    setting = Setting(family="flux", sizes=made.FLUX, tiny=tiny, guidance=3.5)
    return [figures("FLUX.1-dev, LoRA 64, 512 x 512", measured(folder / "a", setting))]


def preprocessing(folder: Path, tiny: bool) -> list[Row]:
    """The same with a reward as large as PickScore and whole text encoders: prompts encoded once, or every epoch."""
    setting = Setting(family="flux", sizes=made.FLUX_WHOLE, tiny=tiny, guidance=3.5, layers=32, prompts=4, group=2)
    kept = measured(folder / "kept", setting)
    anew = measured(folder / "anew", setting, cached=False)
    rows = [figures("encoded once", kept), figures("encoded in every epoch, encoders stay", anew)]
    faster, less = anew.seconds / kept.seconds, 1 - rows[0]["peak GiB"] / rows[1]["peak GiB"]
    return [*rows, {"what": "of the two", "times as fast": faster, "less memory %": 100 * less}]


def qwen(folder: Path, tiny: bool) -> list[Row]:
    """Qwen-Image at its size: LoRA of rank 64, 512 x 512, guidance 4, 10 steps of which 2 are trained."""
    setting = Setting(family="qwen-image", sizes=made.QWEN, tiny=tiny, guidance=4.0, steps=10, group=4, batch=4)
    return [figures("Qwen-Image, LoRA 64, 512 x 512, guidance 4, 10 steps", measured(folder / "a", setting))]


def wan(folder: Path, tiny: bool) -> list[Row]:
    """Wan 2.1 1.3B, 81 frames of 480 x 832."""
    setting = Setting(
        family="wan", sizes=made.WAN, tiny=tiny, size=[480, 832, 81], steps=4, prompts=1, group=2, batch=1, guidance=1.0
    )
    return [figures("Wan 2.1 1.3B, 81 frames of 480 x 832", measured(folder / "a", setting, warmup=0))]


def memory(folder: Path, tiny: bool) -> list[Row]:
    """What FLUX.1-dev takes with all that saves memory, beside what is planned for it."""
    saving = 'gradient_checkpointing = true, offload = ["vae", "rewards", "trajectories"]'
    setting = Setting(family="flux", sizes=made.FLUX, tiny=tiny, guidance=3.5, memory=saving)
    found = measured(folder / "a", setting, "optimizer.bits=8")
    registry = Registry()
    spec = load_spec(folder / "a" / "spec.toml", registry, ["optimizer.bits=8"])
    known = exact.parts(exact.model(spec, registry.target("adapters", spec.model.name)))
    return [
        {"what": f"in {need.name}", "planned GiB": need.bytes / 2**30, "measured GiB": found.memory[need.name] / 2**30}
        for need in estimate(spec, known=known).phases
        if need.bytes is not None and need.name in found.memory
    ]


def streaming(folder: Path, tiny: bool) -> list[Row]:
    """FLUX.1-dev with its blocks in main memory, and what is planned of that."""
    return offloaded(folder, tiny, "weights", warmup=1)


def resting(folder: Path, tiny: bool) -> list[Row]:
    """The same with AdamW's moments there too, and all else that can be."""
    return offloaded(folder, tiny, "weights", "optimizer", "vae", "rewards", "trajectories", warmup=0)


def offloaded(folder: Path, tiny: bool, *what: str, warmup: int) -> list[Row]:
    """An epoch with some things in main memory; the peak is that of all phases but of loading, which is made here."""
    saving = f"gradient_checkpointing = true, offload = {[*what]}"
    setting = Setting(family="flux", sizes=made.FLUX, tiny=tiny, guidance=3.5, memory=saving)
    found, registry = measured(folder / "a", setting, warmup=warmup), Registry()
    spec = load_spec(folder / "a" / "spec.toml", registry)
    known = exact.parts(exact.model(spec, registry.target("adapters", spec.model.name)))
    row = figures(f"FLUX.1-dev, LoRA 64, 512 x 512, {' and '.join(what)} in main memory", found)
    row["peak GiB"] = max(size for phase, size in found.memory.items() if phase != "load") / 2**30
    for need in estimate(spec, known=known).phases:
        if need.bytes is not None and need.name in found.memory:
            row[f"{need.name} planned GiB"] = need.bytes / 2**30
            row[f"{need.name} measured GiB"] = found.memory[need.name] / 2**30
    return [row]


def kinds(folder: Path, tiny: bool) -> list[Row]:
    """What computes otherwise on a GPU than elsewhere, on the smallest checkpoints: that it works there."""
    runs: dict[str, tuple[str, ...]] = {
        "plain": (),
        "8-bit optimizer": ("optimizer.bits=8",),
        "nf4": ("model.quantize=nf4",),
        "int8": ("model.quantize=int8",),
        "offload": ("memory.offload=['vae', 'rewards', 'trajectories']",),
        "streamed weights": ("memory.offload=['weights']",),
        "streamed, with gradient checkpointing": ("memory.offload=['weights']", "memory.gradient_checkpointing=true"),
        "optimizer's state in main memory": ("memory.offload=['optimizer']",),
    }
    if torch.cuda.is_available():
        runs["fp16"] = ("run.precision=fp16",)
    rows: list[Row] = []
    for name, sets in runs.items():
        home = folder / name.replace(" ", "-")
        home.mkdir(parents=True)
        registry = Registry()
        spec = load_spec(Setting(family="flux", sizes={}, tiny=True).written(home), registry, sets)
        spec = attrs.evolve(spec, memory=attrs.evolve(spec.memory, cache=str(home / "cache")))
        found = bench(make_plan(spec, registry.versions()), resolved(spec, registry), Ui(quiet=True), 0, 1, load_model)
        rows.append({"what": name, "gradient": found.training["train/gradient_norm"], "seconds": found.seconds})
        AcceleratorState._reset_state(True)
    return [*rows, divided(), scored_meanwhile(), scored_where_they_are()]


def scored_meanwhile() -> Row:
    """A reward that is asked while products lie in the queue: seconds to its answer, and to theirs; scores twice."""
    device = numbered("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network, large = (
        torch.nn.Linear(64, 1).to(device),
        torch.randn(4096 if device.type == "cuda" else 64, device=device),
    )
    reward = FunctionReward(lambda samples: network(torch.stack([s.latents for s in samples])).flatten().tolist())
    entry = RewardEntry(name="linear", label="linear", spec=None, micro_batch=1)
    asked, product = Asked(entry, reward), torch.outer(large, large)
    asked.device = device
    asked.begin()
    rows = torch.randn(8, 64, device=device)
    samples = [Sample(Prompt("a"), torch.empty(0), number, 0, latents=row) for number, row in enumerate(rows)]
    asked.follow()
    alone = asked.ask(samples)
    start = time.perf_counter()
    for _ in range(200):
        product = torch.tanh(product @ product)
    meanwhile = asked.ask(samples)
    answered = time.perf_counter() - start
    product.sum().item()
    difference = max(abs(a - b) for a, b in zip(alone.scores, meanwhile.scores, strict=True))
    done = time.perf_counter() - start
    return {"what": "scored while products compute", "difference": difference, "seconds": answered, "products": done}


class Brightness(DifferentiableReward):
    """The mean of an image, and where images lay."""

    seen: str = ""

    def value(self, media: torch.Tensor, rows: Sequence[Prompt]) -> torch.Tensor:
        self.seen = str(media.device)
        return media.float().mean((1, 2, 3))


def scored_where_they_are() -> Row:
    """A reward that scores by `value`: where media lie that stay, and how far its scores are from main memory's."""
    device = numbered("cuda" if torch.cuda.is_available() else "cpu")
    judge = Judge([RewardEntry(name="mean", label="mean", spec=None)], {"mean": Brightness}, {})
    judge.load(device, torch.float32)
    media = torch.rand(4, 3, 64, 64, device=device)
    scores, places = [], []
    for shown in (media if judge.scores_on(device) else media.cpu(), media.cpu()):
        samples = [Sample(Prompt("a"), one, number, 0) for number, one in enumerate(shown)]
        scores.append(judge.score(samples)["mean"])
        places.append(judge.rewards[0].reward.seen)  # type: ignore[attr-defined]
    difference = float((scores[0] - scores[1]).abs().max())
    return {"what": f"scored where media are, on {' and '.join(places)}", "difference": difference}


def divided() -> Row:
    """A network divided among one process: its answers and gradients beside those of the whole one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh(device.type, (1,))
        torch.manual_seed(0)
        blocks = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(2)])
        whole = Stacked(blocks).to(device)
        halves = Stacked(torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(2)])).to(device)
        halves.load_state_dict(whole.state_dict())
        sharding.divide(halves, mesh, masters)
        x, gradients = torch.randn(4, 16, device=device), []
        for network in (whole, halves):
            network(x).square().sum().backward()
            gradients.append(torch.cat([sharding.whole(p.grad).flatten() for p in network.parameters()]))
        return {"what": "divided (FSDP2), one process", "difference": float((gradients[0] - gradients[1]).abs().max())}
    finally:
        torch.distributed.destroy_process_group()


class Stacked(torch.nn.Module):
    """Layers one after the other."""

    def __init__(self, blocks: torch.nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


PARTS: Mapping[str, Callable[[Path, bool], Sequence[Row]]] = {
    part.__name__: part
    for part in (ratio, flux, preprocessing, qwen, wan, memory, kinds, rollouts, streaming, resting, verbs)
}
"""In the order of their value."""


def timed(name: str, folder: Path, tiny: bool) -> tuple[Sequence[Row], float]:
    """The rows of a part, and the seconds that it took."""
    start = time.perf_counter()
    return PARTS[name](folder, tiny), time.perf_counter() - start
