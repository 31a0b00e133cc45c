"""The tap against many pipelines, each called as its users do: what they compute, of models it knows nothing of.

Every number here is compared bit for bit, in float32, but for batches: some processors' matrix products round otherwise
in another batch shape. The differences found make the table in `docs/families.md`; `FLOWFACTORY_WRITE_DOCS=1` writes it
anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES, Family, loud
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.types import Conditions, Row
from flowfactory.errors import RunError
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.models.tap import networks, parameters
from more_families import EVERY, OFTEN
from oracle import Run, lora_without_gradient, run
from PIL import Image
from trained import Trained, train

pytestmark = pytest.mark.slow

STEPS, LONGER = 3, 12
PROMPTS = (("a cat", "blurry"), ("two dogs left of a red house", ""))
LAST = "transformer.transformer_blocks.1.attn"
LEADS_NOWHERE = {
    "sd3": {f"{LAST}.add_q_proj"},
    "sd3-pag": {f"{LAST}.add_q_proj"},
    "hunyuan-video-1.5-i2v": {f"transformer.transformer_blocks.0.attn.{name}" for name in ("add_q_proj", "to_add_out")},
    "hunyuan-video-1.5": {f"transformer.transformer_blocks.0.attn.{name}" for name in ("add_q_proj", "to_add_out")},
    "joyimage-edit": {"transformer.double_blocks.1.attn.txt_attn_proj"},
    "joyimage-edit-plus": {"transformer.double_blocks.1.attn.txt_attn_proj"},
    "mochi": {f"{LAST}1.add_q_proj"},
    "z-image-omni": {f"transformer.siglip_refiner.0.attention.to_{name}" for name in ("q", "k", "v", "out.0")},
    "qwen-image": {f"{LAST}.add_q_proj", f"{LAST}.to_add_out"},
    "qwen-image-edit": {f"{LAST}.add_q_proj", f"{LAST}.to_add_out"},
    "qwen-image-edit-plus": {f"{LAST}.add_q_proj", f"{LAST}.to_add_out"},
}
"""Layers whose results their own networks discard, what the last block makes of the text; or that see images alone."""

ROUNDS_LATER = {"hunyuan-video", "hunyuan-skyreels-i2v"}
"""In bfloat16 the latents of this pipeline, and so its timesteps, are float32 in the first step and bfloat16 after."""

OF_ONE_SHAPE = {
    "hunyuan-video-1.5-i2v",
    "joyimage-edit",
    "kandinsky-5-edit",
    "kandinsky-5-image",
    "longcat-image-edit",
}
"""Its rows' images have the shape of what is made; or there is a list of sizes, here of one."""

OF_ANY_FRAMES = {"cosmos-2.5"}
"""It repeats frames until there are as many as were asked for."""

SINGLY = ("skyreels-v2-forcing", "prx", "prx-pixel")
"""Families whose pipelines fail with several rows of one noise level, in diffusers, too."""

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder", "vision_language_encoder")

TABLE = Path(__file__).parents[3] / "docs" / "families.md"
EXPORTS = {"LoRA": "lora", "kohya": "kohya", "merged": "merged"}
COLUMNS = ("sigmas", "velocity", "12 steps", "bf16", "rollout", "decode", "batch", "cache", "gradients", *EXPORTS)
ALL = "FLOWFACTORY_EVERY_COLUMN"
"""Set: measure every family and every column, not only what is measured in every run."""
RULE = "|---" * (2 + len(COLUMNS)) + "|\n"
measured: dict[str, dict[str, str]] = {}
"""By family and column of the table."""


@attrs.frozen(eq=False)
class Case:
    """An adapter, its rows, and what the pipeline made of each row by itself."""

    name: str
    family: Family
    adapter: PipelineAdapter
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]

    def expect(self, column: str, ours: torch.Tensor, theirs: torch.Tensor, rounding: float = 0.0) -> None:
        """Note the largest difference; there must be none beyond `rounding`, a share of the largest value."""
        assert ours.shape == theirs.shape
        difference = float((ours - theirs).abs().max())
        assert difference <= rounding * float(theirs.abs().max())
        largest = max(0.0 if rounding else difference, float(measured[self.name].get(column, 0)))
        note(self.name, column, f"{largest:g}")


@pytest.fixture(scope="module", params=EVERY if os.environ.get(ALL) else OFTEN)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_condition_images: None
) -> Case:
    family, folder = EVERY[request.param], tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    pipe = family.make()
    if request.param not in FAMILIES:
        for part in networks(pipe).values():
            loud(part)
    pipe.save_pretrained(folder)
    paths = [folder / "wide.png", folder / "tall.png"]
    for path, shape in zip(paths, family.shapes, strict=True):
        Image.linear_gradient("L").convert("RGB").resize(shape).save(path)
    images = [tuple((paths[i:] + paths[:i])[: family.image]) for i in range(2)]
    prompts = [(family.asks(prompt), negative) for prompt, negative in PROMPTS]
    rows = tuple(Row(*both, image) for both, image in zip(prompts, images, strict=True))
    adapter = load(family, folder)
    adapter.encode(rows[:1])  # as core does before it looks at a size
    note(request.param, "pipeline", type(adapter.pipe).__name__)
    return Case(request.param, family, adapter, rows, tuple(by_diffusers(family, folder, row) for row in rows))


def load(
    family: Family, folder: Path, dtype: torch.dtype = torch.float32, encoded: Conditions | None = None
) -> PipelineAdapter:
    spec = PipelineSpec(path=str(folder), max_sequence_length=family.max_sequence_length, true_cfg=family.true_cfg)
    adapter = PipelineAdapter(spec)
    adapter.load(torch.device("cpu"), dtype, encoded)
    return adapter


def by_diffusers(family: Family, folder: Path, row: Row, dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Run:
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    if "vae" in pipe.components:  # as adapters do; torch's linear layers round differently when weights are trainable
        pipe.vae.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    takes = parameters(pipe)
    arguments = {"height": family.size.height, "width": family.size.width, "num_frames": family.size.frames}
    arguments["frames"] = family.size.frames
    if family.max_sequence_length is not None:
        arguments["max_sequence_length"] = family.max_sequence_length
    if "true_cfg_scale" not in takes or "true_cfg_scale" in family.arguments:
        arguments["negative_prompt"] = row.negative_prompt
    arguments = {name: value for name, value in arguments.items() if name in takes} | family.arguments
    if family.image:
        given = [Image.open(path) for path in row.images]
        arguments["image"] = given if len(given) > 1 else given[0]
    with tap.steady_vae(pipe):  # else what some make of an image is drawn anew in every call
        made = run(pipe, prompt=row.prompt, num_inference_steps=steps, **arguments)
    latents, velocities = (list(map(family.trained, stepped)) for stepped in (made.latents, made.velocities))
    return attrs.evolve(made, latents=latents, velocities=velocities)


def test_sigmas_and_shape(case: Case) -> None:
    for reference in case.runs:
        case.expect("sigmas", case.adapter.sigmas(STEPS, case.family.size), reference.sigmas)
        assert case.adapter.latent_shape(case.family.size) == reference.latents[0].shape[1:]


def test_velocity_at_every_step(case: Case) -> None:
    for row, reference in zip(case.rows, case.runs, strict=True):
        conditions = case.adapter.encode([row])
        for i, v in enumerate(reference.velocities):
            case.expect("velocity", velocity(case, reference.latents[i], reference.sigmas[i : i + 1], conditions), v)


def test_velocity_of_a_longer_run(case: Case) -> None:
    """At every step: there are pipelines that do something else from the sixth on."""
    row, size = case.rows[0], case.family.size
    reference = by_diffusers(case.family, Path(case.adapter.spec.path), row, steps=LONGER)
    conditions = case.adapter.encode([row])
    case.adapter.sigmas(LONGER, size)
    for i, v in enumerate(reference.velocities):
        case.expect("12 steps", velocity(case, reference.latents[i], reference.sigmas[i : i + 1], conditions), v)


def test_velocity_in_bfloat16(case: Case) -> None:
    """At every step of a longer run, and in the first from latents in bfloat16 too, as core hands them over."""
    family, folder, row = case.family, Path(case.adapter.spec.path), case.rows[0]
    reference = by_diffusers(family, folder, row, torch.bfloat16, LONGER)
    half = attrs.evolve(case, adapter=load(family, folder, torch.bfloat16))
    conditions = half.adapter.encode([row])
    half.adapter.sigmas(LONGER, family.size)
    for i in range(1 if case.name in ROUNDS_LATER else LONGER):
        for x in [reference.latents[i], *([reference.latents[i].bfloat16()] if i == 0 else [])]:
            v = velocity(half, x, reference.sigmas[i : i + 1], conditions)
            assert torch.equal(v, reference.velocities[i])
    note(case.name, "bf16", "0 in the first step" if case.name in ROUNDS_LATER else "0")


def test_frames_that_it_cannot_make_are_refused(case: Case) -> None:
    size = case.family.size
    if size.frames > 1 and case.name not in OF_ANY_FRAMES:
        with pytest.raises(tap.Refused, match=f" with {size.frames + 1} frames; asked for it, it makes .* frames"):
            case.adapter.latent_shape(attrs.evolve(size, frames=size.frames + 1))


def test_height_and_width_are_not_exchanged(case: Case) -> None:
    """Two are measured at the other size in every run; but for these, all have one that is not square."""
    if case.name not in ("sd3", "wan"):
        unless_asked(case, "the size that is turned")
    size = attrs.evolve(case.family.size, height=case.family.size.width, width=case.family.size.height)
    turned = attrs.evolve(case, family=attrs.evolve(case.family, size=size))
    if case.name in OF_ONE_SHAPE:
        with pytest.raises(tap.Refused):
            case.adapter.sigmas(STEPS, size)
        return
    reference = by_diffusers(turned.family, Path(case.adapter.spec.path), case.rows[0])
    assert torch.equal(case.adapter.sigmas(STEPS, size), reference.sigmas)
    conditions = case.adapter.encode(case.rows[:1])
    for i, v in enumerate(reference.velocities):
        assert torch.equal(velocity(turned, reference.latents[i], reference.sigmas[i : i + 1], conditions), v)
    assert torch.equal(case.adapter.decode(reference.latents[-1], size), reference.media)


def test_rollout_by_the_pipelines_own_sampler(case: Case) -> None:
    for row, reference in zip(case.rows, case.runs, strict=True):
        conditions, x = case.adapter.encode([row]), reference.latents[0]
        sampler = DiffusionPipeline.from_pretrained(case.adapter.spec.path).scheduler
        sampler.set_timesteps(STEPS, **({"mu": 0.0} if sampler.config.get("use_dynamic_shifting") else {}))
        scheduled = case.adapter._schedule(STEPS, case.family.size)
        sampler.sigmas, sampler.timesteps = scheduled
        for sigma, timestep in zip(*scheduled, strict=False):
            x = sampler.step(velocity(case, x, sigma[None], conditions), timestep, x, return_dict=False)[0]
        case.expect("rollout", x, reference.latents[-1])


def test_decode(case: Case) -> None:
    for reference in case.runs:
        case.expect("decode", case.adapter.decode(reference.latents[-1], case.family.size), reference.media)
    both = case.adapter.decode(torch.cat([reference.latents[-1] for reference in case.runs]), case.family.size)
    media = torch.cat([reference.media for reference in case.runs])
    torch.testing.assert_close(both, media, atol=4e-3, rtol=0)  # Cosmos rounds to 8 bits


def test_a_batch_is_its_rows(case: Case) -> None:
    """Prompts of different lengths and noise levels of different rows, in one batch, with the first row once more."""
    encoded, runs = [case.adapter.encode([row]) for row in case.rows], [*enumerate(case.runs), (0, case.runs[0])]
    conditions = case.adapter.collate([*encoded, encoded[0]])
    x = torch.cat([reference.latents[i] for i, reference in runs])
    sigma = torch.stack([reference.sigmas[i] for i, reference in runs])
    v = torch.cat([reference.velocities[i] for i, reference in runs])
    case.expect("batch", velocity(case, x, sigma, conditions), v, rounding=3e-6)
    assert ("velocity" in case.adapter._singly) == (case.name in SINGLY)


def test_nothing_draws_from_the_global_generator(case: Case) -> None:
    reference, state = case.runs[0], torch.get_rng_state()
    conditions = case.adapter.encode(case.rows[:1])
    velocity(case, reference.latents[0], reference.sigmas[:1], conditions)
    case.adapter.decode(reference.latents[-1], case.family.size)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_levels_between_those_of_a_schedule(case: Case) -> None:
    """The network is told what the pipeline tells it at the neighbouring levels, or something between."""
    size = case.family.size
    survey = case.adapter._survey(size)
    middle = 0.5 * (survey.sigmas[500] + survey.sigmas[501])
    told = case.adapter._timestep(float(middle), size)
    assert survey.timesteps[501] - 1 <= told <= survey.timesteps[500] + 1


@torch.no_grad()
def test_all_is_the_same_without_encoders(case: Case) -> None:
    """As in a run whose prompts were all in the cache."""
    one, size = case.adapter, case.family.size
    conditions = one.encode(case.rows[:1])
    other = load(case.family, Path(one.spec.path), encoded=conditions)
    assert not {part for part in ENCODERS if other.pipe.components.get(part) is not None}
    assert other.latent_shape(size) == one.latent_shape(size)
    case.expect("cache", other.sigmas(4, size), one.sigmas(4, size))
    x, sigma = case.runs[0].latents[0], one.sigmas(4, size)[1:2]
    case.expect(
        "cache", velocity(attrs.evolve(case, adapter=other), x, sigma, conditions), velocity(case, x, sigma, conditions)
    )
    case.expect("cache", other.decode(x, size), one.decode(x, size))


def test_gradients(case: Case) -> None:
    """Last, since it changes the networks: every expert is reached, and what is not leads nowhere."""
    if case.name not in FAMILIES:
        unless_asked(case, "gradients")
    conditions = case.adapter.collate([case.adapter.encode([row]) for row in case.rows])
    x = torch.cat([reference.latents[0] for reference in case.runs])
    sigma = case.runs[0].sigmas[[0, -2]]
    idle = lora_without_gradient(case.adapter, x, sigma, conditions, case.family.guidance, case.family.size)
    assert {name.partition(".lora_")[0] for name in idle} == LEADS_NOWHERE.get(case.name, set())
    note(case.name, "gradients", f"all but {len(idle) // 2}" if idle else "all")


@pytest.fixture(scope="module")
def trained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("trained"), case.name)


@pytest.mark.parametrize("column", EXPORTS)
def test_what_was_exported_is_read_back(case: Case, column: str, request: pytest.FixtureRequest) -> None:
    if column != "LoRA" or case.name not in FAMILIES:
        unless_asked(case, column)
    run: Trained = request.getfixturevalue("trained")
    try:
        difference = run.export(EXPORTS[column]).difference
    except RunError as error:
        if not any(why in str(error) for why in ("loads no LoRA", "there is no kohya layout")):
            raise
        return note(case.name, column, "refused")
    assert difference <= 1e-5
    note(case.name, column, "< 1e-5" if difference else "0")


def unless_asked(case: Case, column: str) -> None:
    if not os.environ.get(ALL):
        pytest.skip(f"{column} of {case.name} is measured where {ALL} is set")


def test_the_table_has_every_family() -> None:
    """Last, since it writes the table where it is asked to."""
    if os.environ.get("FLOWFACTORY_WRITE_DOCS"):
        lines = [
            f"| `{name}` | `{cell(name, 'pipeline')}` | {' | '.join(cell(name, column) for column in COLUMNS)} |"
            for name in EVERY
            if name in measured or name in documented()
        ]
        head, _, after = TABLE.read_text().partition(RULE)
        TABLE.write_text(f"{head}{RULE}{chr(10).join(lines)}{after[after.index(chr(10) * 2) :]}")
    assert list(documented()) == list(EVERY)


def cell(family: str, column: str) -> str:
    """What was measured, or else what the table says."""
    kept = dict(zip(("pipeline", *COLUMNS), documented().get(family, ()), strict=False))
    return measured.get(family, {}).get(column) or kept.get(column, "–")


def documented() -> dict[str, list[str]]:
    """The cells of the table by family, the pipeline's first."""
    rows = TABLE.read_text().partition(RULE)[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]
    return {name: rest for name, *rest in cells}


def note(family: str, column: str, value: str) -> None:
    """A number of the table; it has to be what is documented, unless the table is written anew."""
    measured.setdefault(family, {})[column] = value
    if not os.environ.get("FLOWFACTORY_WRITE_DOCS"):
        assert documented()[family][("pipeline", *COLUMNS).index(column)] == value


@torch.no_grad()
def velocity(case: Case, x: torch.Tensor, sigma: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    return case.adapter.velocity(x, sigma, conditions, case.family.guidance, case.family.size)
