"""Specs that are large, deep, hostile, or written by other programs: read in a line's time, or refused in words."""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from flowfactory.data.locations import locate
from flowfactory.discovery.registry import Registry
from flowfactory.errors import SpecError, printable
from flowfactory.spec import layers, toml
from flowfactory.spec.structure import load_spec


def refusal(folder: Path, text: str | bytes, *sets: str) -> str:
    file = folder / "s.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as caught:
        layers.load(file, sets)
    return str(caught.value)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_spec(tmp_path: Path, coding: str) -> None:
    (tmp_path / "s.toml").write_bytes('[run]\r\nname = "Käfer"\r\n'.encode(coding))
    root = layers.load(tmp_path / "s.toml")
    assert root.plain() == {"run": {"name": "Käfer"}}
    assert root.at("run", "name").place.column == 7  # type: ignore[union-attr]


def cost(count: int) -> tuple[float, int]:
    """Seconds and bytes to read one long line, many lines, many tables and many keys of a size."""
    text = "\n".join(
        [
            "zzz = [" + ", ".join(map(str, range(count))) + "]",
            *(f"key{i} = {i}" for i in range(count)),
            *(f"[[reward]]\nname = '{i}'" for i in range(count // 4)),
            *(f"[t{i}]" for i in range(count // 4)),
        ]
    )
    tracemalloc.start()
    begun = time.process_time()
    toml.parse(text, Path("s.toml"))
    seconds, (_, most) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, most


def test_time_and_memory_grow_with_the_size_and_not_with_its_square() -> None:
    cost(100)
    (few_seconds, few), (many_seconds, many) = cost(1000), cost(8000)
    assert many < 12 * few
    assert many_seconds < 32 * few_seconds


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 600 + "]" * 600,
        "a = " + "[" * 20_000 + "]" * 20_000,
        "a = " + "{a = " * 200 + "1" + "}" * 200,
        ".".join("a" * 600) + " = 1",
        "a." * 300_000 + "a = 1",
        "[" + ".".join("a" * 600) + "]",
        "[[" + ".".join("a" * 600) + "]]",
        "b = {" + ".".join("a" * 600) + " = 1}",
        ".".join(["'a'"] * 600) + " = 1",
    ],
    ids=lambda text: text[:12],
)
def test_what_lies_too_deep_is_refused(tmp_path: Path, text: str) -> None:
    assert "lie in one another more than 50 deep" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "number", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "9" * 400, "0x" + "f" * 17, "9223372036854775808"]
)
def test_a_number_that_is_too_long_is_refused_at_its_line(tmp_path: Path, number: str) -> None:
    said = refusal(tmp_path, f"x = 1\ny = [1, {number}]\n")
    assert "s.toml:2: not valid TOML: a whole number of more than 64 bits" in said
    assert len(said) < 500
    assert "64 bits" in refusal(tmp_path, "x = 1", f"x={number}")


def test_the_largest_numbers_are_read(tmp_path: Path) -> None:
    assert toml.parse("x = [9223372036854775807, -9223372036854775808]", Path("s")).at("x") is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("reward.².weight=1", "there is no entry `²`"),
        ("reward." + "9" * 5000 + ".weight=1", "there is no entry"),
        ("a." * 200 + "b=1", "at most 50 tables"),
        ("a=" + "[" * 3000 + "]" * 3000, "more than 50 deep"),
        ("a=" + "[" * 60 + "]" * 60, "more than 50 deep"),
    ],
)
def test_changes_that_fit_nowhere(tmp_path: Path, change: str, said: str) -> None:
    assert said in refusal(tmp_path, "[[reward]]\nname = 'a'\n", change)
    if "=1" in change:
        file = tmp_path / "s.toml"
        with pytest.raises(SpecError):
            layers.load(file, (), (change.partition("=")[0],))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_read(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "odd.toml"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to("/dev/zero")
    assert f"cannot read {odd}: expected a file, but it is a {kind}" in refusal(tmp_path, "extends = 'odd.toml'")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (".env", "TOKEN=s3cret", "expects a spec, whose name ends in .toml, not"),
        ("id_rsa", "s3cret", "expects a spec, whose name ends in .toml, not"),
        ("credentials.toml", "[s3cret]\nkey = 's3cret'", "is no spec: it has none of a spec's tables"),
    ],
)
def test_nothing_is_shown_of_what_is_extended_and_is_no_spec(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    file = tmp_path / "s.toml"
    file.write_text(f"extends = '{name}'\n")
    with pytest.raises(SpecError) as caught:
        load_spec(file, Registry([]))
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name = \u201ctiny\u201d", "quotes are straight ones"),
        ("lr\u00a0= 1", "a space in it that is no ordinary one"),
        ("lr = 1e-4 // small", "a comment begins with #"),
        ("ema = 90%", "TOML has no percent"),
        ("steps = 08", "a number has no zeros in front"),
        ("[run]\n[run]", "[run] is there twice"),
        ("[a.b]\n[a.b]", "[a.b] is there twice"),
    ],
)
def test_habits_of_other_programs_are_recognised(tmp_path: Path, text: str, hint: str) -> None:
    assert hint in refusal(tmp_path, text)


@pytest.mark.parametrize("name", [r"a\u0000b", "a" * 300, "~nobody-of-that-name/x.toml", ""])
def test_extends_names_a_path(tmp_path: Path, name: str) -> None:
    assert "s.toml:2: `extends`: " in refusal(tmp_path, f'\nextends = "{name}"')


def test_a_long_chain_is_refused_and_a_short_one_followed(tmp_path: Path) -> None:
    for i in range(1300):
        (tmp_path / f"{i}.toml").write_text(f"extends = '{i + 1}.toml'\nk{i} = {i}\n")
    with pytest.raises(SpecError, match="more than 50 times"):
        layers.load(tmp_path / "0.toml")
    (tmp_path / "40.toml").write_text("k40 = 40\nk0 = 7")
    assert layers.load(tmp_path / "0.toml").plain() == {f"k{i}": i for i in range(41)}


def test_what_is_linked_into_a_store_keeps_the_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "store" / "0f34").write_text("extends = 'base.toml'\nx = 1")
    (tmp_path / "here" / "s.toml").symlink_to("../store/0f34")
    (tmp_path / "here" / "base.toml").write_text("y = 2")
    assert layers.load(tmp_path / "here" / "s.toml").plain() == {"y": 2, "x": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("save_samples = yes", "true or false"),
        ("save_samples = True", "true or false"),
        ("x: off", "true or false"),
        ("x = None", "leave the key out"),
        ("x = null", "leave the key out"),
        ("name: run", "looks like YAML"),
        ("run:", "looks like YAML"),
        ("---", "looks like YAML"),
        ("- name: ocr", "looks like YAML"),
        ('{"run": 1}', "looks like JSON"),
        ("{", "looks like JSON"),
        ("name = tiny run", "in quotes"),
        ("path = ./model", "in quotes"),
        ("lr = .5", "on both sides of the point"),
        ("lr = 1.", "on both sides of the point"),
    ],
)
def test_habits_of_other_languages_are_recognised(tmp_path: Path, line: str, said: str) -> None:
    assert said in refusal(tmp_path, line + "\n")


@pytest.mark.parametrize(
    "text", ['"\\u001b]0;x\\u0007\\u001b[2J" = 1', "x = 1 # \x1b[2J", "x = '\u202e'\ny = ", "x = \x9b31m", "\x7f = 1"]
)
def test_no_message_has_what_a_terminal_obeys(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path, text, "=")
    assert said == printable(said)
    assert "\x1b" not in said


def test_the_caret_stands_under_what_is_meant_in_a_long_line(tmp_path: Path) -> None:
    line = "\x1b'x = [" + ", ".join(map(str, range(10_000))) + ", x]"
    source, carets = refusal(tmp_path, 'a = "' + "b" * 500 + '\x01c"').splitlines()[1:]
    assert len(source) < 160
    assert source[carets.index("^") :].startswith(r"\x01")
    assert len(refusal(tmp_path, line)) < 500


# --- packages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages in packages that raise when they are imported."""
    inner = tmp_path / "outer_pkg" / "inner" / "deep"
    inner.mkdir(parents=True)
    for folder in (inner, *list(inner.parents)[:2]):
        (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    (inner / "spec.toml").write_text("")
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    (tmp_path / "plain" / "sub" / "x").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_resource_is_found_without_importing_any_package(packages: Path) -> None:
    before = set(sys.modules)
    found = locate("outer_pkg.inner.deep:spec.toml", Path("/"), exists=True)
    assert found == str(packages / "outer_pkg" / "inner" / "deep" / "spec.toml")
    assert locate("plain.sub:x", Path("/"), exists=True).endswith("plain/sub/x")
    for absent in ("antigravity.x:y", "this.x:y", "outer_pkg.no:y", "outer_pkg..x:y", "outer_pkg.:y", "no.no:y"):
        with pytest.raises(ValueError, match="there is no"):
            locate(absent, Path("/"), exists=True)
    with pytest.raises(ValueError, match="has no"):
        locate("outer_pkg:nothing", Path("/"), exists=True)
    assert set(sys.modules) == before
