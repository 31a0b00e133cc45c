"""What the plugin's entries owe, on prompts of the shapes world: they refuse others."""

from importlib.resources import files
from pathlib import Path

from flowfactory.testing import conformance

PROMPTS = Path(str(files("flowfactory_plugin_shapes"))) / "prompts" / "eval.txt"

test_conformance = conformance("flowfactory-plugin-shapes", prompts=PROMPTS)
