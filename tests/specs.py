"""Specs, local plugins and installed distributions for the tests above the torch line. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

SPEC = """\
plugins = ["./toy.py"]

[run]
name = "test"
epochs = 3

[model]
name = "diffusers"
path = "some-org/some-model"

[lora]
rank = 4

[data]
prompts = "train.txt"
eval_prompts = "eval.txt"

[sampling]
size = 32
steps = 8
prompts = 4
group = 4

[scheduler]
name = "flow-sde"
window = { rule = "random", size = 2 }

[trainer]
name = "toy"
beta = 0.1

[[reward]]
name = "bright"

[[reward]]
name = "bright"
label = "dark"
weight = -0.5
target = 0.25

[optimizer]
lr = 1e-4
updates = 2

[eval]
every = 1
"""

TOY = '''\
"""A trainer and a reward in a local file."""

import attrs

from flowfactory import Needs, Provides, TrainerSpec, hookimpl, key
from flowfactory.contracts.specs import Decay, Times


@attrs.frozen(kw_only=True)
class ToySpec(TrainerSpec):
    """Keys of the toy trainer."""

    beta: float = key("Strength.", default=0.0, ge=0)
    times: Times = key("Noise levels to train at.", default=Times(rule="uniform"))
    exact: bool = key("Whether a Gaussian is needed.", default=False)
    old: Decay = key("How slowly the old policy follows.", default=Decay(rate=0.1, limit=1.0))

    @property
    def needs(self):
        return Needs(trajectory="steps", density="gaussian" if self.exact else "any")


@attrs.frozen(kw_only=True)
class BrightSpec:
    """Keys of the toy reward."""

    target: float = key("Wanted brightness.", default=0.5, ge=0, le=1)
    words: tuple[str, ...] = key("Words to count.", default=(), min_length=0)
    level: int = attrs.field(default=1)
    extra: float | str = key("A number or a word.", default="none")

    @level.validator
    def _check(self, attribute, value):
        if value > 9:
            raise ValueError("expected a level up to 9")

    def __attrs_post_init__(self):
        if self.level == 5 and self.target == 1:
            raise ValueError("level 5 has no target 1")


def bright(samples):
    return [0.0 for _ in samples]


@hookimpl
def flowfactory_trainers():
    yield Provides("toy", ToySpec, "toy_target:Toy", "A toy trainer.")


@hookimpl
def flowfactory_rewards():
    yield Provides("bright", BrightSpec, bright, "Counts light.")
'''


SOURCES = (
    """[data]
prompts = "train.txt"
eval_prompts = "eval.txt"
""",
    """[[data.source]]
name = "signs"
prompts = "eval.txt"
eval_prompts = "eval.txt"

[[data.source]]
name = "other"
prompts = "train.txt"
share = 2
""",
)
"""Edits the valid spec: two sources in place of one."""


def lay(folder: Path, text: str = SPEC, toy: str = TOY) -> Path:
    """A folder with a valid spec, its plugin and its prompts; returns the spec."""
    (folder / "toy.py").write_text(toy)
    (folder / "train.txt").write_text("a red circle\na blue square\na green circle\na red square\n")
    (folder / "eval.txt").write_text("a green triangle\n")
    spec = folder / "spec.toml"
    spec.write_text(text)
    return spec


def edited(*edits: tuple[str, str], text: str = SPEC) -> str:
    """The valid spec with replacements, each of which must apply once."""
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    return text


# --- distributions -------------------------------------------------------------------------------------------------


@attrs.frozen
class Distribution:
    """A plugin as a wheel: one module, its entry points by group, what it requires."""

    name: str
    code: str
    points: Mapping[str, Sequence[str]]
    requires: Sequence[str] = ("flowfactory>=0.1,<1",)
    version: str = "1.0"

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    def wheel(self, folder: Path) -> Path:
        """Write the wheel."""
        info = f"{self.module}-{self.version}.dist-info"
        points = "".join(
            f"[flowfactory.{group}]\n" + "".join(f"{name} = {self.module}\n" for name in names)
            for group, names in self.points.items()
        )
        metadata = f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n"
        files = {
            f"{self.module}.py": self.code,
            f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {text}\n" for text in self.requires),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": points,
        }
        record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        path = folder / f"{self.module}-{self.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**files, f"{info}/RECORD": record}.items():
                archive.writestr(name, content)
        return path


def reward_code(*names: str, head: str = "", hook: str = "flowfactory_rewards") -> str:
    """A hook module that provides rewards."""
    provides = "".join(f"    yield Provides({name!r}, Spec, 'nowhere:Missing', 'A reward.')\n" for name in names)
    return (
        f"import attrs\nfrom flowfactory import Provides, hookimpl, key\n{head}\n"
        "@attrs.frozen(kw_only=True)\nclass Spec:\n    size: int = key('Size.', default=1, ge=1)\n\n"
        f"@hookimpl\ndef {hook}():\n{provides or '    return ()' + chr(10)}"
    )


WATCHER = """\
from flowfactory import hookimpl

seen = []

@hookimpl
def flowfactory_epoch_finished(epoch, metrics):
    seen.append((epoch, dict(metrics)))
    if epoch == 2:
        raise RuntimeError("the watcher fell asleep")
"""

DISTRIBUTIONS = (
    Distribution("flowfactory-plugin-good", reward_code("good"), {"rewards": ["good"]}),
    Distribution("flowfactory-plugin-broken", "import a_module_nobody_has\n", {"rewards": ["broken"]}),
    Distribution("flowfactory-plugin-crash", "def f():\n    return 1 / 0\n\nf()\n", {"trainers": ["crash"]}),
    Distribution("flowfactory-plugin-twin", reward_code("twin"), {"rewards": ["twin"]}),
    Distribution("other-twin", reward_code("twin"), {"rewards": ["twin"]}, version="0.3"),
    Distribution("flowfactory-plugin-toonew", reward_code("toonew"), {"rewards": ["toonew"]}, ["flowfactory>=99"]),
    Distribution(
        "flowfactory-plugin-lonely", reward_code("lonely"), {"rewards": ["lonely"]}, ["flowfactory-plugin-absent>=2"]
    ),
    Distribution("flowfactory-plugin-misnamed", reward_code("other"), {"rewards": ["misnamed"]}),
    Distribution("flowfactory-plugin-extra", reward_code("extra", "surplus"), {"rewards": ["extra"]}),
    Distribution("flowfactory-plugin-typo", reward_code("typo", hook="flowfactory_rewadrs"), {"rewards": ["typo"]}),
    Distribution("flowfactory-plugin-watcher", WATCHER, {"plugins": ["watcher"]}),
)


def install(folder: Path, distributions: Sequence[Distribution] = DISTRIBUTIONS) -> Path:
    """Install distributions with pip into a folder of their own; returns it."""
    wheels = folder / "wheels"
    wheels.mkdir()
    target = folder / "site"
    paths = [str(distribution.wheel(wheels)) for distribution in distributions]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), *paths], check=True)
    return target
