"""The hook module is light: reading a spec must not load a deep-learning library."""

from __future__ import annotations

import subprocess
import sys


def test_it_imports_no_torch():
    code = "import sys, flowfactory_plugin_flux; print(*({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
