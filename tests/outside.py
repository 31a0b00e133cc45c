"""Wheels of this repository, and environments outside it that have nothing but what is installed into them.

Third-party libraries are borrowed from the environment the tests run in, so that nothing is downloaded; everything of
flowfactory's is left behind there.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
WARM = Path(__file__).parent / "warm.py"
LARGE = (
    "accelerate",
    "diffusers.pipelines.flux.pipeline_flux",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "peft",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
)
"""Third-party modules that take seconds to import."""
OWN = ("flowfactory", "__editable__", "_editable_impl_flowfactory", "_virtualenv")
"""How the files that installing this repository puts into an environment begin."""


def packages() -> Sequence[Path]:
    """The folders of the first-party distributions."""
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [ROOT / name for name in workspace["tool"]["flowfactory"]["packages"]]


def build_wheel(project: Path, folder: Path) -> Path:
    """Build a project's wheel into `folder`."""
    (made,) = WheelBuilder(str(project)).build(directory=str(folder), versions=["standard"])
    return Path(made)


def run(command: Sequence[str], cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command and return its stdout; one that fails shows all it said."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Environment:
    """A Python environment in a new folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(OWN):
                (borrowed / path.name).symlink_to(path)
        (self.site / "borrowed.pth").write_text(f"{borrowed}\n")

    @property
    def site(self) -> Path:
        """Where it keeps what is installed."""
        (site,) = (self.folder / "lib").glob("python*/site-packages")
        return site

    @property
    def variables(self) -> dict[str, str]:
        """The variables of processes in it; nothing of the repository's is among them."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}

    def install(self, *wanted: str | Path, index: bool = False, cwd: Path | None = None) -> None:
        """Install wheels and whatever else pip takes.

        Args:
            index: whether what is missing may come from the package index; otherwise all must be there already.
            cwd: what paths are relative to.
        """
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), "install"]
        options = ("--quiet", "--no-compile", *(() if index else ("--no-index",)))
        run([*pip, *options, *map(str, wanted)], cwd=cwd or self.folder, environment=self.variables)

    def run(self, *command: str, cwd: Path) -> str:
        """Run a command in it and return its stdout."""
        program = self.folder / "bin" / command[0]
        first = str(program) if program.exists() else command[0]
        return run([first, *command[1:]], cwd=cwd, environment=self.variables)

    def run_warm(self, *command: str, cwd: Path) -> str:
        """The same, by a fork of a process of this environment that has imported what is large, and nothing of ours."""
        said = {name: cwd / f".{name}" for name in ("stdout", "stderr")}
        for file in said.values():
            file.write_text("")
        program = self.folder / "bin" / command[0]
        arguments = ["python" if command[0] == "python" else str(program), *command[1:]]
        asked = {"arguments": arguments, "cwd": str(cwd), **{name: str(file) for name, file in said.items()}}
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        self._warm.stdin.write(json.dumps(asked) + "\n")
        self._warm.stdin.flush()
        code = self._warm.stdout.readline().strip()
        stdout, stderr = (file.read_text() for file in said.values())
        assert code == "0", f"{' '.join(command)}\nexit code {code}\n{stdout}\n{stderr}"
        return stdout

    def close(self) -> None:
        """End what `run_warm` has started."""
        if "_warm" in vars(self):
            self._warm.communicate()

    @functools.cached_property
    def _warm(self) -> subprocess.Popen[str]:
        python = [str(self.folder / "bin" / "python"), "-P", str(WARM), *LARGE]
        variables = {**self.variables, "OMP_WAIT_POLICY": "PASSIVE"}
        return subprocess.Popen(
            python, cwd=self.folder, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
