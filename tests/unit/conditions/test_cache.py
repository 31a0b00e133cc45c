"""The condition cache: what it keeps, what it notices, and what it survives."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.conditions import cache as module
from flowfactory.conditions.cache import ConditionCache, ConditionStore, cache_folder, row_key
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.errors import RunError
from flowfactory.models.pipeline import PipelineAdapter
from safetensors import safe_open
from torch import nn

CPU = torch.device("cpu")
IDENTITY = {"encoder": "words"}
fork = multiprocessing.get_context("fork")


def words(rows: Sequence[Row]) -> Conditions:
    """An encoder whose conditions are as long as the prompt, with one that is the same for all rows."""
    (row,) = rows
    letters = torch.tensor([[float(ord(letter)) for letter in row.prompt]], dtype=torch.bfloat16)
    return {
        "letters": letters,
        "shared": torch.arange(6.0)[None],
        "none": torch.empty(1, 0),
        "flag": letters[:, 0] > 99,
    }


def made_rows(count: int) -> list[Row]:
    return [Row(f"prompt {'x' * (n % 5)} {n}") for n in range(count)]


def new(folder: Path, rows: Sequence[Row], identity: dict[str, Any] = IDENTITY) -> tuple[ConditionCache, list[str]]:
    said: list[str] = []
    return ConditionCache(folder, identity, rows, said.append), said


def refuse(rows: Sequence[Row]) -> Conditions:
    raise AssertionError(f"{rows} was encoded again")


def ignore(count: int) -> None:
    pass


def shards(cache: ConditionCache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SHARD", 4)
    monkeypatch.setattr(module, "WAIT", 0.01)
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "user"))


# --- what is kept


def test_what_is_read_is_what_was_encoded_in_its_own_dtype(tmp_path: Path) -> None:
    rows = made_rows(9)
    cache, _ = new(tmp_path, rows)
    cache.fill(words, ignore)
    again, _ = new(tmp_path, rows)
    assert again.missing() == []
    for row in rows:
        expected, read = words([row]), again[row]
        assert list(read) == list(expected)
        for name, tensor in expected.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)


def test_a_second_start_encodes_nothing(tmp_path: Path) -> None:
    rows = made_rows(9)
    new(tmp_path, rows)[0].fill(words, ignore)
    new(tmp_path, rows)[0].fill(refuse, ignore)
    new(tmp_path, rows[3:5])[0].fill(refuse, ignore)


def test_some_rows_are_encoded_and_the_rest_when_they_are_asked_for(tmp_path: Path) -> None:
    rows, encoded = made_rows(9), list[str]()

    def noted(some: Sequence[Row]) -> Conditions:
        encoded.extend(row.prompt for row in some)
        return words(some)

    cache, _ = new(tmp_path, rows)
    wanted = [rows[7], rows[2], rows[7]]
    cache.fill(noted, ignore, rows=wanted)
    assert encoded == [rows[7].prompt, rows[2].prompt]
    assert (len(cache.missing()), cache.missing(wanted), len(cache.missing(rows[:3]))) == (7, [], 2)
    assert torch.equal(cache[rows[2]]["letters"], words([rows[2]])["letters"])
    cache.fill(refuse, ignore, rows=wanted)
    cache.fill(noted, ignore)
    assert sorted(encoded) == sorted(row.prompt for row in rows)


def calls(work: Callable[[], None]) -> int:
    """How many calls some work makes, of Python's functions and of others."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_filling_takes_as_much_for_each_row_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 1)

    def took(count: int) -> int:
        return calls(lambda: new(tmp_path / str(count), made_rows(count))[0].fill(words, ignore))

    few, more, many = took(25), took(50), took(200)
    assert (many - more) / 150 < 1.25 * (more - few) / 25


def test_each_distinct_row_is_encoded_once_and_by_itself(tmp_path: Path) -> None:
    seen, told = [], []
    rows = [Row("a"), Row("b"), Row("a", metadata={"n": 1}), Row("a", ""), Row("a", "b"), Row("b")]

    def encode(rows: Sequence[Row]) -> Conditions:
        seen.append([(row.prompt, row.negative_prompt) for row in rows])
        return words(rows)

    new(tmp_path, rows)[0].fill(encode, told.append)
    assert seen == [[("a", None)], [("b", None)], [("a", "")], [("a", "b")]]
    assert sum(told) == 4


def test_images_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    (tmp_path / "c.png").write_bytes(b"two")
    a, b, c = (row_key(Row("p", None, (tmp_path / name,))) for name in ("a.png", "b.png", "c.png"))
    assert a == b != c
    assert row_key(Row("p")) not in (a, c)


def test_equal_tensors_of_a_shard_are_stored_once(tmp_path: Path) -> None:
    cache, _ = new(tmp_path, made_rows(4))
    cache.fill(words, ignore)
    (shard,) = shards(cache)
    with safe_open(shard, framework="pt") as file:
        assert len(file.keys()) == 4 + 1 + 1 + 1  # letters of each row, and what all of them share


def test_rows_are_memory_mapped(tmp_path: Path) -> None:
    rows = made_rows(2)
    cache, _ = new(tmp_path, rows)
    cache.fill(words, ignore)
    address = cache[rows[1]]["letters"].data_ptr()
    (shard,) = shards(cache)
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(shard) in line]
    spans = [tuple(int(end, 16) for end in span.split("-")) for span in mapped]
    assert any(low <= address < high for low, high in spans)
    assert cache[rows[1]]["letters"].data_ptr() == address


def test_a_batch_joins_rows_by_number(tmp_path: Path) -> None:
    rows = [Row("ab"), Row("c"), Row("ab")]
    cache, _ = new(tmp_path, rows)
    cache.fill(words, ignore)

    def collate(parts: Sequence[Conditions]) -> Conditions:
        return {"letters": torch.cat([part["letters"] for part in parts], dim=1)}

    batch = ConditionStore(cache, rows, collate).batch([1, 2, 1], CPU)
    assert batch["letters"].tolist() == [[99.0, 97.0, 98.0, 99.0]]


def test_a_group_reads_its_row_once() -> None:
    read = list[str]()

    class Counted:
        def __getitem__(self, row: Row) -> Conditions:
            read.append(row.prompt)
            return {"letters": torch.tensor([[float(len(row.prompt))]])}

    def collate(parts: Sequence[Conditions]) -> Conditions:
        return {"letters": torch.cat([part["letters"] for part in parts])}

    batch = ConditionStore(Counted(), [Row("ab"), Row("c")], collate).batch([0, 0, 1, 0], CPU)
    assert batch["letters"].tolist() == [[2.0], [2.0], [1.0], [2.0]]
    assert sorted(read) == ["ab", "c"]


# --- what is noticed


def test_another_identity_shares_nothing(tmp_path: Path) -> None:
    rows = made_rows(3)
    new(tmp_path, rows)[0].fill(words, ignore)
    other, _ = new(tmp_path, rows, {"encoder": "other words"})
    assert len(other.missing()) == 3
    assert json.loads((other.folder / "identity.json").read_text()) == {"encoder": "other words"}


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut end", "nothing left", "a flipped bit in the table"])
def test_a_damaged_shard_is_named_and_encoded_again(tmp_path: Path, damage: str) -> None:
    rows = made_rows(10)
    first, _ = new(tmp_path, rows)
    first.fill(words, ignore)
    bad, *good = shards(first)
    content = bytearray(bad.read_bytes())
    lost = json.loads(safe_open(bad, framework="pt").metadata()["rows"]).keys()  # type: ignore[no-untyped-call]
    match damage:
        case "a flipped bit":
            content[-3] ^= 4
        case "a cut end":
            content = content[:-7]
        case "nothing left":
            content.clear()
        case "a flipped bit in the table":
            content[content.index(b"letters") + 1] ^= 4
    bad.write_bytes(content)
    kept = [path.stat().st_mtime_ns for path in good]
    cache, said = new(tmp_path, rows)
    assert set(cache.missing()) == set(lost)
    assert said == [f"{bad} is damaged: it is removed and its rows are encoded again"]
    cache.fill(words, ignore)
    assert [path.stat().st_mtime_ns for path in good] == kept
    assert all(torch.equal(cache[row]["letters"], words([row])["letters"]) for row in rows)
    assert new(tmp_path, rows)[0].missing() == []


def test_a_disk_without_room_for_the_rest_is_told_after_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, rows = [0], made_rows(9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    cache, _ = new(tmp_path, rows)
    with pytest.raises(
        RunError, match=r"5 rows are still to be encoded and kept in .* B each, and its disk has 0 B left"
    ):
        cache.fill(words, ignore)
    assert len(shards(cache)) == 1  # what is encoded stays
    free[0] = 10**9
    new(tmp_path, rows)[0].fill(words, ignore)


def test_an_encoder_that_fails_leaves_what_is_finished(tmp_path: Path) -> None:
    rows = made_rows(10)

    def fail(given: Sequence[Row]) -> Conditions:
        if given[0] is rows[6]:
            raise RuntimeError("out of memory")
        return words(given)

    cache, _ = new(tmp_path, rows)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.fill(fail, ignore)
    assert len(new(tmp_path, rows)[0].missing()) == 6
    cache.fill(words, ignore)
    assert list((cache.folder / "claims").glob("*.json")) == []


def test_old_half_written_files_are_swept_and_young_ones_are_not(tmp_path: Path) -> None:
    cache, _ = new(tmp_path, [])
    old, young = cache.folder / ".writing-old", cache.folder / ".writing-young"
    old.write_bytes(b"cut sho")
    young.write_bytes(b"cut sho")
    os.utime(old, (0, 0))
    new(tmp_path, [])
    assert (old.exists(), young.exists()) == (False, True)


def test_the_folder_is_the_one_chosen_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder("~/here") == Path("/home/me/here")
    monkeypatch.setenv("FLOWFACTORY_CACHE", "/fast")
    assert cache_folder(None) == Path("/fast/conditions")
    monkeypatch.delenv("FLOWFACTORY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder(None) == Path("/xdg/flowfactory/conditions")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(None) == Path("/home/me/.cache/flowfactory/conditions")


# --- with a real pipeline, in several processes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PipelineAdapter.tiny(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def adapter(checkpoint: Path) -> PipelineAdapter[PipelineSpec]:
    adapter = PipelineAdapter(PipelineSpec(path=Location(str(checkpoint)), max_sequence_length=16))
    adapter.load(CPU, torch.float32)
    adapter.encode([Row("what belongs to the batch is found out once")])
    return adapter


def encode_all(folder: Path, rows: Sequence[Row], encode: Callable[[Sequence[Row]], Conditions], log: Path) -> None:
    """Fill a cache, in a process of its own, and note every row that is encoded."""
    torch.set_num_threads(1)

    def noting(rows: Sequence[Row]) -> Conditions:
        with log.open("a") as file:
            file.write(row_key(rows[0]) + "\n")
        return encode(rows)

    with torch.no_grad():
        new(folder, rows)[0].fill(noting, ignore)


def finished_rows(folder: Path) -> set[str]:
    keys: set[str] = set()
    for path in folder.glob("*/*.safetensors"):
        assert module.whole(path), f"{path} is a bad shard"
        keys.update(json.loads(safe_open(path, framework="pt").metadata()["rows"]))  # type: ignore[no-untyped-call]
    return keys


def test_killed_ten_times_it_goes_on_where_it_was(tmp_path: Path, adapter: PipelineAdapter[PipelineSpec]) -> None:
    rows, log, folder, draw = made_rows(60), tmp_path / "log", tmp_path / "cache", random.Random(0)
    log.touch()
    then: list[tuple[set[str], int]] = []
    for _ in range(10):
        process = fork.Process(target=encode_all, args=(folder, rows, adapter.encode, log))
        until = len(log.read_text().split()) + draw.randint(0, 12)
        process.start()
        while process.is_alive() and len(log.read_text().split()) < until:
            time.sleep(0.002)
        process.kill()
        process.join()
        then.append((finished_rows(folder), len(log.read_text().split())))
    assert any(0 < len(finished) < len(rows) for finished, _ in then)
    encode_all(folder, rows, adapter.encode, log)
    encoded = log.read_text().split()
    for finished, so_far in then:
        assert finished.isdisjoint(encoded[so_far:])
    assert finished_rows(folder) == {row_key(row) for row in rows}
    assert list(folder.glob("*/claims/*.json")) == []
    new(folder, rows)[0].fill(refuse, ignore)


def test_concurrent_runs_share_the_work(tmp_path: Path, adapter: PipelineAdapter[PipelineSpec]) -> None:
    rows, log = made_rows(40), tmp_path / "log"
    orders = [rows, rows[::-1], rows[10:] + rows[:5], rows]
    processes = [fork.Process(target=encode_all, args=(tmp_path / "c", o, adapter.encode, log)) for o in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(row_key(row) for row in rows)
    new(tmp_path / "c", rows)[0].fill(refuse, ignore)


def test_encoders_are_gone_after_encoding_and_not_read_when_all_is_cached(tmp_path: Path, checkpoint: Path) -> None:
    def living() -> int:
        gc.collect()
        return sum(p.numel() for p in gc.get_objects() if type(p) is nn.Parameter)

    def loaded(encoded: Conditions | None) -> PipelineAdapter[PipelineSpec]:
        adapter = PipelineAdapter(PipelineSpec(path=Location(str(checkpoint)), max_sequence_length=16))
        adapter.load(CPU, torch.float32, encoded)
        return adapter

    before, row = living(), Row("a cat")
    first = loaded(None)
    encoders = [first.pipe.text_encoder, first.pipe.text_encoder_2, first.pipe.text_encoder_3]
    in_encoders = sum(p.numel() for encoder in encoders for p in encoder.parameters())
    whole = living() - before
    del encoders
    cache, _ = new(tmp_path, [row])
    cache.fill(first.encode, ignore)
    first.drop_encoders()
    assert living() - before == whole - in_encoders
    second = loaded(cache[row])
    second.drop_encoders()
    assert living() - before == 2 * (whole - in_encoders)
    size, sigma = Size(32, 32), torch.tensor([0.7])
    assert second.latent_shape(size) == first.latent_shape(size)
    assert torch.equal(second.sigmas(4, size), first.sigmas(4, size))
    x = torch.randn(1, *first.latent_shape(size))
    v = [a.velocity(x, sigma, cache[row], 4.0, size) for a in (first, second)]
    assert torch.equal(*v)
