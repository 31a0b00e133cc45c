"""A run imports what its spec uses: no other plugin, no tracker, nothing that draws or bakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from flowfactory.cli.main import main
assert main(["run", sys.argv[1], "--folder", sys.argv[2], "--set=run.epochs=1", "--set=eval.every=0"]) == 0
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_a_run_imports_what_its_spec_uses(spec: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(spec), str(tmp_path / "run")]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    plugins = {name for name in loaded if name.startswith("flowfactory_plugin_")}
    assert plugins == {"flowfactory_plugin_flux", "flowfactory_plugin_grpo"}
    assert not {"matplotlib", "wandb", "tensorboard", "cookiecutter", "pytest"} & set(loaded)
