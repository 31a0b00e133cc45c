"""Paths and text as people's programs write them."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from flowfactory.data.rows import DataError, load_rows, misspelt
from flowfactory.data.text import path_of, read_text

CODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("coding", [*CODINGS, "utf-16-le with mark", "utf-16-be with mark"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, coding: str) -> None:
    text = "ein Käfer\n𠮷\n"
    mark = "\ufeff" if " with mark" in coding else ""
    (tmp_path / "x").write_bytes((mark + text).encode(coding.partition(" ")[0]))
    assert read_text(tmp_path / "x") == text


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a cat\na dog\n"),
        ("p.TXT", "a cat\r\na dog\r\n"),
        ("p.txt", "a cat\ra dog"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n'),
        ("p.JSONL", '{"prompt": "a cat"}\r\n{"prompt": "a dog"}'),
        ("p.csv", "prompt\na cat\na dog\n"),
        ("p.Csv", '"prompt","n"\r\n"a cat",1\r\n"a dog",2\r\n'),
        ("p.csv", "n;prompt\n1;a cat\n2;a dog\n"),
        ("p.csv", "prompt\tn\na cat\t1\na dog\t2\n"),
    ],
)
def test_rows_are_the_same_whoever_wrote_them(tmp_path: Path, coding: str, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode(coding))
    assert [row.prompt for row in load_rows(tmp_path / name)] == ["a cat", "a dog"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_other_separators_stay_inside_of_their_prompt(tmp_path: Path, mark: str) -> None:
    (tmp_path / "p.txt").write_bytes(f"a{mark}cat\na dog\n".encode())
    (tmp_path / "p.csv").write_bytes(f"n,prompt\n1,a{mark}cat\n2,a dog\n".encode())
    raw = mark if mark > "\x20" else json.dumps(mark)[1:-1]
    (tmp_path / "p.jsonl").write_bytes(f'{{"prompt": "a{raw}cat"}}\n{{"prompt": "a dog"}}\n'.encode())
    for ending in ("txt", "csv", "jsonl"):
        assert [row.prompt for row in load_rows(tmp_path / f"p.{ending}")] == [f"a{mark}cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", b"prompt,n\n   ,1\n", "p.csv:2: expected a `prompt` with text in it"),
        ("p.jsonl", b'{"prompt": " \\t"}', "p.jsonl:1: expected a `prompt` with text in it"),
        ("p.jsonl", b'{"prompt": "a \\ud83d cat"}', "p.jsonl:1: half a character"),
        ("p.jsonl", b'{"prompt": "a", "negative_prompt": "\\udc00"}', "p.jsonl:1: half a character"),
        ("p.jsonl", b'{"promt": "a"}', "is `promt` meant?"),
        ("p.csv", b"Prompt,n\na,1\n", "is `Prompt` meant?"),
        (
            "p.jsonl",
            b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "p.jsonl:1: JSON that is nested",
        ),
        ("p.jsonl", b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}", "p.jsonl:1: JSON that is nested too deeply, or has"),
        ("p.csv", b"prompt,prompt\na,b\n", "2 columns are called `prompt`"),
        ("p.txt", "a cat\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("p.txt", b"one\ncaf\xe9\n", "it is not UTF-8 text: see line 2"),
        ("p.txt", b"\xff\xfea\x00\x00\xd8", "it is not UTF-16 text"),
    ],
)
def test_what_is_no_text_or_no_prompt_is_refused_at_its_line(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path / name)
    assert said in str(caught.value)


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,n\n" + "a" * 300_000 + ",1\n")
    assert len(load_rows(tmp_path / "p.csv")[0].prompt) == 300_000


def test_the_name_that_is_written_counts_not_that_of_what_it_links_to(tmp_path: Path) -> None:
    store, folder = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    store.mkdir()
    folder.mkdir(parents=True)
    (store / "0f34").write_text('{"prompt": "a", "image": "in.png"}\n')
    (store / "77aa").write_bytes(b"picture")
    (folder / "train.jsonl").symlink_to("../../blobs/0f34")
    (folder / "in.png").symlink_to("../../blobs/77aa")
    (row,) = load_rows(path_of("snapshots/main/train.jsonl", tmp_path))
    assert row.images[0].read_bytes() == b"picture"
    assert row.images[0].name == "in.png"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_only_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"expected a file, but it is a {kind}"):
        read_text(path)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "an empty string"),
        ("a\0b", r"'a\x00b'"),
        ("a\ud800", r"\ud800"),
        ("~nobody-of-that-name/x", "there is no user 'nobody-of-that-name'"),
        ("a" * 256, "longer than file systems allow"),
        ("ä" * 200, "longer than file systems allow"),
        ("a/" * 3000 + "b", "longer than file systems allow"),
        ("loop/x", "circle of links"),
    ],
)
def test_what_is_no_path_is_refused_in_words(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=re.escape(said)):
        path_of(written, tmp_path)


def test_a_misspelt_column_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "negativ_prompt": "b", "tag": "c", "imgae": "d", "Images": "e", "choosen": "f"}\n'
    )
    assert misspelt(load_rows(tmp_path / "p.jsonl")) == {
        "Images": "images",
        "choosen": "chosen",
        "imgae": "image",
        "negativ_prompt": "negative_prompt",
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(b"a cat", mtime=0), "packed by gzip"),
        (b"PK\x03\x04rest", "packed, as .zip and .xlsx files are"),
        (b"PAR1rest", "parquet: call it .parquet"),
        (b"\x89PNG\r\n", "a picture"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "p.csv").write_bytes(data)
    with pytest.raises(ValueError, match=f"it is not text but {said}"):
        read_text(tmp_path / "p.csv")
