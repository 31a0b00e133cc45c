"""Specs become checked values, or every one of their mistakes is told where it stands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from flowfactory.contracts.key import Size
from flowfactory.discovery.registry import Registry
from flowfactory.errors import Problem, SpecError
from flowfactory.spec import toml
from flowfactory.spec.structure import load_rewards, load_spec, read_spec
from flowfactory.spec.tables import Eval, Full, Lora, Spec, unstructure
from specs import SOURCES, SPEC, TOY, edited, lay

Edit = tuple[str, str]


def load(path: Path, *sets: str, unsets: tuple[str, ...] = ()) -> Spec:
    return load_spec(path, Registry(), sets, unsets)


def problems(path: Path, *sets: str, unsets: tuple[str, ...] = ()) -> list[Problem]:
    """What is wrong with a spec; there must be something."""
    with pytest.raises(SpecError) as caught:
        load(path, *sets, unsets=unsets)
    return list(caught.value.problems)


def only(path: Path, *sets: str, unsets: tuple[str, ...] = ()) -> Problem:
    """The one thing that is wrong with a spec."""
    (problem,) = problems(path, *sets, unsets=unsets)
    return problem


def test_a_valid_spec(spec: Path) -> None:
    made = load(spec)
    assert made.run.name == "test"
    assert made.sampling.size == Size(32, 32, 1)
    assert isinstance(made.tuning, Lora)
    assert made.data.prompts == str(spec.parent / "train.txt")
    assert [(r.name, r.label, r.weight, r.spec.target) for r in made.rewards] == [
        ("bright", "bright", 1.0, 0.5),
        ("bright", "dark", -0.5, 0.25),
    ]
    assert made.trainer.spec.beta == 0.1
    assert made.scheduler.spec.window.size == 2
    assert made.plugins == (str(spec.parent / "toy.py"),)


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("sampling.size=[64, 32, 5]", "optimizer.betas=[0.5, 0.9]", "optimizer.lr=1"),
        ("lora.targets=['to_q', 'to k\\u00e9\"']", "reward[0].words=['a', '\\\\b']", "reward[0].extra=3"),
        ("eval.reward=[{name='bright', label='x', weight=2}]", "eval.size=[16, 16]"),
        ("eval.every=0", "scheduler.name=ode", "trainer.name=grpo"),
    ],
)
def test_what_is_written_back_loads_to_the_same(spec: Path, sets: tuple[str, ...]) -> None:
    if "scheduler.name=ode" in sets:
        sets = tuple(change for change in sets if "scheduler" not in change and "trainer" not in change)
    once = unstructure(load(spec, *sets))
    again = spec.parent / "again.toml"
    again.write_text(toml.dumps(once))
    assert unstructure(load(again)) == once


def test_sources_are_written_back(tmp_path: Path) -> None:
    spec = load_spec(lay(tmp_path, edited(SOURCES)), Registry(), ["reward[0].sources=['other', 'signs']"])
    again = tmp_path / "again.toml"
    again.write_text(toml.dumps(unstructure(spec)))
    assert unstructure(load_spec(again, Registry())) == unstructure(spec)
    assert [(source.name, source.share) for source in spec.data.sources] == [("signs", 1), ("other", 2)]
    assert spec.rewards[0].sources == ("other", "signs")
    assert spec.rewards[0].applies_to("signs")
    assert not attrs.evolve(spec.rewards[0], sources=("other",)).applies_to("signs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.source=[]", "`source`: expected 1 or more entries"),
        ("reward[0].sources=[]", "`sources`: expected 1 or more entries"),
        ("data.source[0].share=0", "`share`: expected a number at least 1"),
        ("data.source[0].name=a b", "`name`: expected a string that matches"),
        ("data.source[0].shar=2", "unknown key `shar` in `source[0]`"),
        ("data.source[1].prompts=trian.txt", "`prompts`: there is no "),
        ("data.share=2", "did you mean [[data.source]] share?"),
    ],
)
def test_mistakes_in_sources_are_told(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(lay(tmp_path, edited(SOURCES)), Registry(), [change])
    assert said in str(caught.value)


@pytest.mark.parametrize("source", ["rollouts", "media", "pairs"])
def test_keys_without_use_may_be_written_back(tmp_path: Path, source: str) -> None:
    """A run's own spec has every key; that of a trainer without scores is none the less sound."""
    spec = lay(tmp_path, toy=TOY.replace("Needs(", f'Needs(source="{source}", scores=False, '))
    once = unstructure(load_spec(spec, Registry(), (), ("sampling.group", "reward")))
    assert (once["sampling"]["group"], once["trainer"]["std"]) == (1, "group")
    again = tmp_path / "again.toml"
    again.write_text(toml.dumps(once))
    assert unstructure(load(again)) == once


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("run.epochs=2.7", "`epochs`: expected a whole number, not 2.7"),
        ("run.epochs=3.0", "`epochs`: expected a whole number, not 3.0"),
        ("run.epochs=true", "`epochs`: expected a whole number, not true"),
        ("run.epochs='3'", "`epochs`: expected a whole number, not '3'"),
        ("run.name=3", "`name`: expected a string, not 3"),
        ("run.seed=1979-05-27", "`seed`: expected a whole number, not the date or time 1979-05-27"),
        ("optimizer.lr=true", "`lr`: expected a number, not true"),
        ("optimizer.lr='1e-4'", "`lr`: expected a number, not '1e-4'"),
        ("optimizer.lr=inf", "`lr`: expected a finite number, not inf"),
        (f"optimizer.lr=1{'0' * 400}", "a whole number of more than 64 bits"),
        ("sampling.shared_noise='false'", "`shared_noise`: expected true or false, not 'false'"),
        ("sampling.shared_noise=0", "`shared_noise`: expected true or false, not 0"),
        ("run.precision=bf61", "`precision`: expected one of 'fp32', 'bf16', 'fp16', not 'bf61'"),
        ("run.precision=[1]", "`precision`: expected one of 'fp32', 'bf16', 'fp16', not [1]"),
        ("optimizer.betas=0.9", "`betas`: expected an array, not 0.9"),
        ("optimizer.betas=[0.9]", "`betas`: expected an array of 2, not of 1"),
        ("optimizer.betas=[0.9, '1']", "`betas[1]`: expected a number, not '1'"),
        ("sampling.size=-1", "`size`: expected pixels: a positive whole number"),
        ("sampling.size=[1]", "`size`: expected pixels"),
        ("sampling.size=[1, 2, 3, 4]", "`size`: expected pixels"),
        ("sampling.size=[1, true]", "`size`: expected pixels"),
        ("sampling.size=32.0", "`size`: expected pixels"),
        ("scheduler.window=3", "`window` is a table, not 3"),
        ("reward[0].words=x", "`words`: expected an array, not 'x'"),
        ("reward[0].extra=true", "`extra`: expected a number or a string, not true"),
        ("run=3", "[run] is a table, not 3"),
        ("model=3", "[model] is a table"),
        ("reward=3", "rewards are an array of tables, each headed [[reward]]"),
        ("reward=[3]", "rewards are an array of tables, each headed [[reward]]"),
        ("eval=3", "[eval] is a table"),
        ("eval.reward=3", "rewards are an array of tables, each headed [[eval.reward]]"),
        ("track.to=tensorboard", "`to`: expected an array, not 'tensorboard'"),
        ("plugins=toy.py", "`plugins` expects an array of strings"),
        ("model.name=3", "[model] `name` expects a string"),
    ],
)
def test_no_value_is_bent_into_shape(spec: Path, change: str, what: str) -> None:
    assert any(what in problem.what for problem in problems(spec, change))


def test_whole_numbers_are_numbers(spec: Path) -> None:
    made = load(spec, "optimizer.lr=1", "reward[0].weight=2")
    assert (type(made.optimizer.lr), type(made.rewards[0].weight)) == (float, float)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("sampling.steps=0", "`steps`: expected a number at least 1, not 0"),
        ("optimizer.lr=0", "`lr`: expected a number greater than 0, not 0"),
        ("optimizer.betas=[0.9, 1.0]", "`betas[1]`: expected a number less than 1, not 1.0"),
        ("reward[0].target=2", "`target`: expected a number at most 1, not 2"),
        ("reward[0].level=10", "`level`: expected a level up to 9"),
        ("run.name=a/b", "`name`: expected a string that matches"),
        ("lora.targets=[]", "`targets`: expected 1 or more entries, not 0"),
        ("track.project=", "`project`: expected 1 or more characters, not 0"),
    ],
)
def test_bounds(spec: Path, change: str, what: str) -> None:
    assert what in only(spec, change).what


def test_rules_of_a_plugins_own_class(spec: Path) -> None:
    assert only(spec, "reward[0].level=5", "reward[0].target=1").what == "[[reward]]: level 5 has no target 1"


# --- places and hints ----------------------------------------------------------------------------------------------


def test_every_problem_at_once_in_reading_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = edited(
        ("epochs = 3", "epochs = 3.5"),
        ("rank = 4", "rnak = 4"),
        ('"train.txt"', '"trian.txt"'),
        ("steps = 8", "steps = 0"),
        ("beta = 0.1", "bata = 0.1"),
        ("target = 0.25", 'target = "high"'),
        ("lr = 1e-4", 'lr = 1e-4\nlr_schedule = "cosin"'),
        ("[eval]", "[evil]"),
    )
    found = problems(lay(tmp_path, text))
    assert [(p.kind, p.place.line) for p in found if p.place] == [
        ("wrong-type", 5),
        ("unknown-key", 12),
        ("no-such-location", 15),
        ("bad-value", 20),
        ("unknown-key", 30),
        ("wrong-type", 39),
        ("wrong-type", 43),
        ("unknown-key", 46),
    ]
    hints = [p.hint.split("?")[0] for p in found]
    assert hints[1] == "did you mean `rank`"
    assert hints[4] == "did you mean `beta`"
    assert (
        "The keys of trainer `toy` (toy.py) are: `name`, `aggregate`, `std`, `beta`, `times`, `exact`" in found[4].hint
    )
    assert hints[6] == "did you mean `cosine`"
    assert hints[7] == "did you mean `eval`"


def test_the_caret_points_at_the_value(spec: Path) -> None:
    spec.write_text(edited(("steps = 8", "steps = 0")))
    assert str(only(spec)) == (
        "spec.toml:20: `steps`: expected a number at least 1, not 0\n    20 | steps = 0\n       |         ^"
    )


def test_a_key_remembers_its_file(spec: Path) -> None:
    other = spec.parent / "sub" / "other.toml"
    other.parent.mkdir()
    other.write_text('extends = "../spec.toml"\n[data]\nprompts = "../train.txt"\n[run]\nepochs = -1\n')
    assert load(other, "run.epochs=1").data.prompts == str(spec.parent / "train.txt")
    place = only(other).place
    assert place is not None
    assert (place.file, place.line) == (other, 5)


def test_the_command_line_is_a_place(spec: Path) -> None:
    assert str(only(spec, "run.epochs=x")).startswith(
        "command line: `epochs`: expected a whole number, not 'x'\n       | --set run.epochs=x\n"
    )


@pytest.mark.parametrize("table", ["run", "model", "data", "sampling", "scheduler", "trainer", "optimizer"])
def test_missing_tables(spec: Path, table: str) -> None:
    problem = only(spec, unsets=(table,))
    assert (problem.kind, f"[{table}]" in problem.what) == ("missing-table", True)


@pytest.mark.parametrize(
    "key",
    ["run.epochs", "model.path", "model.name", "sampling.prompts", "trainer.name", "reward[0].name", "optimizer.lr"],
)
def test_missing_keys(spec: Path, key: str) -> None:
    problem = only(spec, unsets=(key,))
    assert problem.kind == "missing-key"
    assert f"lacks `{key.split('.')[1]}`" in problem.what


def test_a_missing_key_brings_its_documentation(spec: Path) -> None:
    assert "(Learning rate.)" in only(spec, unsets=("optimizer.lr",)).what


# --- locations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with a resource, whose import would fail."""
    home = tmp_path / "site" / "heavy_package"
    (home / "weights").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (home / "prompts.txt").write_text("a\n")
    monkeypatch.syspath_prepend(str(home.parent))
    return home


def test_locations(spec: Path, package: Path) -> None:
    assert load(spec).model.spec.path == "some-org/some-model"
    assert load(spec, "model.path=heavy_package:weights").model.spec.path == str(package / "weights")
    assert load(spec, "data.prompts=heavy_package:prompts.txt").data.prompts == str(package / "prompts.txt")
    assert load(spec, "model.path=site").model.spec.path == str(spec.parent / "site")
    assert load(spec, f"model.path={spec.parent}").model.spec.path == str(spec.parent)
    assert "heavy_package" not in sys.modules


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("model.path=./absent", "there is no "),
        ("model.path=~/absent-folder", "there is no "),
        ("model.path=/absent", "there is no /absent"),
        ("model.path=a/b/c", "there is no "),
        ("model.path=''", "expected a path, not an empty string"),
        ("data.prompts=absent.txt", "absent.txt"),
        ("data.eval_prompts=evil.txt", "did you mean `eval.txt`"),
        ("model.path=heavy_package:absent", "the package `heavy_package` has no `absent` in it"),
        ("model.path=light_package:weights", "there is no installed package `light_package`"),
        ("model.path=light.package:weights", "there is no installed package `light.package`"),
    ],
)
def test_locations_that_do_not_exist(spec: Path, package: Path, change: str, what: str) -> None:
    problem = only(spec, change)
    assert problem.kind == "no-such-location"
    assert what in problem.what


# --- between tables ------------------------------------------------------------------------------------------------


def test_what_to_train(spec: Path) -> None:
    assert isinstance(load(spec, "full={}", unsets=("lora",)).tuning, Full)
    assert isinstance(load(spec, "lora={}", unsets=("lora",)).tuning, Lora)
    assert only(spec, "full={}").kind == "two-tunings"
    assert only(spec, unsets=("lora",)).kind == "no-tuning"


@pytest.mark.parametrize(
    ("sets", "unsets", "kind", "words"),
    [
        (("scheduler={name='ode'}",), (), "density", "needs a probability of each step, but scheduler `ode`"),
        (
            ("scheduler={name='cps'}", "trainer.exact=true"),
            (),
            "density",
            "one of `dance-sde`, `flow-sde`, `linear-sde`",
        ),
        (("scheduler.window={rule='list'}",), (), "window", "`steps`"),
        (("scheduler.window={rule='list', steps=[7]}",), (), "window", "step 7 cannot be stochastic"),
        (("scheduler.window.rule=all",), (), "window", "`size`"),
        (("optimizer.updates=3",), (), "updates", "the nearest that do are 1, 2, 4"),
        (("optimizer.warmup=6",), (), "warmup", "3 epochs x 2 updates = 6 steps"),
        (("reward[1].label=bright",), (), "labels", "two rewards have the label `bright`"),
        (("reward[0].weight=0", "reward[1].weight=0"), (), "weights", "every [[reward]] has weight 0"),
        (("reward=[]",), (), "no-reward", "nothing to train for"),
        ((), ("data.eval_prompts",), "no-eval-prompts", "asks for evaluations (every = 1)"),
        (("eval.reward=[{name='bright'}, {name='bright'}]",), (), "labels", "the label `bright`"),
    ],
)
def test_contradictions(spec: Path, sets: tuple[str, ...], unsets: tuple[str, ...], kind: str, words: str) -> None:
    problem = only(spec, *sets, unsets=unsets)
    assert problem.kind == kind
    assert words in f"{problem.what}; {problem.hint}"
    assert problem.place is not None


def test_equal_samples_teach_nothing(spec: Path) -> None:
    (spec.parent / "toy.py").write_text((spec.parent / "toy.py").read_text().replace('trajectory="steps", ', ""))
    (spec.parent / "toy.py").write_text((spec.parent / "toy.py").read_text().replace('else "any"', 'else "none"'))
    assert load(spec, "scheduler={name='ode'}").scheduler.name == "ode"
    assert only(spec, "scheduler={name='ode'}", "sampling.shared_noise=true").kind == "shared-noise"
    assert load(spec, "sampling.shared_noise=true").sampling.shared_noise


def test_without_held_out_prompts_nothing_is_evaluated(spec: Path) -> None:
    assert load(spec, unsets=("data.eval_prompts", "eval")).eval == Eval()
    assert load(spec, "eval.every=0", unsets=("data.eval_prompts",)).eval.every == 0


# --- plugins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            "trainer.name=toyy",
            "plugin-missing",
            "did you mean `toy`?",
        ),
        ("trainer.name=zebra", "plugin-missing", "no plugin of that name is known"),
        ("trainer.name=bright", "plugin-other-kind", "`bright` is a reward, not a trainer"),
        ("plugins=['./absent.py', './toy.py']", "plugin-file-missing", "there is no file absent.py"),
        ("plugins=['nobody', './toy.py']", "plugin-missing", "no observer `nobody` is installed"),
        ("requires=['flowfactory>=99']", "unmet-requirement", "the spec requires flowfactory>=99, but 0."),
        ("requires=['flowfactory-plugin-zebra>=1']", "unmet-requirement", "find out whose it is"),
    ],
)
def test_plugins_that_cannot_be_had(spec: Path, change: str, kind: str, words: str) -> None:
    problem = only(spec, change)
    assert (problem.kind, problem.code) == (kind, 3)
    assert words in str(problem)


def test_requirements_must_be_readable(spec: Path) -> None:
    assert only(spec, "requires=['flow factory']").kind == "bad-requirement"
    assert load(spec, "requires=['flowfactory>=0.1']").run.name == "test"


def test_installed_plugins_in_a_spec(spec: Path, installed: Path) -> None:
    made = load(spec, "reward[0].name=twin@other-twin", "reward[0].size=3", "plugins=['./toy.py', 'watcher']")
    assert (made.rewards[0].label, made.rewards[0].spec.size) == ("twin", 3)
    assert made.plugins[1] == "watcher"
    assert "flowfactory-plugin-twin 1.0 and other-twin 0.3" in only(spec, "reward[0].name=twin").what


def test_a_wrong_type_in_a_plugins_class_is_its_plugins_fault(spec: Path) -> None:
    (spec.parent / "toy.py").write_text((spec.parent / "toy.py").read_text().replace("level: int", "level: complex"))
    assert only(spec, "reward[0].level=1").kind == "unreadable-type"


def test_unstructured_values_are_plain(spec: Path) -> None:
    def check(value: Any) -> None:
        assert type(value) in (dict, list, str, int, float, bool)
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(child)

    check(unstructure(load(spec)))
    assert SPEC.startswith("plugins")


def test_commands_of_plugins_read_specs_of_packages_too() -> None:
    spec = Path("flowfactory_plugin_shapes:examples/shapes-grpo.toml")
    assert read_spec(spec).run.name == "shapes-grpo"
    assert [entry.name for entry in load_rewards(spec, Registry())] == ["shapes"]
    with pytest.raises(SpecError, match=r"cannot read flowfactory_plugin_shapes:examples/absent\.toml"):
        read_spec(Path("flowfactory_plugin_shapes:examples/absent.toml"))
