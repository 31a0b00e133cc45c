"""Other people's metadata and files: what is damaged is named and disturbs no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flowfactory.discovery.entries import installed_entries
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError
from flowfactory.processes.stop import listening

POINTS = "[flowfactory.rewards]\nodd-one = odd_module\n"
SOUND = "Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n"


def lay(folder: Path, **files: str | bytes) -> None:
    info = folder / "odd-1.0.dist-info"
    info.mkdir()
    for name, content in files.items():
        (info / name.replace("_txt", ".txt")).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"entry_points_txt": POINTS}, "has no METADATA"),
        ({"entry_points_txt": POINTS, "METADATA": ""}, "has no METADATA"),
        ({"entry_points_txt": POINTS, "METADATA": "Name: odd\n"}, "has no METADATA"),
        ({"entry_points_txt": POINTS, "METADATA": SOUND.encode("utf-16")}, "has no METADATA"),
        (
            {"entry_points_txt": POINTS, "METADATA": SOUND + "Requires-Dist: flowfactory (>=0.1,\n"},
            "malformed requirement",
        ),
        ({"entry_points_txt": POINTS, "METADATA": SOUND + "Requires-Dist: ???\n"}, "malformed requirement '???'"),
        ({"entry_points_txt": "[flowfactory.rewards]\nodd-one\n", "METADATA": SOUND}, "malformed line 'odd-one'"),
        ({"entry_points_txt": "[flowfactory.rewards]\nodd-one =\n", "METADATA": SOUND}, "malformed line 'odd-one ='"),
    ],
)
def test_damage_is_told_of_the_entry_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str | bytes], said: str
) -> None:
    before = installed_entries()
    lay(tmp_path, **files)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry()
    (odd,) = [entry for entry in registry.entries() if entry not in before]
    assert odd.source.name == "odd"
    assert any(said in trouble for trouble in registry.troubles(odd))
    with pytest.raises(PluginError) as caught:
        registry.find("rewards", odd.name)
    assert said in str(caught.value)
    assert registry.find("schedulers", "ode").provides.name == "ode"
    assert [entry for entry in registry.entries() if entry != odd] == list(before)


@pytest.mark.parametrize(
    "content",
    ["[some.group]\nx y z\n", "x y z", b"\xff\xfe[flowfactory.rewards]", "[flowfactory.rewards\nx = y", b"\0"],
)
def test_what_is_no_plugins_concern_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes
) -> None:
    before = installed_entries()
    lay(tmp_path, entry_points_txt=content)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_entries() == before


PLUGIN = """
import attrs
from flowfactory import Provides, hookimpl
from {module} import score
{more}

@attrs.frozen
class Spec:
    pass

@hookimpl
def flowfactory_rewards():
    {hook}
    yield Provides("local", Spec, score, "A reward.")
"""


def local(folder: Path, module: str, more: str = "", hook: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text("def score(samples):\n    return [1.0 for _ in samples]\n")
    file = folder / "mine.py"
    file.write_text(PLUGIN.format(module=module, more=more, hook=hook))
    return file


def test_a_local_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    registry = Registry([])
    file = local(tmp_path, "a_neighbour_of_mine")
    registry.load_file(file)
    assert registry.target("rewards", "local")([1, 2]) == [1.0, 1.0]
    version = registry.versions()["mine.py"]
    import sys

    del sys.modules["a_neighbour_of_mine"]
    (tmp_path / "a_neighbour_of_mine.py").write_text("def score(samples):\n    return [2.0 for _ in samples]\n")
    again = Registry([])
    again.load_file(file)
    assert again.versions()["mine.py"] != version


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("import os; os._exit(0)", r"running it failed: SystemExit: os._exit\(0\)"),
        ("import os; os.close(2)", None),
        ("import os; os.chdir('/')", None),
    ],
)
def test_running_a_file_ends_nothing_and_goes_nowhere(tmp_path: Path, more: str, said: str | None) -> None:
    here, file = os.getcwd(), local(tmp_path, "a_fifth_neighbour", more)
    if said:
        with pytest.raises(PluginError, match=said):
            Registry([]).load_file(file)
    else:
        Registry([]).load_file(file)
    assert os.getcwd() == here


def test_local_files_in_two_folders_have_neighbours_of_one_name(tmp_path: Path) -> None:
    registries = [Registry([]) for _ in range(3)]
    for number, name in enumerate("aba"):
        file = local(tmp_path / name, "a_shared_name")
        (tmp_path / name / "a_shared_name.py").write_text(f"def score(samples):\n    return ['{name}']\n")
        registries[number].load_file(file)
    assert [registry.target("rewards", "local")([1]) for registry in registries] == [["a"], ["b"], ["a"]]


LOOKS = "import json, importlib.util\nassert 'site-packages' in importlib.util.find_spec('torch').origin"


def test_what_lies_beside_hides_nothing_installed(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "torch.py").write_text("raise RuntimeError")
    registry = Registry([])
    registry.load_file(
        local(
            tmp_path,
            "another_neighbour_of_mine",
            LOOKS,
        )
    )
    assert registry.names("rewards") == ["local"]


@pytest.mark.parametrize(
    ("more", "hook", "said"),
    [
        (
            "import a_module_that_nobody_has",
            "",
            "(mine.py:5); mend it there",
        ),
        ("raise SystemExit(3)", "", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "", "running it failed: KeyboardInterrupt (mine.py:5)"),
        ("raise GeneratorExit('x')", "", "running it failed: GeneratorExit: x"),
        ("", "raise SystemExit(3)", "its hook `flowfactory_rewards` failed: SystemExit: 3"),
        ("", "raise KeyboardInterrupt", "its hook `flowfactory_rewards` failed: KeyboardInterrupt"),
        ("", "raise EOFError", "its hook `flowfactory_rewards` failed: EOFError"),
        ("x = (", "", "SyntaxError"),
    ],
)
def test_a_local_file_that_fails_is_told_to_the_one_who_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, hook: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with listening(), pytest.raises(PluginError) as caught:
        Registry([]).load_file(local(tmp_path, "a_third_neighbour", more, hook))
    assert said in str(caught.value)


def test_a_linked_file_is_loaded_by_its_own_name(tmp_path: Path) -> None:
    local(tmp_path, "a_fourth_neighbour").rename(tmp_path / "0f34")
    (tmp_path / "mine.py").symlink_to("0f34")
    registry = Registry([])
    registry.load_file(tmp_path / "mine.py")
    assert registry.names("rewards") == ["local"]
