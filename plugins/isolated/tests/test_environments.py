"""Environments: a real one from PyPI, shared by these tests; what cannot be built; two at once; without a network."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.tables import RewardEntry
from flowfactory_plugin_isolated import IsolatedSpec, environments
from flowfactory_plugin_isolated.environments import BuildError, folder_of, home, host_wheel, python_of, tail
from flowfactory_plugin_isolated.process import Keeper

OLD = "packaging==21.3"
"""Pure Python, small, and another version than flowfactory wants."""
NOWHERE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "UV_OFFLINE": "1"}
"""No network, and no packages beside it."""
SPEC = """
[run]
name = "x"
epochs = 1
[model]
name = "diffusers"
path = "some-org/some-model"
[lora]
[data]
prompts = "prompts.txt"
[sampling]
size = 64
steps = 2
prompts = 1
group = 2
[scheduler]
name = "flow-sde"
[trainer]
name = "grpo"
[optimizer]
lr = 1e-3
[[reward]]
name = "isolated"
label = "old"
score = "./old.py:score"
requirements = {requirements}
"""
SCORER = """
import packaging

def score(images, prompts, rows):
    return [float(packaging.__version__) for image in images]
"""


@pytest.fixture
def function(tmp_path: Path) -> str:
    (tmp_path / "old.py").write_text(SCORER)
    return f"{tmp_path / 'old.py'}:score"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def full_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with the environment of `OLD`: built once for all processes that test."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "isolated"
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(folder))
    python_of(IsolatedSpec(score="any:score", requirements=(OLD,)), lambda line: None)
    return folder


def write_spec(folder: Path, requirements: str) -> Path:
    (folder / "old.py").write_text(SCORER)
    (folder / "prompts.txt").write_text("a red circle\n")
    (folder / "spec.toml").write_text(SPEC.format(requirements=requirements))
    return folder / "spec.toml"


def build(spec: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`flowfactory rewards build`"""
    code = "import sys; from flowfactory import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", f"{code}; sys.exit(code)", "rewards", "build", str(spec)]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def left(cache: Path) -> list[str]:
    """What lies in the folder of environments, but for locks and the host's wheel."""
    found = (cache / "environments").glob("*") if (cache / "environments").exists() else []
    return [path.name for path in found if path.suffix != ".lock" and not path.name.startswith("host-")]


# --- a real one ---


@pytest.mark.slow
def test_packages_that_clash_with_ours_are_in_it_and_score(full_cache: Path, function: str) -> None:
    spec = IsolatedSpec(score=function, requirements=(OLD,))
    keeper = Keeper(python_of(spec, pytest.fail), host_wheel(), function, "cpu", 60.0, 60.0, 0)
    assert keeper.score([Sample(Row("x"), torch.zeros(3, 4, 4), 0, 0)]) == [21.3]
    assert not importlib.metadata.version("packaging").startswith("21.")


@pytest.mark.slow
def test_nothing_of_ours_is_in_it(full_cache: Path) -> None:
    python = python_of(IsolatedSpec(score="any:score", requirements=(OLD,)), pytest.fail)
    code = "import importlib.metadata as m; print(sorted(d.metadata['Name'].lower() for d in m.distributions()))"
    found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert {*eval(found)} - {"pip", "setuptools"} == {"flowfactory-scorer", "numpy", "packaging", "pillow", "pyparsing"}


@pytest.mark.slow
def test_a_full_cache_needs_no_network_and_an_empty_one_says_what_it_lacks(full_cache: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, f'["{OLD}"]')
    again = build(spec, **NOWHERE)
    assert (again.returncode, again.stdout) == (0, "")
    assert f"reward 'old' runs in {full_cache / 'environments'}" in again.stderr
    assert "building" not in again.stderr
    empty = build(spec, **NOWHERE, FLOWFACTORY_CACHE=str(tmp_path / "empty"))
    assert empty.returncode == 1
    assert "No matching distribution found" in empty.stderr or "not found in the cache" in empty.stderr
    assert left(tmp_path / "empty") == []


@pytest.mark.slow
def test_requirements_that_do_not_resolve_fail_in_the_installers_words(cache: Path, function: str) -> None:
    with pytest.raises(BuildError, match=r"(?s)and nothing is kept of it: .*packaging==0\.0\.99") as raised:
        python_of(IsolatedSpec(score=function, requirements=("packaging==0.0.99",)), lambda line: None)
    assert "No matching distribution found for packaging==0.0.99" in str(raised.value) or "unsatisfiable" in str(
        raised.value
    )
    assert left(cache) == []


# --- with an installer of the tests ---

UV = """#!{python}
import os, pathlib, sys, time, venv
log = pathlib.Path({log!r})
with log.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if "fail" in " ".join(sys.argv):
    sys.exit("error: No space left on device (os error 28)")
if sys.argv[1] == "venv":
    venv.create(sys.argv[-1], symlinks=True)
    time.sleep({pause})
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A `uv` that makes environments and installs nothing; gives what it was asked for."""
    bin, log = tmp_path / "bin", tmp_path / "uv.log"
    bin.mkdir()
    (bin / "uv").write_text(UV.format(python=sys.executable, log=str(log), pause=0.5))
    (bin / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    return lambda: log.read_text().splitlines() if log.exists() else []


def test_uv_is_used_where_it_is(cache: Path, uv: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("packaging\n")
    python = python_of(
        IsolatedSpec(score="a:b", requirements=str(tmp_path / "needs.txt"), python="3.8"), lambda line: None
    )
    venv, install = uv()
    assert venv == f"venv --quiet --python 3.8 {python.parents[1]}"
    assert install == f"pip install --quiet --python {python} {host_wheel()} -r {tmp_path / 'needs.txt'}"
    python_of(IsolatedSpec(score="a:b", requirements=("x", "y<2")), lambda line: None)
    assert uv()[2].startswith(f"venv --quiet --python {sys.executable} ")
    assert uv()[3].endswith(f"{host_wheel()} x y<2")


def test_an_environment_is_told_of_once_and_then_found(cache: Path, uv: Callable[[], list[str]]) -> None:
    lines: list[str] = []
    spec = IsolatedSpec(score="./hps.py:score", requirements=("x",))
    python = python_of(spec, lines.append)
    assert python.exists()
    assert lines[0] == "building the environment of ./hps.py:score with uv, once"
    assert lines[1].startswith("built it in ")
    assert python_of(spec, pytest.fail) == python
    python.unlink()  # as after Python itself was removed
    assert python_of(spec, lines.append) != python
    assert len(uv()) == 4


def test_two_that_build_at_once_build_once(cache: Path, uv: Callable[[], list[str]], tmp_path: Path) -> None:
    spec = write_spec(tmp_path, '["x"]')
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(build, [spec, spec])
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert [line.split()[0] for line in uv()] == ["venv", "pip"]
    assert one.stderr.splitlines()[-1] == two.stderr.splitlines()[-1]


def test_who_waits_is_told(cache: Path, uv: Callable[[], list[str]]) -> None:
    spec = IsolatedSpec(score="a:b", requirements=("x",))
    first = Thread(target=python_of, args=(spec, lambda line: None))
    first.start()
    while not uv():
        sleep(0.02)
    lines: list[str] = []
    python_of(spec, lines.append)
    first.join()
    assert lines == ["another process is building the environment of a:b; waiting for it"]


def test_a_full_disk_leaves_nothing(cache: Path, uv: Callable[[], list[str]]) -> None:
    with pytest.raises(BuildError, match=r"(?s)ended with exit code 1 and said:\nerror: No space left on device"):
        python_of(IsolatedSpec(score="a:b", requirements=("fail",)), lambda line: None)
    assert left(cache) == []
    assert len(uv()) == 2


def test_a_run_that_cannot_have_it_ends_in_the_installers_words(cache: Path, uv: Callable[[], list[str]]) -> None:
    spec = IsolatedSpec(score="a:b", requirements=("fail", *(f"also-{i}" for i in range(200))))
    entry = RewardEntry(name="isolated", label="old", spec=spec)
    ours = Judge([entry], {"isolated": Registry().target("rewards", "isolated")}, {})
    with pytest.raises(RewardError, match=r"(?s)also-199` ended with exit code 1 and said:\nerror: No space left"):
        ours.load(torch.device("cpu"), torch.float32)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"the environment of a:b cannot be built in .*: .*Not a directory"):
        python_of(IsolatedSpec(score="a:b"), lambda line: None)


def test_what_a_killed_process_left_is_built_anew(cache: Path, uv: Callable[[], list[str]]) -> None:
    spec = IsolatedSpec(score="a:b", requirements=("x",))
    half = folder_of(spec) / "half" / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to(sys.executable)
    python = python_of(spec, lambda line: None)
    assert python.exists()
    assert not half.exists()


def test_a_stop_while_building_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python_of(IsolatedSpec(score="a:b"), lambda line: None)
    assert left(cache) == []


def test_a_python_that_is_not_there_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"wants Python 3\.8, and there is no python3\.8 here; install it, or uv"):
        python_of(IsolatedSpec(score="a:b", python="3.8"), lambda line: None)


# --- what names an environment ---


@pytest.fixture
def names(tmp_path: Path) -> Mapping[str, Path]:
    """The folders of several environments, by what is special about them."""
    (tmp_path / "more.txt").write_text("c==1\n")
    (tmp_path / "needs.txt").write_text("a==1\n-r more.txt\n")
    file = str(tmp_path / "needs.txt")
    found = {
        "plain": folder_of(IsolatedSpec(score="a:b", requirements=("a==1",))),
        "same": folder_of(IsolatedSpec(score="c:d", requirements=("a==1",), restarts=9)),
        "version": folder_of(IsolatedSpec(score="a:b", requirements=("a==2",))),
        "python": folder_of(IsolatedSpec(score="a:b", requirements=("a==1",), python="3.9")),
        "file": folder_of(IsolatedSpec(score="a:b", requirements=file)),
    }
    (tmp_path / "more.txt").write_text("c==2\n")
    return {**found, "nested": folder_of(IsolatedSpec(score="a:b", requirements=file))}


def test_environments_are_named_by_what_they_are_made_from(names: Mapping[str, Path]) -> None:
    assert names["same"] == names["plain"]
    assert len({*names.values()}) == len(names) - 1
    assert {folder.parent for folder in names.values()} == {home()}


def test_the_hosts_wheel_is_whole(cache: Path) -> None:
    with zipfile.ZipFile(host_wheel()) as wheel:
        names = wheel.namelist()
        record = wheel.read(next(name for name in names if name.endswith("/RECORD"))).decode()
    assert "flowfactory_scorer/__main__.py" in names
    assert sorted(line.split(",")[0] for line in record.splitlines()) == sorted(names)


@pytest.mark.parametrize(
    ("text", "end"),
    [("ab\ncd", "ab\ncd"), ("abc\ndefgh\nij", "defgh\nij"), ("abc\ndefghi\nij", "ij"), ("abcdefghijkl", "efghijkl")],
)
def test_messages_repeat_the_last_lines_whole(text: str, end: str) -> None:
    assert tail(text, 8) == end
