"""The commands, their exit codes, what goes to stdout and what to stderr, and what they do not import."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal as signals
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flowfactory.training as training
import pytest
from flowfactory.cli import launcher
from flowfactory.cli.main import main
from flowfactory.cli.verbs import evaluating, looking, plugins, results, running
from flowfactory.plan import faults
from flowfactory.processes import launch
from specs import DISTRIBUTIONS, SPEC, TOY, edited

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher around the tests."""
    for name in (*launch._SIZES, *launch._RANKS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of these specs is nowhere, which a run would ask the hub about."""
    monkeypatch.setattr(faults, "on_the_hub", lambda own, needed: iter(()))


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Replaces the training loop."""

    def replace(run: Callable[..., None]) -> None:
        module: Any = types.ModuleType("flowfactory.training.loop")
        module.run = run
        module.closing_words = lambda plan, folder: "well done"
        monkeypatch.setitem(sys.modules, "flowfactory.training.loop", module)
        monkeypatch.setattr(training, "loop", module, raising=False)
        monkeypatch.setattr(running, "resolved", lambda spec, registry: None)

    return replace


# --- check and plan ------------------------------------------------------------------------------------------------


def test_check_a_valid_spec(spec: Path, capsys: Capture) -> None:
    assert main(["check", "spec.toml"]) == 0
    assert capsys.readouterr() == ("", "spec.toml: ok\n")


def test_check_tells_every_mistake_of_every_spec(spec: Path, capsys: Capture) -> None:
    Path("bad.toml").write_text(edited(("epochs = 3", "epoch = 3"), ("rank = 4", "rank = 0")))
    assert main(["check", "spec.toml", "bad.toml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "spec.toml: ok" in err
    assert "bad.toml:5: unknown key `epoch` in [run]; did you mean `epochs`?" in err
    assert "bad.toml:12: `rank`: expected a number at least 1, not 0" in err
    assert err.endswith("3 problems\n")


def test_check_as_json(spec: Path, capsys: Capture) -> None:
    assert main(["check", "spec.toml", "--json", "--set", "lora.rank=0"]) == 2
    out, err = capsys.readouterr()
    (problem,) = json.loads(out)
    assert (problem["kind"], problem["file"], problem["code"]) == ("bad-value", None, 2)
    assert err == ""


def test_plan(spec: Path, capsys: Capture) -> None:
    assert main(["plan", "spec.toml", "--set", "sampling.group=6"]) == 0
    out, err = capsys.readouterr()
    assert "24     samples per epoch: 4 prompts x groups of 6" in out
    assert "toy.py" in out
    assert err == ""
    assert main(["plan", "spec.toml", "--json", "--processes", "2"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["world"] == 2
    assert made["spec"]["run"]["name"] == "test"


def test_plan_refuses_a_world_that_does_not_divide(spec: Path, capsys: Capture) -> None:
    assert main(["plan", "spec.toml", "--processes", "3"]) == 2
    assert "3 processes cannot share the 2 groups of an update" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_too_many_processes_hide_no_mistake(spec: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "spec.toml", "--processes", "3", "--set", "sampling.steps=x"]) == 2
    told = capsys.readouterr().err
    assert "3 processes cannot share the 2 groups of an update" in told
    assert "`steps`: expected a whole number" in told
    assert main([verb, "spec.toml", "--processes", "3", "--set", "optimizer.updates=3"]) == 2
    assert "processes cannot share" not in capsys.readouterr().err  # how many groups an update has is not known


# --- looking at plugins --------------------------------------------------------------------------------------------


def test_plugins_list_without_trouble(capsys: Capture) -> None:
    assert main(["plugins", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "version"]
    assert ["scheduler", "ode", "flowfactory", importlib.metadata.version("flowfactory")] in lines


def test_plugins_list_tells_what_is_in_the_way(installed: Path, capsys: Capture) -> None:
    assert main(["plugins", "list"]) == 3
    lines = [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "version", "trouble"]
    assert ["reward", "good", "flowfactory-plugin-good", "1.0"] in lines
    assert ["reward", "broken", "flowfactory-plugin-broken", "1.0"] in lines, "metadata does not know"
    assert ["observer", "watcher", "flowfactory-plugin-watcher", "1.0"] in lines
    assert ["reward", "twin", "other-twin", "0.3", "also provided by flowfactory-plugin-twin 1.0"] in lines
    (too_new,) = [line[-1] for line in lines if line[1] == "toonew"]
    assert too_new.startswith("requires flowfactory>=99, but 0.")
    assert main(["plugins", "list", "--json"]) == 3
    rows = {(row["name"], row["distribution"]): row["troubles"] for row in json.loads(capsys.readouterr().out)}
    assert rows["good", "flowfactory-plugin-good"] == []
    assert rows["twin", "flowfactory-plugin-twin"] == ["also provided by other-twin 0.3"]
    (lonely,) = rows["lonely", "flowfactory-plugin-lonely"]
    assert lonely == "requires flowfactory-plugin-absent>=2, which is not installed"
    assert not {d.module for d in DISTRIBUTIONS} & sys.modules.keys(), "no plugin code runs"


def test_plugins_show(installed: Path, capsys: Capture) -> None:
    assert main(["plugins", "show", "flow-sde"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("scheduler `flow-sde` (flowfactory ")
    assert "window.rule" in out
    assert main(["plugins", "show", "twin", "--json"]) == 0
    assert {row["distribution"] for row in json.loads(capsys.readouterr().out)} == {
        "other-twin",
        "flowfactory-plugin-twin",
    }
    assert main(["plugins", "show", "watcher"]) == 0
    assert capsys.readouterr().out.endswith('plugins = ["watcher"]\n')


@pytest.mark.parametrize("name", ["flow-sde", "dance-sde", "linear-sde", "cps"])
def test_what_plugins_show_offers_to_paste_is_sound(spec: Path, name: str, capsys: Capture) -> None:
    assert main(["plugins", "show", name]) == 0
    table = capsys.readouterr().out.partition("\n\n[")[2]
    for text in (table, table.replace("# ", "")):
        before, _, after = SPEC.partition("[scheduler]")
        spec.write_text(f"{before}[{text}\n[trainer]{after.partition('[trainer]')[2]}")
        assert main(["check", "spec.toml"]) == 0


def test_keys_that_must_be_there_are_in_what_to_paste(capsys: Capture) -> None:
    assert main(["plugins", "show", "diffusers"]) == 0
    table = tomllib.loads("[model]" + capsys.readouterr().out.partition("[model]")[2])
    assert table == {"model": {"name": "diffusers", "path": "..."}}


def test_plugins_that_cannot_be_shown(installed: Path, capsys: Capture) -> None:
    for name, words in {
        "flow-sed": "no plugin `flow-sed` is installed; did you mean `flow-sde`?",
        "ode@third": "no plugin `ode@third` is installed; see: flowfactory plugins list",
        "broken": "No module named 'a_module_nobody_has'",
    }.items():
        assert main(["plugins", "show", name]) == 3
        assert words in capsys.readouterr().err


def test_schema(installed: Path, capsys: Capture) -> None:
    assert main(["schema"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["title"] == "flowfactory spec"
    assert "left out: reward `broken` (flowfactory-plugin-broken 1.0) is broken" in err


def test_env(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"]
    assert facts["plugins"]["flowfactory"] == facts["flowfactory"]
    assert facts["executable"] == sys.executable
    assert facts["variables"]["HF_HUB_OFFLINE"] == "1"
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["HF_HUB_OFFLINE", "1"] in lines
    assert ["torch", facts["packages"]["torch"]] in lines
    assert "a-secret" not in out


def test_trace(spec: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_TRACE", "1")
    assert main(["check", "spec.toml"]) == 0
    assert "flowfactory_rewards" in capsys.readouterr().err


# --- exit codes ----------------------------------------------------------------------------------------------------


def test_exit_0_when_done(spec: Path, loop: Callable[..., None], capsys: Capture) -> None:
    seen = []
    loop(lambda plan, registry, folder, ui, resume: seen.append((plan.digest, folder, resume)))
    assert main(["run", "spec.toml", "--set", "run.epochs=1"]) == 0
    assert main(["run", "spec.toml", "--set", "run.epochs=1"]) == 0
    assert [(folder, resume) for _, folder, resume in seen] == [
        (Path("runs/test").absolute(), False),
        (Path("runs/test-2").absolute(), False),
    ]
    written = {path.name for path in Path("runs/test").iterdir()}
    assert {"spec.toml", "plan.json", "env.json"} <= written
    assert main(["resume", "runs/test"]) == 0
    assert seen[-1] == (seen[0][0], Path("runs/test").absolute(), True)


def test_exit_1_when_the_run_fails(spec: Path, loop: Callable[..., None], capsys: Capture) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of luck")

    loop(fail)
    assert main(["run", "spec.toml"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: out of luck" in err
    assert "the run failed; this is in runs/test/log.txt too" in err
    assert "RuntimeError: out of luck" in Path("runs/test/log.txt").read_text()


def test_exit_1_when_a_reward_fails(spec: Path, loop: Callable[..., None], capsys: Capture) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        from flowfactory.rewards.asking import RewardError

        raise RewardError("reward 'bright' failed")

    loop(fail)
    assert main(["run", "spec.toml"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "reward 'bright' failed"


@pytest.mark.parametrize(
    "arguments",
    [
        ["chekc"],
        ["check"],
        ["check", "spec.toml", "--sett", "a=b"],
        ["run", "spec.toml", "--processes", "0"],
        ["run", "absent.toml"],
        ["run", "spec.toml", "--set", "run.epochs=x"],
        ["resume", "."],
        ["plan", "."],
    ],
)
def test_exit_2_on_bad_usage_or_spec(spec: Path, arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_exit_2_when_a_run_was_tampered_with(spec: Path, loop: Callable[..., None], capsys: Capture) -> None:
    loop(lambda *args, **kwargs: None)
    assert main(["run", "spec.toml"]) == 0
    written = Path("runs/test/spec.toml")
    written.write_text(written.read_text().replace("lr = 0.0001", "lr = 0.001"))
    assert main(["resume", "runs/test"]) == 2
    assert "was changed since the run began" in capsys.readouterr().err


def test_exit_2_when_the_data_is_bad(spec: Path, loop: Callable[..., None], capsys: Capture) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        from flowfactory.data.rows import DataError

        raise DataError("train.txt: no prompts in it")

    loop(fail)
    assert main(["run", "spec.toml"]) == 2


@pytest.mark.parametrize("name", ["broken", "twin", "toonew", "missing-one"])
def test_exit_3_on_plugins(spec: Path, installed: Path, name: str, capsys: Capture) -> None:
    assert main(["check", "spec.toml", "--set", f"reward[0].name={name}"]) == 3
    assert main(["run", "spec.toml", "--set", f"reward[0].name={name}"]) == 3
    assert not Path("runs").exists()


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_exit_75_and_130_when_stopped(
    spec: Path, loop: Callable[..., None], signal: str, code: int, capsys: Capture
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        from flowfactory.processes.stop import Stopped

        raise Stopped(signals.Signals[signal])

    loop(stop)
    assert main(["run", "spec.toml"]) == code
    assert f"stopped by {signal}; go on with: flowfactory resume runs/test" in capsys.readouterr().err


def raises(error: BaseException) -> Callable[..., Any]:
    def act(*args: Any, **kwargs: Any) -> None:
        raise error

    return act


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_any_command_hears_who_stops_it(
    spec: Path, monkeypatch: pytest.MonkeyPatch, signal: str, code: int, capsys: Capture
) -> None:
    monkeypatch.setattr(looking, "installed_entries", lambda: os.kill(os.getpid(), signals.Signals[signal]))
    assert main(["check", "spec.toml"]) == code
    assert capsys.readouterr().err == f"stopped by {signal}\n"


ENDS = [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), EOFError(), BrokenPipeError(32, "Broken pipe")]


@pytest.mark.parametrize("error", ENDS)
def test_what_ends_programs_is_a_failure_in_words(
    spec: Path, loop: Callable[..., None], monkeypatch: pytest.MonkeyPatch, error: BaseException, capsys: Capture
) -> None:
    """Nobody but a person, by a signal, ends a command without a word."""
    loop(raises(error))
    assert main(["run", "spec.toml"]) == 1
    said = capsys.readouterr().err
    assert type(error).__name__ in said
    assert "the run failed; this is in runs/test/log.txt too" in said
    monkeypatch.setattr(looking, "installed_entries", raises(error))
    assert main(["check", "spec.toml"]) == 1
    said = capsys.readouterr().err
    assert type(error).__name__ in said
    assert "report it with the lines above" in said


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            ('"""A trainer', 'raise KeyboardInterrupt\n"""A trainer'),
            "plugin file toy.py is broken: running it failed: ",
        ),
        (("    yield", "    raise GeneratorExit\n    yield"), "its hook `flowfactory_trainers` failed: GeneratorExit"),
        (
            ("return Needs", "raise SystemExit(0)\n        return Needs"),
            "plugin toy.py is broken: SystemExit: 0 (toy.py:",
        ),
        (("return Needs", "raise LookupError('x')\n        return Needs"), "plugin toy.py is broken: LookupError: x ("),
        (("if self.level", "raise KeyError('x')\n        if self.level"), "plugin toy.py is broken: KeyError: 'x' ("),
        (("if value > 9", "raise EOFError\n        if value > 9"), "plugin toy.py is broken: EOFError ("),
    ],
)
def test_whatever_a_plugin_raises_at_check_is_told_of_it(
    spec: Path, edit: tuple[str, str], said: str, capsys: Capture
) -> None:
    Path("toy.py").write_text(TOY.replace(*edit, 1))
    assert main(["check", "spec.toml"]) == 3
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        *([verb, "PATH"] for verb in ("check", "plan", "run", "bench", "resume", "export", "report", "runs")),
        *(["check", "spec.toml", f"--set={key}=PATH"] for key in ("data.prompts", "model.path")),
        *(["check", "spec.toml", f"--set=plugins=['{place}']"] for place in ("PATH.py", "~nouser/x.py")),
        *(["check", "spec.toml", f"--set={key}=~nouser/x"] for key in ("memory.cache", "lora.from")),
        ["check", "spec.toml", "--set=memory.cache=/PATH"],
        ["check", "package:PATH"],
        ["sample", "PATH", "a dog"],
        ["evaluate", "PATH"],
        ["watch", "PATH"],
        ["rewards", "build", "PATH"],
    ],
)
def test_paths_that_nobody_can_have_are_told(spec: Path, arguments: list[str], capsys: Capture) -> None:
    assert main([argument.replace("PATH", "x" * 300) for argument in arguments]) in (2, 3)
    said = " ".join(capsys.readouterr().err.split())
    assert "longer than file systems allow" in said or "no user '" in said or "File name too long" in said
    assert "Traceback" not in said


def begun(loop: Callable[..., None]) -> str:
    """A run without a checkpoint."""
    loop(lambda *args, **kwargs: None)
    assert main(["run", "spec.toml"]) == 0
    return "runs/test"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("spec.toml", "spec.toml"),
        ("spec.toml/below", "Not a directory"),
        ("x" * 300, " long"),
        ("/proc/nowhere/x", "cannot be written: No such file or directory"),
        ("own", "own"),
    ],
)
def test_places_that_cannot_be_written_are_told_before_torch_is_loaded(
    spec: Path, loop: Callable[..., None], monkeypatch: pytest.MonkeyPatch, place: str, said: str, capsys: Capture
) -> None:
    run = begun(loop)
    Path("own").mkdir()
    for name in ("mine.txt", "shapes-grpo.toml", "report.html", "flowfactory-plugin-x"):
        Path("own", name).write_text("mine")
    for module in (results, running, plugins, evaluating):
        monkeypatch.setattr(module, "load_libraries", lambda: pytest.fail("torch was loaded"))
    capsys.readouterr()
    page = f"{place}/report.html" if place == "own" else place
    for command in (
        ["run", "spec.toml", "--folder", place],
        *([["run", "spec.toml", "--runs", place]] if place != "own" else []),
        ["export", run, "--to", place],
        ["sample", run, "a dog", "--to", place],
        ["evaluate", run, "--rewards", "bright", "--to", place],
        ["report", run, "--out", page],
        ["examples", "copy", "shapes-grpo", "--to", place],
        ["new", "reward", "x", "--into", place],
    ):
        before = sorted(Path().rglob("*"))
        assert main(command) in (1, 2), command
        shown = capsys.readouterr().err
        assert said in " ".join(shown.split()), command
        assert "Traceback" not in shown, command
        assert sorted(Path().rglob("*")) == before, command
    assert all(path.read_text() == "mine" for path in Path("own").iterdir())


# --- processes -----------------------------------------------------------------------------------------------------


def test_several_processes_start_the_launcher(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(launcher, "launch", lambda processes, arguments: started.append((processes, arguments)) or 75)
    assert main(["run", "spec.toml", "--processes", "2", "--set", "run.name=two", "--unset", "trainer.beta"]) == 75
    assert started == [
        (2, ["run", "spec.toml", "--set=run.name=two", "--unset=trainer.beta", "--folder", "runs/two"]),
    ]
    assert list(Path("runs").iterdir()) == [], "nothing is left of a start that wrote nothing"


def test_inside_a_launcher_nothing_is_started(
    spec: Path, loop: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    worlds = []
    loop(lambda plan, *args, **kwargs: worlds.append(plan.world))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["run", "spec.toml", "--folder", "here"]) == 0
    assert worlds == [2]
    assert not Path("here", "plan.json").exists(), "only the main process writes"


# --- imports -------------------------------------------------------------------------------------------------------

LIGHT = [
    ["check", "spec.toml"],
    ["check", "bad.toml"],
    ["plan", "spec.toml"],
    ["plan", "spec.toml", "--json"],
    ["schema"],
    ["plugins", "list"],
    ["plugins", "show", "flow-sde"],
    ["env", "--json"],
    ["--help"],
    ["run", "--help"],
    ["--version"],
]

PROGRAM = """
import json, sys
from flowfactory.cli.main import main
heavy = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "PIL")
for arguments in json.loads(sys.argv[1]):
    main(arguments)
    loaded = [name for name in heavy if name in sys.modules]
    assert not loaded, (arguments, loaded)
"""


def cpu_seconds(code: str, *arguments: str) -> float:
    """User CPU time of a fresh interpreter."""
    before = os.times().children_user
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return os.times().children_user - before


def test_looking_imports_nothing_heavy(spec: Path) -> None:
    Path("bad.toml").write_text(edited(("epochs = 3", "epoch = 3")))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(LIGHT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_check_costs_a_fraction_of_importing_torch(spec: Path) -> None:
    check = min(cpu_seconds(PROGRAM, json.dumps([["check", "spec.toml"]])) for _ in range(2))
    torch = cpu_seconds("import torch")
    assert check < torch / 2, f"check takes {check:.2f} s of CPU, importing torch {torch:.2f} s"


def test_a_mistake_of_ours_says_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(looking, "installed_entries", lambda: 1 / 0)
    assert main(["check", "x.toml"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "report it with the lines above and what `flowfactory env` says" in said


def test_usage_errors_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "reward\x1b[2J", "x"]) == 2
    assert "\x1b" not in capsys.readouterr().err
