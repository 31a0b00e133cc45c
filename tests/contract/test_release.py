"""A release is one version of everything, and what is wrong with a wheel is found before it is uploaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from outside import ROOT, packages

spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
assert spec is not None
assert spec.loader is not None
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)

HOME = "https://example.org/ours"
PROJECT = """
[project]
name = "flowfactory-plugin-a"
version = "0.1.0"
dependencies = ["attrs>=24.1", "flowfactory[video]>=0.1,<1", "flowfactory-plugin-b>=0.1,<1", "torch>=2.6"]
"""


def test_a_version_is_raised_with_the_ranges_that_go_with_it() -> None:
    project = tomllib.loads(release.raised(PROJECT, "0.3.0"))["project"]
    needs = ["attrs>=24.1", "flowfactory[video]>=0.3.0,<1", "flowfactory-plugin-b>=0.3.0,<1", "torch>=2.6"]
    assert (project["version"], project["dependencies"]) == ("0.3.0", needs)
    assert "flowfactory[video]>=1.2.0,<2" in release.raised(PROJECT, "1.2.0")


def test_no_version_is_lowered() -> None:
    with pytest.raises(SystemExit, match=r"0\.0\.9 is earlier than 0\.1\.0"):
        release.raised(PROJECT, "0.0.9")


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("[a](../../README.md)", f"[a]({HOME}/blob/main/README.md)"),
        ("[a](../b/README.md#c)", f"[a]({HOME}/blob/main/plugins/b/README.md#c)"),
        ("![a](b.png)", f"![a]({HOME}/raw/main/plugins/a/b.png)"),
        ("[a](#below)", "[a](#below)"),
        ("[a](https://a.org)", "[a](https://a.org)"),
    ],
)
def test_links_of_readmes_lead_home(link: str, leads: str) -> None:
    assert release.absolute(link, HOME, "plugins/a") == leads


@pytest.mark.parametrize("package", packages(), ids=lambda path: path.name)
def test_relative_links_of_readmes_lead_to_files(package: Path) -> None:
    for _, link in release.LINK.findall((package / "README.md").read_text(encoding="utf-8")):
        assert (package / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("package", packages(), ids=lambda path: path.name)
def test_examples_are_in_the_wheel_and_a_licence_too(package: Path) -> None:
    assert (package / "LICENSE").resolve() == ROOT / "LICENSE"
    if (package / "examples").is_dir():
        (shipped,) = package.glob("src/*/examples")
        assert shipped.resolve() == package / "examples"


@pytest.mark.slow
def test_what_would_be_released_is_whole(tmp_path: Path) -> None:
    """Also from its sources, which have no links out of them."""
    made = release.release("7.0.0", HOME, tmp_path, ["plugins/dgpo"])
    wheel, sources = sorted(made, key=lambda path: path.suffix == ".gz")
    assert list(release.faults(wheel, "7.0.0")) == []
    names = zipfile.ZipFile(wheel).namelist()
    examples = {path.name for path in (ROOT / "plugins" / "dgpo" / "examples").iterdir()}
    assert {Path(name).name for name in names if "/examples/" in name} == examples
    with tarfile.open(sources) as archive:
        assert not [member.name for member in archive if member.issym()]
    with pytest.raises(SystemExit, match="is not empty"):
        release.release("7.0.0", HOME, tmp_path)


def test_faults_of_a_wheel_are_found(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    about = "Name: a\nVersion: 1\nRequires-Dist: flowfactory>=0.1\n\n[a](b.md)"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", about)
    assert list(release.faults(wheel, "2")) == [
        "its version is 1",
        "it has no licence",
        "it has no classifiers or no links",
        "it does not say that it is typed",
        "its readme links to b.md, which is not there",
        "it asks for flowfactory>=0.1",
    ]


def test_a_version_has_to_be_said() -> None:
    done = subprocess.run([sys.executable, ROOT / ".ci" / "release.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--home" in done.stderr
