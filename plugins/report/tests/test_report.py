"""The page of a report, without a browser; `test_page.py` has one."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flowfactory import main, read_runs
from flowfactory_plugin_report import drawing
from flowfactory_plugin_report.tables import differences, facts, table_of_runs
from runs import lay_run

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class Tags(HTMLParser):
    """Counts tags and collects attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_report_lies_in_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    assert main(["report", str(folder)]) == 0
    assert f"the report is in {folder / 'report.html'}" in capsys.readouterr().err
    assert {path.suffix for path in (folder / "report-curves").glob("reward.*")} == {".png", ".pdf"}


def test_words_beside_scores_are_text(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=2)
    table = folder / "samples" / "eval-0002" / "samples.jsonl"
    said = json.dumps({"bright/why": HOSTILE})
    table.write_text(table.read_text().replace('"scores"', f'"words": {said}, "scores"'))
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert r'"words": {"bright/why": "\"\u003e\u003cscript\u003ealert(1)' in page
    assert "<script>alert" not in page


def test_a_report_on_several_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = lay_run(tmp_path / "one", epochs=1), lay_run(tmp_path / "two", epochs=1)
    assert main(["report", str(one), str(two)]) == 0
    assert (tmp_path / "report.html").is_file()


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    mine, pipe = tmp_path / "mine.html", tmp_path / "pipe"
    mine.write_text("<!doctype html><title>My own</title>")
    os.mkfifo(pipe)
    for out, said in (
        (mine, "is no report, and is not written over"),
        (pipe, "is not a file that a page could replace"),
    ):
        assert main(["report", str(folder), "--out", str(out)]) == 2
        assert f"{out} {said}; name another --out" in capsys.readouterr().err
    assert mine.read_text() == "<!doctype html><title>My own</title>"
    for _ in range(2):
        assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_run(tmp_path / "run", epochs=1)
    assert main(["report", str(tmp_path)]) == 2
    assert "is not the folder of a run: it has no plan.json; there are runs in it: run" in capsys.readouterr().err


def test_a_run_that_has_hardly_begun_has_a_page(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    for name in ("metrics.jsonl", "env.json"):
        (folder / name).unlink()
    (folder / "samples").rename(tmp_path / "elsewhere")
    assert main(["report", str(folder)]) == 0
    assert "0 of 1" in (folder / "report.html").read_text()


def test_hostile_text_makes_no_tags(tmp_path: Path) -> None:
    plain, hostile = lay_run(tmp_path / "a"), lay_run(tmp_path / "b", prompts=[HOSTILE] * 3, label=HOSTILE)
    found = []
    for folder in (plain, hostile):
        assert main(["report", str(folder)]) == 0
        parser = Tags()
        parser.feed((folder / "report.html").read_text())
        found.append(parser)
    assert found[1].tags == found[0].tags
    assert found[1].attributes == found[0].attributes
    assert not any(name.startswith("on") for name in found[1].attributes)


def test_only_the_pages_own_script_and_style_are_allowed(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    for tag, also in (("script", drawing.code()), ("style", "")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        policy = re.search(rf"{tag}-src +((?:'sha256-[^']+' *)+);", page)
        assert policy is not None
        assert policy[1].split() == [f"'{digest(text)}'" for text in (content, also)]


def test_the_library_that_draws_is_packed_and_admitted(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    (packed,) = re.findall(r'<script type="application/octet-stream" id="library">(.*?)</script>', page)
    assert gzip.decompress(base64.b64decode(packed)).decode() == drawing.code()
    assert len(packed) < len(drawing.code()) / 2


def test_specs_are_compared(tmp_path: Path) -> None:
    runs = read_runs([lay_run(tmp_path / "a"), lay_run(tmp_path / "b", epochs=8, frames=5)])
    rows = {row[0]: row[1:] for row in differences(runs).body}
    assert rows["run.epochs"] == ("6", "8")
    assert rows["sampling.size"] == ("[32, 32]", "[32, 48, 5]")
    assert "optimizer.lr" not in rows
    assert differences(runs[:1]).body == []


def test_a_reward_that_one_run_has_alone_is_one_difference(tmp_path: Path) -> None:
    one, two = lay_run(tmp_path / "one"), lay_run(tmp_path / "two")
    plan = json.loads((two / "plan.json").read_text())
    plan["spec"]["reward"] = plan["spec"]["reward"][:1]
    (two / "plan.json").write_text(json.dumps(plan))
    rows = {row[0]: row[1:] for row in differences(read_runs([one, two])).body}
    assert {key: value for key, value in rows.items() if key.startswith("reward")} == {
        "reward[1].name": ('"bright"', "")
    }


def test_what_follows_from_another_plugin_is_said_by_its_name(tmp_path: Path) -> None:
    """Unless runs of the same plugin have it otherwise."""
    folders = [lay_run(tmp_path / name) for name in "abc"]
    trainers = ({"name": "toy", "clip": 1}, {"name": "toy", "clip": 2, "beta": 0}, {"name": "other", "rate": 3})
    for folder, trainer in zip(folders, trainers, strict=True):
        plan = json.loads((folder / "plan.json").read_text())
        plan["spec"]["trainer"] = trainer
        (folder / "plan.json").write_text(json.dumps(plan))
    rows = [row for row in differences(read_runs(folders)).body if row[0].startswith("trainer")]
    assert rows == [
        ("trainer.name", '"toy"', '"toy"', '"other"'),
        ("trainer.clip", "1", "2", ""),
    ]


def test_the_table_of_runs_has_what_tells_them_apart(tmp_path: Path) -> None:
    table = table_of_runs(read_runs([lay_run(tmp_path / "a"), lay_run(tmp_path / "b", epochs=8)]))
    assert table.head == ("run", "state", "trainer", "epochs", "held-out bright", "best epoch", "time")
    assert table.body[1][:6] == (
        "b", "finished", "toy", "8 of 8", "0.500 → 0.660", "8 (0.660)"
    )  # fmt: skip


def test_facts_say_what_became_of_a_run(tmp_path: Path) -> None:
    (run,) = read_runs([lay_run(tmp_path / "a")])
    told = dict(facts(run))
    assert told["held-out bright"] == "0.500 → 0.620"
    assert told["epochs"] == "6 of 6"
    assert told["rewards"] == "bright (weight 1), dark (weight -0.5)"
    assert told["trained"] == "LoRA of rank 4"


def test_reports_import_no_torch() -> None:
    code = "import sys; from flowfactory_plugin_report import report, server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_written_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's folder may come from anybody."""
    folder, mine = lay_run(tmp_path / "run", epochs=1), tmp_path / "mine.txt"
    mine.write_text("mine")
    (folder / "report-curves").mkdir()
    for name in ("report.html", "report-curves/reward.png"):
        (folder / name).symlink_to(mine)
    assert main(["report", str(folder)]) == 0
    assert mine.read_text() == "mine"
    assert not (folder / "report.html").is_symlink()
    assert (folder / "report-curves/reward.png").read_bytes().startswith(b"\x89PNG")
    away = tmp_path / "away"
    (folder / "report-curves").rename(away)
    (folder / "report-curves").symlink_to(away)
    before = sorted(file.stat().st_mtime_ns for file in away.iterdir())
    assert main(["report", str(folder)]) == 2
    assert "report-curves is a link, through which nothing is written" in capsys.readouterr().err
    assert sorted(file.stat().st_mtime_ns for file in away.iterdir()) == before


def test_what_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    (folder / "report.html").mkdir()
    assert main(["report", str(folder)]) == 2
    assert "report.html is a folder; --out names the page in it" in capsys.readouterr().err
