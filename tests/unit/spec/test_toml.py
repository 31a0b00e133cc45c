"""The scanner against tomllib; `extends`, `--set`, `--unset`; writing."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flowfactory.errors import SpecError
from flowfactory.spec import layers, toml
from flowfactory.spec.scanner import Address, Scanner
from hypothesis import given, settings
from hypothesis import strategies as st

DOCUMENT = '''\
# a comment = with signs [not.a.table]
title = "x # not a comment"   # a real one
a.b . "c d" = { e = [1, { f = 2 }], 'g' = "}" }
multi = """
first ] line
\\"""" # after
literal = \'\'\'
[no.header]
\'\'\'\'
when = 1979-05-27 07:32:00
array = [ # comment ]
  "one", # two
  [ 2.5, inf ],
]

[table . sub]
key = true
[table]
other = 0x1F
[[entries]]
n = 1
[[entries]]
n = 2
[entries.nested]
m = -3
[[entries.list]]
p = ""
[[entries.list]]
'''


def addresses(data: Any, at: Address = ()) -> Iterator[tuple[Address, Any]]:
    """Everything below the root of a parsed document."""
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, child in children:
        yield (*at, key), child
        yield from addresses(child, (*at, key))


def check_spans(text: str) -> None:
    """Every value has a span, no other has, and the text there is the key and the value."""
    data = dict(addresses(tomllib.loads(text)))
    spans = Scanner(text).scan()
    assert set(spans) == set(data)
    for address, value in data.items():
        key, place = text[slice(*spans[address].key)], text[slice(*spans[address].value)]
        if isinstance(address[-1], str):
            assert list(tomllib.loads(f"{key} = 0")) == [address[-1]]
        if spans[address].key != spans[address].value or isinstance(address[-1], int):
            if isinstance(value, dict) and not place.startswith("{"):
                continue  # an entry of an array of tables: its header stands for it
            assert same(tomllib.loads(f"value = {place}")["value"], value)


def same(a: Any, b: Any) -> bool:
    """Equality, but nan equals itself."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b and type(a) is type(b))


# --- generated documents -------------------------------------------------------------------------------------------

bare_keys = st.text("abcXYZ019_-", min_size=1, max_size=4)
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=6)
keys = st.one_of(bare_keys, words.map(toml.value_text))
blanks = st.sampled_from(["", " ", "  "])
gaps = st.sampled_from(["", " ", "\n", ' # ]} \'"""\n', "\t\n\n"])
scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats().map(repr),
    st.booleans().map(lambda b: str(b).lower()),
    words.map(toml.value_text),
    st.text('ab [#="]{},.\n', max_size=8).map(lambda text: f"'''\n{text}'''"),
    st.text("ab [#=']{},.\n", max_size=8).map(lambda text: f'"""{text}\\u0021"""'),
    st.text('ab [#="]{},.', max_size=8).map(lambda text: f"'{text}'"),
    st.sampled_from(['""', "''", '""""""', "''''''", '"""a"""""', "'''a'''''", '"\\\\"', '"\\""', '"""\\""""']),
    st.sampled_from(
        ["0xFF", "1_000", "+1e-3", "nan", "-inf", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00"]
    ),
)


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(values, max_size=3))
    if not items:
        return f"[{draw(gaps)}]"
    inner = ",".join(f"{draw(gaps)}{item}{draw(gaps)}" for item in items)
    return f"[{inner}{draw(st.sampled_from(['', ',']))}{draw(gaps)}]"


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(dotted(), values), max_size=3))
    return "{" + ",".join(f" {key}{draw(blanks)}={draw(blanks)}{value} " for key, value in pairs) + "}"


@st.composite
def dotted(draw: st.DrawFn) -> str:
    parts = draw(st.lists(keys, min_size=1, max_size=3))
    return f"{draw(blanks)}.{draw(blanks)}".join(parts)


values = st.recursive(scalars, lambda inner: st.one_of(arrays(inner), inline_tables(inner)), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        header = draw(st.sampled_from(["", "[{}]", "[[{}]]", "[ {} ]"]))
        if header:
            lines.append(header.format(draw(dotted())) + draw(st.sampled_from(["", " # x = 1"])))
        for _ in range(draw(st.integers(0, 3))):
            indent, space = draw(blanks), draw(blanks)
            lines.append(f"{indent}{draw(dotted())}{space}={space}{draw(values)}{space}")
        lines.append(draw(gaps))
    return "\n".join(lines)


@settings(max_examples=150, deadline=None)
@given(documents())
def test_scanner_agrees_with_tomllib(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    check_spans(text)


def test_scanner_on_every_construct() -> None:
    check_spans(DOCUMENT)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        words,
        st.recursive(
            st.one_of(st.integers(), st.floats(), st.booleans(), words),
            lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_written_documents_read_back(data: dict[str, Any]) -> None:
    assert same(tomllib.loads(toml.dumps(data)), data)


# --- places --------------------------------------------------------------------------------------------------------


def test_places_are_lines_and_columns() -> None:
    root = toml.parse("a = 1\r\n[t]\r\nkey = [10,\n  200]\n", Path("x.toml"))
    place = root.at("t", "key", 1).place  # type: ignore[union-attr]
    assert (place.line, place.column, place.end, place.text) == (4, 2, 5, "  200]")
    whole = root.at("t", "key").place  # type: ignore[union-attr]
    assert (whole.line, whole.column, whole.end) == (3, 6, 10)


@pytest.mark.parametrize(
    ("text", "line", "column"), [("a = 1\nb = \n", 2, 4), ("a = 'x", 1, 6), ("a = 1\na = 2\n", 2, 5)]
)
def test_syntax_errors_are_located(text: str, line: int, column: int) -> None:
    with pytest.raises(SpecError) as caught:
        toml.parse(text, Path("x.toml"))
    place = caught.value.problems[0].place
    assert place is not None
    assert (place.line, place.column) == (line, column)


# --- extends -------------------------------------------------------------------------------------------------------


def test_tables_merge_and_arrays_replace(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = tmp_path / "base" / "base.toml"
    base.write_text("plugins = ['a', 'b']\n[run]\nname = 'x'\nseed = 1\n[[reward]]\nname = 'r'\n")
    top = tmp_path / "top.toml"
    top.write_text("extends = 'base/base.toml'\nplugins = ['c']\n[run]\nseed = 2\n")
    root = layers.load(top)
    assert root.plain() == {"plugins": ["c"], "run": {"name": "x", "seed": 2}, "reward": [{"name": "r"}]}
    name, seed = root.at("run", "name"), root.at("run", "seed")
    assert name is not None
    assert seed is not None
    assert (name.place.file, name.place.line, name.place.folder) == (base, 3, base.parent)
    assert (seed.place.file, seed.place.line) == (top, 4)


def test_circles_and_missing_files_are_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text("extends = 'b.toml'\n")
    b.write_text("x = 1\nextends = 'a.toml'\n")
    with pytest.raises(SpecError, match="circle"):
        layers.load(a)
    b.write_text("x = 1\nextends = 'c.toml'\n")
    with pytest.raises(SpecError, match=r"b\.toml:2: cannot read .*c\.toml: No such file") as caught:
        layers.load(a)
    assert caught.value.code == 2


# --- changes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text("[run]\nname = 'x'\n[lora]\nrank = 4\n[[reward]]\nweight = 1.0\n[[reward]]\nweight = 2.0\n")
    return path


@pytest.mark.parametrize(
    ("change", "address", "value"),
    [
        ("run.epochs=3", ("run", "epochs"), 3),
        ("run.name=grpo", ("run", "name"), "grpo"),
        ("run.name='3'", ("run", "name"), "3"),
        ("run.name=a=b", ("run", "name"), "a=b"),
        ("reward[1].weight=0.5", ("reward", 1, "weight"), 0.5),
        ("reward.0.weight=0.5", ("reward", 0, "weight"), 0.5),
        ("data.prompts=a.txt", ("data", "prompts"), "a.txt"),
        ("sampling.size=[32, 64]", ("sampling", "size"), [32, 64]),
        ("scheduler.window={rule='list', steps=[1]}", ("scheduler", "window"), {"rule": "list", "steps": [1]}),
        ("memory.compile=true", ("memory", "compile"), True),
    ],
)
def test_set(spec: Path, change: str, address: Address, value: object) -> None:
    node = layers.load(spec, [change]).at(*address)
    assert node is not None
    assert node.plain() == value
    assert str(node.place) == "command line"
    assert node.place.folder == Path.cwd()


def test_unset_comes_before_set(spec: Path) -> None:
    root = layers.load(spec, ["lora.alpha=2.0"], ["lora", "reward[0]"])
    assert root.plain()["lora"] == {"alpha": 2.0}
    assert root.plain()["reward"] == [{"weight": 2.0}]


@pytest.mark.parametrize(
    ("sets", "unsets", "message"),
    [
        (["epochs"], [], "--set expects KEY=VALUE"),
        (["extends=base.toml"], [], "write `extends` into a file"),
        (["reward[2].weight=1"], [], "there is no entry `2`"),
        (["reward.first.weight=1"], [], "there is no entry `first`"),
        (["run.name.x=1"], [], "`run.name` is a plain value"),
        ([], ["run.nam"], "`run.nam` is not set; did you mean `name`"),
    ],
)
def test_changes_that_do_not_fit(spec: Path, sets: list[str], unsets: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        layers.load(spec, sets, unsets)
    assert message in str(caught.value)


def test_all_changes_that_do_not_fit_are_told(spec: Path) -> None:
    with pytest.raises(SpecError) as caught:
        layers.load(spec, ["a", "run.name.x=1"], ["nothing"])
    assert len(caught.value.problems) == 3


def test_a_table_that_names_another_plugin_does_not_inherit_its_keys(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        '[run]\nname = "a"\nseed = 1\n[scheduler]\nname = "flow-sde"\neta = 0.7\n[trainer]\nname = "grpo"\nclip = 1\n'
    )
    top = '[run]\nname = "b"\n[scheduler]\nname = "ode"\n[trainer]\nname = "grpo"\nbeta = 2\n'
    (tmp_path / "top.toml").write_text('extends = "base.toml"\n' + top)
    assert layers.load(tmp_path / "top.toml").plain() == {
        "run": {"name": "b", "seed": 1},
        "scheduler": {"name": "ode"},
        "trainer": {"name": "grpo", "clip": 1, "beta": 2},
    }
