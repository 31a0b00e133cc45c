"""Plugins as really installed distributions: found, loaded on demand, checked, and told apart."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from flowfactory.components.resolved import Events
from flowfactory.discovery.entries import OF_REWARDS
from flowfactory.discovery.registry import Registry
from flowfactory.errors import BAD_PLUGIN, PluginError
from flowfactory.spec.tables import RewardEntry
from specs import TOY


def refusal(call: Callable[[], object]) -> str:
    """The message of the `PluginError` a call raises."""
    with pytest.raises(PluginError) as caught:
        call()
    assert caught.value.problem(None).code == BAD_PLUGIN
    return str(caught.value)


def test_metadata_runs_no_plugin_code(installed: Path) -> None:
    registry = Registry()
    assert {"good", "broken", "twin", "toonew"} <= set(registry.names("rewards"))
    assert not [name for name in sys.modules if name.startswith("flowfactory_plugin_go")]


def test_a_hook_module_loads_when_its_name_is_used(installed: Path) -> None:
    registry = Registry()
    assert "flowfactory-plugin-good" not in registry.versions()
    found = registry.find("rewards", "good")
    assert (found.provides.name, str(found.source)) == ("good", "flowfactory-plugin-good 1.0")
    assert registry.versions() == {"flowfactory": registry.versions()["flowfactory"], "flowfactory-plugin-good": "1.0"}


def test_a_broken_plugin_breaks_nobody_else(installed: Path) -> None:
    registry = Registry()
    message = refusal(lambda: registry.find("rewards", "broken"))
    assert "reward `broken` (flowfactory-plugin-broken 1.0) is broken" in message
    assert "No module named 'a_module_nobody_has'" in message
    registry.find("rewards", "good")
    assert "flowfactory-plugin-broken" not in registry.versions()


def test_a_crash_names_the_line(installed: Path) -> None:
    message = refusal(lambda: Registry().find("trainers", "crash"))
    assert "ZeroDivisionError: division by zero" in message
    assert "flowfactory_plugin_crash.py:2)" in message


def test_two_distributions_with_one_name(installed: Path) -> None:
    registry = Registry()
    message = refusal(lambda: registry.find("rewards", "twin"))
    assert "flowfactory-plugin-twin 1.0 and other-twin 0.3" in message
    assert 'name = "twin@other-twin"' in message
    assert registry.find("rewards", "twin@other-twin").source.version == "0.3"
    assert registry.find("rewards", "twin@Flowfactory_Plugin.Twin").source.version == "1.0"
    assert "not provided by `third`" in refusal(lambda: registry.find("rewards", "twin@third"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toonew", "requires flowfactory>=99, but 0."),
        (
            "lonely",
            "requires flowfactory-plugin-absent>=2, which is not installed; flowfactory's directory",
        ),
        ("misnamed", "declares the entry point `misnamed`, but its hook `flowfactory_rewards` provides `other`"),
        ("extra", "provides the reward `surplus`, but its entry points in `flowfactory.rewards` are `extra`"),
        ("typo", "implements an unknown hook `flowfactory_rewadrs`; did you mean `flowfactory_rewards`?"),
    ],
)
def test_unsound_plugins_are_refused(installed: Path, name: str, words: str) -> None:
    message = refusal(lambda: Registry().find("rewards", name))
    assert words in message
    assert f"flowfactory-plugin-{name} 1.0" in message


def test_unknown_names(installed: Path) -> None:
    registry = Registry()
    assert "did you mean `good`?" in refusal(lambda: registry.find("rewards", "goood"))
    assert "no plugin of that name is known" in refusal(lambda: registry.find("rewards", "zebra"))
    assert "`ode` is a scheduler, not a reward" in refusal(lambda: registry.find("rewards", "ode"))


def test_observers_are_told_and_what_they_raise_is_logged(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    events = Events(*registry.observers())
    events.epoch_finished(run=None, epoch=0, metrics={})
    registry.observe("watcher")
    with caplog.at_level(logging.ERROR, "flowfactory"):
        for epoch in (1, 2, 3):
            events.epoch_finished(run=None, epoch=epoch, metrics={"lr": 0.1})
    assert [epoch for epoch, _ in sys.modules["flowfactory_plugin_watcher"].seen] == [1, 2, 3]
    assert "plugin flowfactory-plugin-watcher 1.0 failed in flowfactory_epoch_finished" in caplog.text
    assert "the watcher fell asleep" in caplog.text


def test_one_observer_that_raises_keeps_no_other_from_hearing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    hook = "from flowfactory import hookimpl\nheard = []\n@hookimpl\ndef flowfactory_run_finished(outcome):\n    "
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.py").write_text(hook + ("raise OSError('no')" if name == "b" else "heard.append(outcome)"))
        registry.load_file(tmp_path / f"{name}.py")
    Events(*registry.observers()).run_finished(run=None, outcome="done")
    modules = [
        m for name, m in sys.modules.items() if name.startswith("flowfactory_local_") and str(tmp_path) in str(m)
    ]
    assert [m.heard for m in modules] == [["done"], [], ["done"]]
    assert "plugin b.py failed" in caplog.text


def test_what_nobody_asked_for_is_copied_for_nobody(tmp_path: Path) -> None:
    """Observers get copies of their own, and samples are large."""
    told = (
        "from flowfactory import hookimpl\nheard = []\n@hookimpl\ndef flowfactory_{}(epoch):\n    heard.append(epoch)\n"
    )
    registry, copies = Registry(), list[object]()

    class Samples:
        def __deepcopy__(self, memo: object) -> Samples:
            copies.append(memo)
            return self

    for name in ("epoch_finished", "samples_scored"):
        (tmp_path / f"{name}.py").write_text(told.format(name))
        registry.load_file(tmp_path / f"{name}.py")
    Events(*registry.observers()).samples_scored(run=None, epoch=3, samples=Samples(), scores={})
    modules = [m for n, m in sys.modules.items() if n.startswith("flowfactory_local_") and str(tmp_path) in str(m)]
    assert sorted(m.heard for m in modules) == [[], [3]]
    assert len(copies) == 1


def test_local_files_are_plugins(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    registry = Registry()
    registry.load_file(tmp_path / "toy.py")
    assert registry.find("rewards", "bright").title == "reward `bright` (toy.py)"
    assert registry.target("rewards", "bright")([1, 2]) == [0.0, 0.0]
    assert registry.versions()["toy.py"].startswith("sha256:")


def test_a_local_file_wins_over_nothing_silently(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "mine.py").write_text(TOY.replace('"bright"', '"good"'))
    registry = Registry()
    registry.load_file(tmp_path / "mine.py")
    assert "mine.py" in refusal(lambda: registry.find("rewards", "good"))
    assert registry.find("rewards", "good@mine.py").source.name == "mine.py"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("def f(:", "SyntaxError"),
        (TOY.replace("class BrightSpec", "class Other", 1), "NameError"),
        (TOY.replace("BrightSpec, bright", "int, bright"), "not an attrs class"),
        (TOY.replace("ToySpec(TrainerSpec)", "ToySpec"), "not an attrs class that extends `TrainerSpec`"),
        (TOY.replace("    target: float", "    weight: float"), "declares `weight`, which core's table takes"),
        (TOY.replace("yield Provides(", "yield dict(a="), "failed: "),
        (TOY.replace("toy_target:Toy", "toy_target.Toy"), "not 'module:attribute'"),
        (TOY.replace("words: tuple[str, ...]", "words: Missing"), "name 'Missing' is not defined"),
        (TOY.replace("def flowfactory_trainers()", "def flowfactory_trainers(self_made)"), "a hook does not fit"),
    ],
)
def test_unsound_files_are_refused(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "bad.py").write_text("from __future__ import annotations\n" + code)
    registry = Registry()
    message = refusal(lambda: registry.load_file(tmp_path / "bad.py"))
    assert "bad.py" in message
    assert words in message
    assert registry.versions().keys() == {"flowfactory"}


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("target_absent:Toy", None, "importing `target_absent` failed"),
        ("target_a:Toyy", "class Toy: pass\n", "has no `Toyy`; did you mean `Toy`?"),
        ("target_b:Toy", "class Toy: pass\n", "its target `Toy` does not extend `Trainer`"),
        ("target_c:Toy", "Toy = 3\n", "is not a class or function"),
        ("target_d:Toy", "def Toy(spec): pass\n", "its target is not a class"),
    ],
)
def test_targets_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, code: str | None, words: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    if code is not None:
        (tmp_path / f"{target.partition(':')[0]}.py").write_text(code)
    (tmp_path / "toy.py").write_text(TOY.replace("toy_target:Toy", target))
    registry = Registry()
    registry.load_file(tmp_path / "toy.py")
    assert words in refusal(lambda: registry.target("trainers", "toy"))


def test_trace_shows_hook_calls() -> None:
    lines: list[str] = []
    Registry(trace=lines.append).find("schedulers", "ode")
    assert any("flowfactory_schedulers" in line for line in lines)


def test_trackers_are_asked_by_name(tmp_path: Path) -> None:
    registry = Registry()
    assert Events(*registry.observers()).tracker("mine", None) is None
    assert not registry.brings_trackers()
    (tmp_path / "t.py").write_text(
        "from flowfactory import hookimpl\n@hookimpl\ndef flowfactory_tracker(name, run):\n"
        "    return 'tracker' if name == 'mine' else None\n"
    )
    registry.load_file(tmp_path / "t.py")
    assert registry.brings_trackers()
    assert Events(*registry.observers()).tracker("mine", None) == "tracker"
    assert Events(*registry.observers()).tracker("other", None) is None


def test_a_plugin_that_is_refused_is_refused_again_in_the_same_words(installed: Path) -> None:
    registry = Registry()
    first = refusal(lambda: registry.find("rewards", "misnamed"))
    assert refusal(lambda: registry.find("rewards", "misnamed")) == first


def test_no_plugin_takes_a_key_of_a_rewards_table() -> None:
    assert {field.name for field in attrs.fields(RewardEntry)} - {"spec"} == OF_REWARDS
