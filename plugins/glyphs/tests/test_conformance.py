"""What the plugin's entries owe, on prompts of this world: they refuse others."""

from importlib.resources import files
from pathlib import Path

from flowfactory.testing import conformance

PROMPTS = Path(str(files("flowfactory_plugin_glyphs"))) / "prompts" / "eval.txt"

test_conformance = conformance("flowfactory-plugin-glyphs", prompts=PROMPTS)
