"""Data files of the hub, asked of a server on this machine by the hub's own library."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flowfactory.data import hub
from flowfactory.data.hub import Remote, files_of, pinned
from flowfactory.data.locations import locate
from flowfactory.data.rows import DataError, load
from hub import Hub
from huggingface_hub import constants

AT = "hf://datasets/owner/name"


def parquet(*prompts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": prompts}), buffer)
    return buffer.getvalue()


FILES = {
    "train.jsonl": b'{"prompt": "a"}\n{"prompt": "b"}\n',
    "data/train-00001-of-00002.parquet": parquet("d"),
    "data/train-00000-of-00002.parquet": parquet("c"),
    "data/test-00000-of-00001.parquet": parquet("e"),
    "README.md": b"about",
}


def test_a_file_is_fetched_and_its_commit_noted(online: Hub) -> None:
    commit = online.commit(FILES)
    location = pinned(f"{AT}/train.jsonl")
    assert location == f"{AT}@{commit}/train.jsonl"
    assert [row.prompt for row in load(location)] == ["a", "b"]
    assert not any("README" in path or "parquet" in path for path in online.asked)


def test_what_is_noted_stays_when_the_branch_moves(online: Hub) -> None:
    online.commit(FILES)
    location = pinned(f"{AT}/train.jsonl")
    second = online.commit({"train.jsonl": b'{"prompt": "new"}\n'})
    assert [row.prompt for row in load(location)] == ["a", "b"]
    assert pinned(location) == location
    assert pinned(f"{AT}/train.jsonl") == f"{AT}@{second}/train.jsonl"


def test_several_files_come_in_the_order_of_their_names(online: Hub) -> None:
    online.commit(FILES)
    location = pinned(f"{AT}/data/train-*.parquet")
    assert [file.name[:11] for file in files_of(location)] == ["train-00000", "train-00001"]
    assert [row.prompt for row in load(location)] == ["c", "d"]


@pytest.mark.parametrize("written", ["@v1/", "@refs%2Fconvert%2Fparquet/", "@refs/convert/parquet/"])
def test_revisions_are_those_of_the_hub(online: Hub, written: str) -> None:
    online.commit(FILES)
    branch = "v1" if "v1" in written else "refs/convert/parquet"
    commit = online.commit({"train.jsonl": b'{"prompt": "of a branch"}\n'}, branch)
    location = pinned(f"{AT}{written}train.jsonl")
    assert location == f"{AT}@{commit}/train.jsonl"
    assert [row.prompt for row in load(location)] == ["of a branch"]


def test_what_was_fetched_is_found_without_the_hub(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online.commit(FILES)
    location = pinned(f"{AT}/train.jsonl")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(online.asked)
    assert pinned(f"{AT}/train.jsonl") == location
    assert [row.prompt for row in load(location)] == ["a", "b"]
    assert len(online.asked) == asked
    with pytest.raises(ValueError, match=r"\*\.parquet cannot be fetched|has no data/\*\.parquet"):
        pinned(f"{AT}/data/*.parquet")


@pytest.mark.parametrize("mute", ["nothing"], indirect=True)
def test_what_was_fetched_is_found_where_nobody_answers(online: Hub, mute: Callable[[], None]) -> None:
    online.commit(FILES)
    location = pinned(f"{AT}/train.jsonl")
    mute()
    assert pinned(f"{AT}/train.jsonl") == location
    assert [row.prompt for row in load(location)] == ["a", "b"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (f"{AT}/trian.jsonl", "the dataset owner/name has no trian.jsonl; did you mean `train.jsonl`?"),
        (f"{AT}/x/*.csv", "has no x/*.csv (there is: `train.jsonl`, `data/train-00001-of-00002.parquet`"),
        (f"{AT}@absent/train.jsonl", "@absent/train.jsonl cannot be fetched: "),
        (
            "hf://datasets/owner/other/a.txt",
            "owner/other is not at {}/datasets/owner/other, or is private and you are not logged in",
        ),
        (
            "hf://datasets/owner/closed/a.txt",
            "owner/closed is gated; accept its terms at {}/datasets/owner/closed and log in with `hf auth login`",
        ),
        ("hf://datasets/owner/name", "expected hf://datasets/OWNER/NAME/PATH"),
        ("hf://owner/name/a.txt", "expected hf://datasets/OWNER/NAME/PATH"),
        ("hf://datasets/owner/name/", "expected hf://datasets/OWNER/NAME/PATH"),
    ],
)
def test_what_is_not_there_is_said(online: Hub, written: str, said: str) -> None:
    online.commit(FILES)
    with pytest.raises(ValueError, match="dataset") as caught:
        pinned(written)
    assert said.format(online.url) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_that_rows_name_come_along(online: Hub, tmp_path: Path) -> None:
    rows = b"".join(b'{"prompt": "a", "image": "../x.png"}\n'.replace(b"../x", name) for name in (b"i/0", b"i/1", b"2"))
    pictures = {f"train/{name}.png": name.encode() for name in ("i/0", "i/1", "2")}
    online.commit({"train/metadata.jsonl": rows, "test/i/0.png": b"", "train/i/0.mp4": b"", **pictures})
    found = load(pinned(f"{AT}/train/metadata.jsonl"))
    assert [row.images[0].read_bytes() for row in found] == [b"i/0", b"i/1", b"2"]
    assert not any("test" in path or "mp4" in path for path in online.asked)


def test_a_picture_that_is_not_in_the_dataset_is_named(online: Hub) -> None:
    online.commit({"train.jsonl": b'{"prompt": "a", "image": "x.png"}\n', "y.png": b"y"})
    with pytest.raises(DataError, match=r"train\.jsonl:1: image 'x\.png' does not exist"):
        load(pinned(f"{AT}/train.jsonl"))


def test_without_a_network_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="the dataset owner/name is not on this disk, and HF_HUB_OFFLINE forbids to ask the hub"
    ):
        pinned(f"{AT}/train.jsonl")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"cannot be fetched: .* is not on this disk, and the connection .*onnect"):
        pinned(f"{AT}/train.jsonl")


def test_a_location_is_written_as_it_is_read() -> None:
    for text in (f"{AT}@v1/a.txt", f"{AT}@refs%2Fpr%2F1/b/*.csv", f"{AT}@main/c.jsonl"):
        assert str(Remote.of(text)) == text
    assert str(Remote.of(f"{AT}/c.jsonl")) == f"{AT}@main/c.jsonl"
    assert not hub.is_remote("hf.txt")


def test_a_spec_names_such_files_where_files_have_to_be_there(online: Hub, tmp_path: Path) -> None:
    commit = online.commit(FILES)
    assert locate(f"{AT}/train.jsonl", tmp_path, exists=True) == f"{AT}@{commit}/train.jsonl"
    with pytest.raises(ValueError, match="only data files come from hf://"):
        locate(f"{AT}/train.jsonl", tmp_path, exists=False)
    with pytest.raises(ValueError, match=r"expected a \.txt, \.jsonl, \.csv or \.parquet file"):
        locate(f"{AT}/README.md", tmp_path, exists=True)


def test_a_bad_row_is_named_in_its_file(online: Hub) -> None:
    online.commit({"train.jsonl": b'{"prompt": "a"}\n{"promt": "b"}\n'})
    with pytest.raises(DataError, match=r"train\.jsonl:2: expected a `prompt`"):
        load(pinned(f"{AT}/train.jsonl"))
