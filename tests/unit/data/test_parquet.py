"""Rows of .parquet files, with what lies inside them, and what is said of bad ones."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flowfactory.data.parquet import BATCH
from flowfactory.data.rows import DataError, load_rows
from flowfactory.data.store import unpack, unpacked_folder
from flowfactory.errors import RunError
from PIL import Image


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = picture("red"), picture("blue")


def inside(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """An image as datasets stores it."""
    return {"bytes": data, "path": path}


def laid(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "p.parquet", **options)
    return folder / "p.parquet"


def test_columns_come_in_their_types_and_null_is_absent(tmp_path: Path) -> None:
    file = laid(
        tmp_path,
        {
            "prompt": ["a", "b"],
            " negative_prompt ": [None, "ugly"],
            "n": pa.array([3, None], pa.int32()),
            "of": [[1.5, None], []],
            "box": [{"x": 1, "names": ["l"]}, None],
            "kind": pa.array(["cat", "dog"]).dictionary_encode(),
            "when": [datetime(2026, 1, 2, 3, tzinfo=UTC), None],
            "day": [date(2026, 1, 2), None],
            "price": [Decimal("1.25"), None],
            "long": [timedelta(seconds=2), None],
        },
    )
    first, second = load_rows(file)
    assert (first.prompt, first.negative_prompt, second.negative_prompt) == ("a", None, "ugly")
    assert first.metadata == {
        "n": 3,
        "of": [1.5, None],
        "box": {"x": 1, "names": ["l"]},
        "kind": "cat",
        "when": "2026-01-02T03:00:00+00:00",
        "day": "2026-01-02",
        "price": 1.25,
        "long": 2.0,
    }
    assert second.metadata == {"of": [], "kind": "dog"}


def test_what_lies_inside_gets_files_named_by_content(tmp_path: Path) -> None:
    file = laid(
        tmp_path,
        {
            "prompt": ["a", "b"],
            "images": [[inside(RED, "x/red.png"), inside(BLUE)], [inside(RED, "other.png")]],
            "chosen": [BLUE, BLUE],
            "rejected": [inside(RED, "r.weird-ending"), inside(RED)],
            "mask": [inside(BLUE, "m.png"), None],
        },
    )
    first, second = load_rows(file, tmp_path / "kept")
    red, blue = (hashlib.sha256(data).hexdigest() for data in (RED, BLUE))
    assert [path.name for path in first.images] == [f"{red}.png", blue]
    assert [path.name for path in first.media] == [blue, red]
    assert first.metadata == {"mask": str(tmp_path / "kept" / f"{blue}.png")}
    assert second.images == first.images[:1]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {f"{red}.png", red, f"{blue}.png", blue}
    assert (tmp_path / "kept" / f"{red}.png").read_bytes() == RED


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    file = laid(tmp_path, {"prompt": ["a"], "image": [inside(RED, "a.png")], "media": [RED]})
    (row,) = load_rows(file)
    assert (len(row.images), len(row.media)) == (1, 1)
    assert list(tmp_path.iterdir()) == [file]


def test_paths_beside_bytes_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    file = laid(
        tmp_path, {"prompt": ["a", "b"], "image": [inside(None, "a.png"), inside(None)], "media": ["a.png"] * 2}
    )
    first, second = load_rows(file)
    assert (first.images, first.media) == ((tmp_path / "a.png",), (tmp_path / "a.png",))
    assert second.images == ()


def test_many_rows_keep_their_order_and_a_capital_ending_will_do(tmp_path: Path) -> None:
    file = laid(tmp_path, {"prompt": [f"p{i}" for i in range(3 * BATCH + 5)]}, row_group_size=50)
    file = file.rename(tmp_path / "P.PARQUET")
    assert [row.prompt for row in load_rows(file)] == [f"p{i}" for i in range(3 * BATCH + 5)]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": pa.array([], pa.string())}, "p.parquet: no prompts in it"),
        ({"prompt": ["a", " "]}, "p.parquet:2: expected a `prompt` with text in it"),
        (
            {"caption": ["a"], "image": ["x"]},
            "p.parquet:1: expected a `prompt` with text in it; its columns are `caption`",
        ),
        ({"prompt": [1]}, "p.parquet:1: expected a `prompt` with text in it"),
        ({"prompt": ["a", "b"], "image": [RED, b"GIF8"]}, "p.parquet:2: column `image`: its 4 bytes are no picture"),
        ({"prompt": ["a"], "images": [[RED, b""]]}, "p.parquet:1: column `images`: there are no bytes in it"),
        ({"prompt": ["a"], "media": [inside(b"")]}, "p.parquet:1: column `media`: there are no bytes in it"),
        ({"prompt": ["a"], "image": [inside(None, "../x.png")]}, "p.parquet:1: image '../x.png' lies outside"),
        ({"prompt": ["a"], "image": [3]}, "p.parquet:1: expected `images` to be a path or a list of paths"),
        ({"prompt": ["a"], "media": [[RED]]}, "p.parquet:1: expected `media` to be a path"),
        ({"prompt": ["a"], "chosen": [RED]}, "p.parquet:1: expected `media`, or `chosen` and `rejected`, not `chosen`"),
        (
            {"prompt": pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())},
            "p.parquet:2: column `prompt`: 'utf-8' codec can't decode",
        ),
        (
            {"prompt": ["a"], "t": pa.array([1], pa.timestamp("ns"))},
            "p.parquet:1: column `t`: Nanosecond",
        ),
    ],
)
def test_a_bad_row_is_named_by_its_number(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(laid(tmp_path, columns))
    assert said in str(caught.value)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match="2 columns are called `prompt`"):
        load_rows(tmp_path / "p.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"prompt\na cat\n", "cut"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, content: bytes | str) -> None:
    file = laid(tmp_path, {"prompt": ["a"] * 100})
    file.write_bytes(file.read_bytes()[:-7] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"p\.parquet: not Parquet, or damaged: \w"):
        load_rows(file)


def test_damage_is_told_with_the_row_from_which_on(tmp_path: Path) -> None:
    file = laid(tmp_path, {"prompt": [f"{i:064}" for i in range(4 * BATCH)]}, row_group_size=BATCH, compression="zstd")
    start = pq.read_metadata(file).row_group(2).column(0).dictionary_page_offset
    with file.open("r+b") as opened:
        opened.seek(start + 40)
        opened.write(b"\x00" * 200)
    with pytest.raises(DataError, match=rf"p\.parquet:{2 * BATCH + 1}: not Parquet, or damaged: \w"):
        load_rows(file)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").mkdir()
    with pytest.raises(DataError, match=r"d\.parquet: expected a file, but it is a folder"):
        load_rows(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"absent\.parquet: No such file"):
        load_rows(tmp_path / "absent.parquet")


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = laid(tmp_path, {"prompt": ["a"]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install \"flowfactory\[parquet\]\""):
        load_rows(file)


def test_a_file_is_unpacked_once_and_again_where_it_was_cut(tmp_path: Path) -> None:
    path = unpack(RED, "a.png", tmp_path / "kept")
    written = path.stat().st_mtime_ns, path.stat().st_ino
    assert unpack(RED, "b.png", tmp_path / "kept") == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written
    path.write_bytes(RED[:-1])
    assert unpack(RED, "a.png", tmp_path / "kept").read_bytes() == RED
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(RunError, match=r"what lies in a data file cannot be kept in .*kept.*: .*FLOWFACTORY_CACHE"):
        unpack(RED, "a.png", tmp_path / "kept" / "below")


def test_where_files_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path))
    assert unpacked_folder(None) == tmp_path / "unpacked"
    assert unpacked_folder("/big") == Path("/big/unpacked")
