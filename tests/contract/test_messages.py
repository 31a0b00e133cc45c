"""Every kind of message has a golden text, in `messages.txt`.

After a deliberate change, write them anew with `FLOWFACTORY_WRITE_MESSAGES=1 pytest tests/contract/test_messages.py`
and read the difference.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import attrs
import flowfactory
import pytest
from flowfactory.discovery.entries import Entry, installed_entries
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError, Problem, SpecError
from flowfactory.plan import disk
from flowfactory.plan.plan import make_plan
from flowfactory.processes.traffic import starved
from flowfactory.spec.structure import load_spec
from specs import DISTRIBUTIONS, SPEC, TOY, edited, install, lay

GOLDEN = Path(__file__).parent / "messages.txt"


@attrs.frozen
class Case:
    """A spec with mistakes; `kind` is what the first of its problems is."""

    kind: str
    edits: tuple[tuple[str, str], ...] = ()
    sets: tuple[str, ...] = ()
    unsets: tuple[str, ...] = ()
    toy: tuple[str, str] = ("", "")
    files: Mapping[str, str] = attrs.field(factory=dict)
    world: int = 1
    target: str = ""
    note: bool = False


FREE = ('trajectory="steps", density="gaussian" if self.exact else "any"', 'density="none"')
"""A trainer that asks for no probabilities."""
ONE_BY_ONE = ("sampling.micro_batch=1", "optimizer.micro_batch=1", "memory.shard=true")
FAR = '''

from flowfactory import AdapterSpec


@attrs.frozen(kw_only=True)
class FarSpec(AdapterSpec):
    """An adapter that needs what nobody has."""

    def packages(self):
        return {"far_away": "far-away>=2"}


@hookimpl
def flowfactory_adapters():
    yield Provides("far", FarSpec, "toy:Far", "Far.")


@hookimpl
def flowfactory_trainers'''
FOLLOWING = (
    'Needs(trajectory="steps", density="gaussian" if self.exact else "any")',
    "Needs(scores=False, gradient=2)",
)
EVEN = ("    exact: bool", "    even_calls = True\n    exact: bool")

OFFLINE = (
    'return Needs(trajectory="steps", density="gaussian" if self.exact else "any")',
    'return Needs(source="media", scores=False)',
)
"""A trainer that learns from the data."""
SHOWN = (("train.txt", "a.jsonl"),)
SHOWING = {"a.jsonl": '{"prompt": "a", "media": "b.png"}', "b.png": ""}
FLUX = 'name = "flux"\npath = "./weights"'
HEADER = '{"a.to_k.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}'
CHECKPOINT = {
    "weights/model_index.json": '{"_class_name": "WanPipeline", '
    '"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]}',
    "weights/transformer/config.json": '{"patch_size": [1, 2, 2]}',
    "weights/transformer/x.safetensors": chr(len(HEADER)) + 7 * chr(0) + HEADER + 64 * chr(0),
    "weights/vae/config.json": '{"block_out_channels": [4, 4, 4, 4]}',
    "weights/vae/x.safetensors": chr(2) + 7 * chr(0) + "{}",
}


def weights_file(name: str) -> Mapping[str, str]:
    """A safetensors file of one tensor `(8, 4)`, as far as its header goes."""
    header = f'{{"{name}":{{"dtype":"F32","shape":[8,4],"data_offsets":[0,128]}}}}'
    return {"mine.safetensors": f"{chr(len(header))}{chr(0) * 7}{header}"}


FROM = ("rank = 4", 'rank = 4\nfrom = "./mine.safetensors"')
TEACHER = 'return Needs(trajectory="steps", density="any", loaded={"%s": %s})'
LOOKING = (FOLLOWING[0], 'Needs(trajectory="steps", looks="estimated")')
BRANCHING = (FOLLOWING[0], 'Needs(trajectory="steps", branches=__import__("flowfactory").Branches(2, (0, 5)))')
ROLES = """Needs(roles={%s: __import__("flowfactory").Role(steps=%s)})"""

DATA = 'prompts = "train.txt"\neval_prompts = "eval.txt"\n'
SEVERAL = """
[[data.source]]
name = "signs"
prompts = "signs.txt"
eval_prompts = "eval.txt"

[[data.source]]
name = "other"
prompts = "train.txt"
"""
SOURCES = ((f"[data]\n{DATA}", SEVERAL),)
OF_SOURCES = {"signs.txt": "a sign\nanother\nand a third\n"}

CASES = (
    Case("toml-syntax", edits=(("epochs = 3", "epochs = 3 x"),)),
    Case("toml-syntax", edits=(("every = 1\n", 'every = "1'),)),
    Case("unreadable-file", edits=(("plugins =", 'extends = "absent.toml"\nplugins ='),)),
    Case("bad-extends", edits=(("plugins =", "extends = 3\nplugins ="),)),
    Case(
        "extends-cycle",
        edits=(("plugins =", 'extends = "b.toml"\nplugins ='),),
        files={"b.toml": 'extends = "spec.toml"'},
    ),
    Case("bad-set", sets=("run.epochs",)),
    Case("no-such-entry", sets=("reward[2].weight=1",)),
    Case("not-a-table", sets=("run.name.x=1",)),
    Case("not-a-table", edits=(("[eval]\nevery = 1\n", ""), ("plugins", "eval = 3\nplugins"))),
    Case("nothing-to-unset", unsets=("lora.rnak",)),
    Case("unknown-key", edits=(("epochs = 3", "epoch = 3\nepochs = 3"),)),
    Case("unknown-key", edits=(("rank = 4", "colour = 4"),)),
    Case("unknown-key", edits=(("beta = 0.1", "bata = 0.1"),)),
    Case("unknown-key", edits=(("[eval]", "[evil]"),)),
    Case("missing-key", edits=(("epochs = 3\n", ""),)),
    Case("missing-key", edits=(('name = "toy"\n', ""),)),
    Case("missing-table", unsets=("sampling",)),
    Case("no-reward", unsets=("reward",)),
    Case("group", unsets=("sampling.group",)),
    Case("group", toy=OFFLINE, edits=SHOWN, files=SHOWING, unsets=("reward",)),
    Case(
        "refill",
        toy=OFFLINE,
        edits=SHOWN,
        files=SHOWING,
        sets=("sampling.refill=2",),
        unsets=("sampling.group", "reward"),
    ),
    Case(
        "uncompared",
        toy=OFFLINE,
        edits=SHOWN,
        files=SHOWING,
        sets=("trainer.std=global",),
        unsets=("sampling.group", "reward"),
    ),
    Case("unscored", toy=OFFLINE, edits=SHOWN, files=SHOWING, unsets=("sampling.group",)),
    Case("wrong-type", edits=(("epochs = 3", "epochs = 2.7"),)),
    Case("wrong-type", edits=(("epochs = 3", "epochs = 3\nprecision = 'bf61'"),)),
    Case("wrong-type", edits=(("size = 32", "size = 'large'"),)),
    Case("wrong-type", edits=(("updates = 2", "updates = 2\nbetas = [\n  0.9,\n  '0.99',\n]"),)),
    Case("wrong-type", sets=("sampling.shared_noise=0",)),
    Case("bad-value", edits=(("steps = 8", "steps = 0"),)),
    Case("bad-value", edits=(("target = 0.25", "target = 0.25\nlevel = 10"),)),
    Case("bad-table", edits=(("target = 0.25", "target = 1\nlevel = 5"),)),
    Case("unreadable-type", edits=(("target = 0.25", "level = 1"),), toy=("level: int", "level: complex")),
    Case("no-such-location", edits=(('"train.txt"', '"trian.txt"'),)),
    Case("no-such-location", edits=(("some-org/some-model", "./weights"),)),
    Case("no-such-location", edits=(("some-org/some-model", "no_package:weights"),)),
    Case("not-an-array", sets=("reward={name='bright'}",)),
    Case("two-tunings", edits=(("[data]", "[full]\n\n[data]"),)),
    Case("no-tuning", edits=(("[lora]\nrank = 4\n", ""),)),
    Case("bad-requirement", edits=(("plugins =", 'requires = ["flow factory"]\nplugins ='),)),
    Case("unmet-requirement", edits=(("plugins =", 'requires = ["flowfactory-plugin-zebra>=1"]\nplugins ='),)),
    Case("unmet-requirement", edits=(("plugins =", 'requires = ["flowfactory>=99"]\nplugins ='),)),
    Case("density", edits=(('"flow-sde"\nwindow = { rule = "random", size = 2 }', '"ode"'),)),
    Case("density", edits=(('"flow-sde"', '"cps"'), ("beta = 0.1", "exact = true"))),
    Case("no-gradient", toy=FOLLOWING),
    Case(
        "looks",
        toy=LOOKING,
        edits=(("size = 2", 'size = 2, per = "prompt"'), ("beta = 0.1", 'beta = 0.1\nstd = "global"')),
    ),
    Case("branches", toy=BRANCHING, edits=(("steps = 8", "steps = 8\nshared_noise = true"),)),
    Case("role", toy=(FOLLOWING[0], ROLES % ('"ema"', 1))),
    Case("role", toy=(FOLLOWING[0], ROLES % ('"fake"', 1)), sets=("run.precision='fp16'",)),
    Case("window", edits=(('"random", size = 2', '"list", steps = [1, 7]'),)),
    Case("window", edits=(('"random", size = 2', '"all", size = 2'),)),
    Case(
        "shared-noise",
        edits=(
            ('"flow-sde"\nwindow = { rule = "random", size = 2 }', '"ode"'),
            ("steps = 8", "steps = 8\nshared_noise = true"),
        ),
        toy=('trajectory="steps", density="gaussian" if self.exact else "any"', 'density="none"'),
    ),
    Case("times", edits=(("beta = 0.1", 'times = { rule = "subset", count = 20 }'),)),
    Case("decay", edits=(("beta = 0.1", "old = { rate = 0, start = 0.9, limit = 0.5 }"),)),
    Case("updates", edits=(("updates = 2", "updates = 3"),)),
    Case("warmup", edits=(("updates = 2", "updates = 2\nwarmup = 10"),)),
    Case("weight-decay", edits=(("updates = 2", "updates = 2\nweight_decay = 1e6"),)),
    Case(
        "quantize",
        edits=(("[lora]\nrank = 4\n", "[full]\n"), ('some-model"\n', 'some-model"\nquantize = "nf4"\n')),
    ),
    Case(
        "package",
        edits=(
            ('path = "some-org/some-model"', 'name = "far"\npath = "some-org/some-model"'),
            ('name = "diffusers"\n', ""),
        ),
        toy=("\n\n@hookimpl\ndef flowfactory_trainers", FAR),
    ),
    Case("from", edits=(("rank = 4", 'rank = 4\nreference = "base"'),)),
    Case("from", edits=(("rank = 4", 'rank = 4\nfrom = "./toy.py"'),)),
    Case("from", edits=(FROM,), files=weights_file("a.lora_A.weight")),
    Case("from", edits=(FROM,), files=weights_file("a.weight")),
    Case("loaded", toy=(OFFLINE[0], TEACHER % ("current", '"some/teacher"'))),
    Case("loaded", toy=(OFFLINE[0], TEACHER % ("teacher", "__file__"))),
    Case(
        "loaded",
        edits=(('some-model"\n', 'some-model"\nquantize = "nf4"\n'),),
        toy=(OFFLINE[0], TEACHER % ("teacher", '__file__.replace("toy.py", "mine.safetensors")')),
        files=weights_file("a.weight"),
    ),
    Case(
        "rows",
        toy=(
            OFFLINE[0],
            'return Needs(trajectory="steps", density="any", columns={"level": frozenset({"low", "high"})})',
        ),
        edits=(("train.txt", "a.jsonl"),),
        files={"a.jsonl": '{"prompt": "a", "level": "low"}\n{"prompt": "b", "level": "hgih"}\n{"prompt": "c"}'},
    ),
    Case("distilled", edits=(("some-org/some-model", "black-forest-labs/FLUX.1-dev"),), note=True),
    Case("distilled", edits=(("some-org/some-model", "black-forest-labs/FLUX.1-schnell"),), note=True),
    Case("labels", edits=(('label = "dark"\n', ""),)),
    Case(
        "weights", edits=(("weight = -0.5", "weight = 0"), ('name = "bright"\n\n', 'name = "bright"\nweight = 0\n\n'))
    ),
    Case("no-reward", sets=("reward=[]",)),
    Case("shard", sets=("optimizer.bits=8", *ONE_BY_ONE), toy=EVEN),
    Case("shard-calls", sets=("memory.shard=true",), toy=EVEN),
    Case("merged", sets=("sampling.merged=true",)),
    Case("merged", sets=("sampling.merged=true", "full={}"), unsets=("lora",), toy=FREE),
    Case("first-block-cache", sets=("sampling.first_block_cache=0.1",)),
    Case("first-block-cache", sets=("sampling.first_block_cache=0.1", "memory.compile=true"), toy=FREE),
    Case("shard-calls", sets=ONE_BY_ONE),
    Case("offload", sets=('memory.offload=["weights"]', "full={}"), unsets=("lora",)),
    Case("offload", sets=('memory.offload=["weights"]', "model.quantize=nf4")),
    Case("offload", sets=('memory.offload=["weights"]', "memory.compile=true")),
    Case("offload", sets=('memory.offload=["weights"]', "sampling.merged=true"), toy=FREE),
    Case("offload", sets=('memory.offload=["weights", "optimizer"]', *ONE_BY_ONE), toy=EVEN),
    Case("teams", sets=("memory.ulysses=2", "memory.compile=true")),
    Case("teams", sets=("memory.ulysses=2", "memory.attention=sage")),
    Case("teams", sets=("memory.ulysses=2", "memory.ring=2")),
    Case("teams", sets=("memory.ulysses=2", "sampling.first_block_cache=0.1"), toy=FREE),
    Case("no-eval-prompts", unsets=("data.eval_prompts",)),
    Case("best", edits=(("[eval]", '[checkpoint]\nbest = "eval/brigth/mean"\n\n[eval]'),)),
    Case("tracker", sets=('track.to=["tensorbored"]',)),
    Case("tracker", sets=('track.to=["aim"]',)),
    Case(
        "checkpoint",
        edits=(("some-org/some-model", "./weights"),),
        files={
            "weights/model_index.json": '{"vae": ["diffusers", "AutoencoderKL"]}',
            "weights/vae/config.json": "{}",
            "weights/vae/model.safetensors": "version https://git-lfs.github.com/spec/v1\n",
        },
    ),
    Case("pipeline", edits=(('name = "diffusers"\npath = "some-org/some-model"', FLUX),), files=CHECKPOINT),
    Case("size", edits=(("some-org/some-model", "./weights"), ("size = 32", "size = 500")), files=CHECKPOINT),
    Case("target", edits=(("some-org/some-model", "./weights"), ("rank = 4", 'targets = ["to_kk"]')), files=CHECKPOINT),
    Case("data", files={"train.txt": "\n"}),
    Case("data", edits=(("train.txt", "train.csv"),), files={"train.csv": "prompts,n\na cat,1\n"}),
    Case("images", edits=(('name = "diffusers"', 'name = "wan-i2v"'),)),
    Case("media", toy=OFFLINE, unsets=("sampling.group", "reward")),
    Case(
        "data",
        edits=(("train.txt", "a.jsonl"),),
        files={"a.jsonl": '{"prompt": "a", "chosen": "b.png"}'},
    ),
    Case("cache", sets=("memory.cache=/dev/null/x",)),
    Case("column", edits=(("train.txt", "a.jsonl"),), files={"a.jsonl": '{"prompt": "a", "imgae": "b"}'}, note=True),
    Case("few-prompts", sets=("sampling.prompts=8",), note=True),
    Case("few-prompts", edits=SOURCES, files=OF_SOURCES, sets=("data.source[0].share=7",), note=True),
    Case("missing-key", unsets=("data.prompts", "data.eval_prompts")),
    Case("sources", edits=((DATA, f"{DATA}{SEVERAL}"),), files=OF_SOURCES),
    Case("sources", edits=SOURCES, files=OF_SOURCES, sets=("data.source[1].name=signs",)),
    Case("no-such-source", edits=SOURCES, files=OF_SOURCES, sets=("reward[0].sources=['singns']",)),
    Case("no-such-source", sets=("reward[0].sources=['signs']",)),
    Case(
        "unscored-source", edits=SOURCES, files=OF_SOURCES, sets=("reward[0].sources=['signs']", "reward[1].weight=0")
    ),
    Case("not-evaluated", edits=SOURCES, files=OF_SOURCES, sets=("reward[1].sources=['other']",), note=True),
    Case("unusual-lr", sets=("optimizer.lr=300",), note=True),
    Case("device", sets=("reward[0].device=cuda:99",), note=True),
    Case("starved", sets=("sampling.micro_batch=8", "optimizer.micro_batch=8"), world=2, note=True),
    Case("world", world=3),
    Case("plugin-missing", edits=(('name = "toy"', 'name = "tyo"'),)),
    Case("plugin-missing", edits=(('name = "toy"', 'name = "zebra"'),)),
    Case("plugin-other-kind", edits=(('name = "toy"', 'name = "ode"'),)),
    Case("plugin-file-missing", edits=(('"./toy.py"', '"./toy.py", "./toys.py"'),)),
    Case("plugin-conflict", sets=("reward[0].name=twin",)),
    Case("plugin-not-from", sets=("reward[0].name=twin@third",)),
    Case("plugin-broken", sets=("reward[0].name=broken",)),
    Case("plugin-requirement", sets=("reward[0].name=toonew",)),
    Case("plugin-requirement", sets=("reward[0].name=lonely",)),
    Case("plugin-name-mismatch", sets=("reward[0].name=misnamed",)),
    Case("plugin-name-mismatch", sets=("reward[0].name=extra",)),
    Case("plugin-unknown-hook", sets=("reward[0].name=typo",)),
    Case("checkpoint", sets=("model.path=a--b/c",)),
    Case("checkpoint", sets=("model.path=./train.txt",)),
    Case("checkpoint", sets=("model.path=.",)),
    Case("plugin-target-missing", target="flowfactory.errors:SpecEror"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed sound and unsound plugins."""
    return install(tmp_path_factory.mktemp("installed"))


def entries() -> list[Entry]:
    """Of core, two families and the tests' own distributions."""
    families = {"flowfactory-plugin-flux", "flowfactory-plugin-wan"}
    ours = {"flowfactory", *families, *(distribution.name for distribution in DISTRIBUTIONS)}
    return [entry for entry in installed_entries() if entry.source.name in ours]


def message(case: Case, folder: Path) -> tuple[str, str]:
    """The kind of the first problem of a case, and all that is printed."""
    toy = TOY.replace(*case.toy) if case.toy[0] else TOY
    lay(folder, edited(*case.edits, text=SPEC), toy.replace("toy_target:Toy", case.target or "toy_target:Toy"))
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    registry = Registry(entries())
    notes: list[Problem] = []
    try:
        made = load_spec(folder / "spec.toml", registry, case.sets, case.unsets, disk.RULES, notes.append)
        if case.note:
            notes.extend(starved(make_plan(made, registry.versions(), case.world)))
            (note,) = [note for note in notes if note.kind == case.kind]
            return note.kind, cleaned(str(note), folder)
        make_plan(made, registry.versions(), case.world)
        registry.target("trainers", "toy")
    except SpecError as error:
        kind, text = error.problems[0].kind, "\n".join(map(str, error.problems))
    except PluginError as error:
        kind, text = error.kind, str(error)
    return kind, cleaned(text, folder)


def cleaned(text: str, folder: Path) -> str:
    """Without what differs from one machine to the next."""
    text = text.replace(str(folder.resolve()), "FOLDER").replace(version("flowfactory"), "VERSION")
    return re.sub(r"[^\s(]*/installed\d*/site/", "SITE/", text)


def test_golden_messages(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    told = []
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        kind, text = message(case, folder)
        assert kind == case.kind, text
        told.append(f"== {kind} ==\n{text}\n")
    for distribution in DISTRIBUTIONS:
        sys.modules.pop(distribution.module, None)
    if os.environ.get("FLOWFACTORY_WRITE_MESSAGES"):
        GOLDEN.write_text("\n".join(told))
    assert "\n".join(told) == GOLDEN.read_text()


def test_every_kind_has_one() -> None:
    golden = set(re.findall(r"^== (.*) ==$", GOLDEN.read_text(), re.MULTILINE))
    assert golden == set(kinds())


def kinds() -> Iterator[str]:
    """The kinds of problems core's source mentions; the conformance kit's are its own tests'."""
    core = Path(flowfactory.__file__).parent
    for path in sorted({*core.rglob("*.py")} - {*core.glob("testing/*.py")}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                if name in ("Problem", "PluginError", "note") and isinstance(node.args[0].value, str):
                    yield node.args[0].value


# --- none hides another --------------------------------------------------------------------------------------------

ASIDE = (
    "run.save_samples=x",
    "run.precision=bf61",
    "model.revision=3",
    "lora.alpha=x",
    "sampling.overlap=3",
    "sampling.storage=3",
    "trainer.beta=x",
    "reward[0].timeout=x",
    "optimizer.betas=1",
    "memory.compile=3",
    "eval.seed=x",
    "checkpoint.keep=x",
    "track.project=3",
)
"""A mistake in every table, in keys that few rules look at."""
NAMES = ("model.name=nobody", "scheduler.name=nobody", "trainer.name=nobody")


ON = {
    "model": {"package", "target", "size", "quantize", "images", "loaded", "shard-calls", "pipeline"},
    "scheduler": {"looks", "branches"},
    "trainer": {"no-reward", "weights", "unscored-source"},
    "precision": {"role"},
}
"""Kinds of problems that depend on a plugin, or on a key, which their words do not name."""


def concerns(problem: Problem, change: str) -> bool:
    """Whether a problem is about the key that a change sets, or about the plugin that it names."""
    table, _, name = change.partition("=")[0].rpartition(".")
    subject = table if name == "name" else name
    return subject in problem.what or problem.kind in ON.get(subject, ())


class Lookout:
    """Loads the cases again and again, with further changes; cases of the same plugin share what is loaded of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.registries = folder, monkeypatch, dict[str, Registry]()

    def told(self, case: Case, *sets: str) -> list[Problem]:
        """Every mistake."""
        toy = TOY.replace(*case.toy) if case.toy[0] else TOY
        if toy not in self.registries:
            self.registries[toy] = Registry(entries())
            (self.folder / str(len(self.registries))).mkdir()
        shared = self.folder / str([*self.registries].index(toy) + 1)
        folder = shared / str(CASES.index(case))
        folder.mkdir(exist_ok=True)
        (shared / "toy.py").write_text(toy)
        lay(folder, edited(*case.edits, text=SPEC).replace('["./toy.py"', '["../toy.py"'), toy)
        for name, text in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        self.monkeypatch.chdir(folder)
        with pytest.raises(SpecError) as caught:
            load_spec(folder / "spec.toml", self.registries[toy], [*case.sets, *sets], case.unsets, disk.RULES)
        return list(caught.value.problems)


BROKEN = {"toml-syntax"}
"""What leaves no spec to look at."""


def test_no_mistake_hides_one_of_another_table(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case, with a mistake in every table besides; and with each plugin's name misspelt."""
    monkeypatch.syspath_prepend(str(site))
    lookout, compared = Lookout(tmp_path, monkeypatch), 0
    for case in CASES:
        if case.kind in BROKEN or case.note or case.target or case.world > 1:
            continue
        alone = lookout.told(case)
        assert case.kind in {one.kind for one in alone}
        for aside in (ASIDE, *((name,) for name in NAMES)):
            changes = [change for change in aside if not creates(case, change)]
            both = {(one.kind, one.what) for one in lookout.told(case, *changes)}
            for one in alone:
                if not any(concerns(one, change) for change in changes):
                    compared += 1
                    assert (one.kind, one.what) in both, f"{one.what} is hidden by {changes}"
    for distribution in DISTRIBUTIONS:
        sys.modules.pop(distribution.module, None)
    assert compared > 300


def test_a_target_of_a_wrong_type_hides_no_misspelt_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (case for case in CASES if case.kind == "target")
    told = Lookout(tmp_path, monkeypatch).told(case, "lora.targets=[3,'to_kk']")
    assert [one.what.partition(",")[0] for one in told if one.kind in ("wrong-type", "target")] == [
        "`targets[0]`: expected a string",
        "no layer of transformer ends in `to_kk`",
    ]


def creates(case: Case, change: str) -> bool:
    """Whether a change would write a table that the case leaves out."""
    table = re.split(r"[.[]", change)[0]
    return f"[{table}]" in SPEC and (table in case.unsets or f"[{table}]" not in edited(*case.edits))
