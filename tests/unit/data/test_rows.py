"""Prompt files, and what is said of bad ones."""

from pathlib import Path

import pytest
from flowfactory.data.rows import DataError, load_rows


def test_txt_takes_one_prompt_a_line_and_skips_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a cat\n\n  a dog  \n")
    assert [row.prompt for row in load_rows(file)] == ["a cat", "a dog"]


def test_jsonl_keeps_further_columns_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"")
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "negative_prompt": "b", "image": "in.png", "n": 3, "tags": ["x"]}\n')
    (row,) = load_rows(file)
    assert (row.negative_prompt, row.images) == ("b", ((tmp_path / "in.png").resolve(),))
    assert row.metadata == {"n": 3, "tags": ["x"]}


def test_media_are_one_file_or_the_chosen_and_the_rejected(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "p.csv").write_text("rejected,chosen,media,prompt\n,,a.png,one\nb.png,a.png,,two\n,,,three\n")
    shown = [[file.name for file in row.media] for row in load_rows(tmp_path / "p.csv")]
    assert shown == [["a.png"], ["a.png", "b.png"], []]
    assert all(row.metadata == {} and not row.images for row in load_rows(tmp_path / "p.csv"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "media": null, "chosen": "a.png", "rejected": "a.png"}')
    (row,) = load_rows(tmp_path / "p.jsonl")
    assert row.media == ((tmp_path / "a.png").resolve(),) * 2


def test_csv_reads_a_header_and_leaves_out_empty_cells(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text('prompt,negative_prompt,count\n"a, b",,2\nc,ugly,\n')
    first, second = load_rows(file)
    assert (first.prompt, first.negative_prompt, first.metadata) == ("a, b", None, {"count": "2"})
    assert (second.negative_prompt, second.metadata) == ("ugly", {})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.yaml", "", "p.yaml: expected a .txt, .jsonl, .csv or .parquet file"),
        ("p.txt", "\n\n", "p.txt: no prompts in it"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "p.jsonl:2: not JSON: Expecting value"),
        ("p.jsonl", "[1]\n", "p.jsonl:1: expected an object, not list"),
        ("p.jsonl", '{"promt": "a"}\n', "p.jsonl:1: expected a `prompt` with text in it"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": 3}', "p.jsonl:1: expected `negative_prompt` to be text"),
        ("p.jsonl", '\n{"prompt": "a", "image": "../x.png"}', "p.jsonl:2: image '../x.png' lies outside"),
        ("p.jsonl", '{"prompt": "a", "images": ["x.png"]}', "p.jsonl:1: image 'x.png' does not exist"),
        ("p.jsonl", '{"prompt": "a", "images": 1}', "p.jsonl:1: expected `images` to be a path or a list of paths"),
        ("p.jsonl", '\n{"prompt": "a", "media": "../x.png"}', "p.jsonl:2: media '../x.png' lies outside"),
        ("p.jsonl", '{"prompt": "a", "media": "x.png"}', "p.jsonl:1: media 'x.png' does not exist"),
        ("p.jsonl", '{"prompt": "a", "media": ["x.png"]}', "p.jsonl:1: expected `media` to be a path"),
        ("p.jsonl", '{"prompt": "a", "media": ""}', "p.jsonl:1: media '': expected a path, not an empty string"),
        (
            "p.jsonl",
            '{"prompt": "a", "chosen": "p.jsonl", "rejected": "/x.png"}',
            "p.jsonl:1: rejected '/x.png' lies outside",
        ),
        (
            "p.csv",
            "prompt,rejected\na,p.csv\n",
            "p.csv:2: expected `media`, or `chosen` and `rejected`, not `rejected`",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "choosen": "p.jsonl", "rejected": "p.jsonl"}',
            "`chosen` and `rejected`, not `rejected`; is `choosen` another of them?",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "media": "p.jsonl", "chosen": "p.jsonl"}',
            "not `media` and `chosen`",
        ),
        ("p.csv", "prompt,n\na,1\nb\n", "p.csv:3: expected 2 columns"),
        ("p.csv", "prompt,n\na,1,2\n", "p.csv:2: expected 2 columns"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path / name)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt"):
        load_rows(tmp_path / "absent.txt")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"p\.txt: it is not UTF-8 text: see line 1"):
        load_rows(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        (
            "p.jsonl",
            '{"prompt": "a"},\n{"prompt": "b"}\n{"prompt": 3}\n[1]\n{"prompt": "c", "image": "x.png"}\n',
            [1, 3, 4, 5],
        ),
        ("p.csv", 'prompt,n\na,1\n,2\nb\nc,3\n"', [3, 4, 5]),
        ("p.csv", "caption\n" + "a\n" * 30, list(range(2, 12))),
    ],
)
def test_every_row_that_cannot_be_used_is_told(tmp_path: Path, name: str, text: str, wrong: list[int]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path / name)
    lines = str(caught.value).split("\n")
    assert [int(line.removeprefix(f"{tmp_path / name}:").partition(":")[0]) for line in lines[:10]] == wrong
    assert lines[10:] == ([f"{tmp_path / name}: 20 more rows cannot be used"] if len(lines) > 10 else [])
