"""The example learns to spell: held-out words are read better after a few epochs, and look better, too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_held_out_words_are_read_better(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowfactory", "run", "flowfactory_plugin_glyphs:examples/glyphs-nft.toml"]
    changes = ["--set=run.epochs=3", "--set=run.save_samples=0", "--set=eval.every=3"]
    subprocess.run([*command, *changes, "--folder", str(tmp_path / "run")], check=True, capture_output=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    before, *_, after = (json.loads(line) for line in lines)
    assert after["eval/ocr/mean"] > before["eval/ocr/mean"] + 0.1
    assert after["eval/glyphs/mean"] > before["eval/glyphs/mean"]
