"""Client and server over real sockets."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from click.testing import CliRunner
from flowfactory.cli import main as cli
from flowfactory.contracts.reward import GroupReward, Score
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.asking import Composite
from flowfactory.rewards.scoring import Judge
from flowfactory.rewards.secrets import SecretError
from flowfactory.rewards.server import ServerError
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import RewardEntry
from flowfactory.testing import conformance
from flowfactory_plugin_remote import RemoteSpec
from flowfactory_plugin_remote.client import Remote, RemoteGroup, RewardClient
from flowfactory_plugin_remote.server import served
from flowfactory_plugin_remote.wire import pack, unpack
from flowfactory_scorer import server, wire
from flowfactory_scorer.__main__ import is_loopback
from flowfactory_scorer.wire import WireError
from PIL import Image
from servers import Raw, answer

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[1] / "examples"
Start = Callable[..., str]


def judge(targets: dict[str, Any], **keys: Any) -> Judge:
    keys = {"retry_pause": 0.0, **keys}
    entries = [RewardEntry(name=name, label=name, spec=None, **keys) for name in targets]
    return Judge(entries, targets, {})


def brightness(batch: Sequence[Sample]) -> list[Score]:
    return [float(s.media.double().mean()) for s in batch]


class Place(GroupReward):
    """The place of each sample by brightness."""

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        levels = brightness(samples)
        return [sorted(levels).index(level) / len(levels) for level in levels]


def picky(batch: Sequence[Sample]) -> list[Score]:
    return [None if "night" in s.row.prompt else float(s.row.metadata["lamps"]) for s in batch]


def broken(batch: Sequence[Sample]) -> list[Score]:
    raise ValueError("no model here")


def samples(*levels: float, slot: int = 0) -> list[Sample]:
    return [
        Sample(Row("a room", metadata={"lamps": 3}), torch.full((3, 6, 4), level), slot, i)
        for i, level in enumerate(levels)
    ]


class Running:
    """A server in a thread."""

    def __init__(self, targets: dict[str, Any], token: str | None = None, max_bytes: int = 10**6, **keys: Any) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = server.Server(self.socket, served(judge(targets, **keys).rewards), token, max_bytes)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.socket.close()


@pytest.fixture
def running() -> Iterator[list[Running]]:
    servers: list[Running] = []
    yield servers
    for one in servers:
        one.stop()


@pytest.fixture
def start(running: list[Running]) -> Start:
    def begin(targets: dict[str, Any], **keys: Any) -> str:
        running.append(Running(targets, **keys))
        return running[-1].url

    return begin


def client(url: str, reward: str, kind: type[Remote | RemoteGroup] = Remote, **keys: Any) -> Remote | RemoteGroup:
    made = kind(RemoteSpec(url=url, reward=reward, **{"pause": 0.01, **keys}))
    made.load(CPU, torch.float32, lambda key, factory: factory())
    return made


# --- what works ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_served_reward(start: Start) -> None:
    url = start({"brightness": brightness, "place": Place, "picky": picky})
    few = samples(0.2, 0.8, 0.5)
    assert client(url, "brightness", encoding="float32").score(few) == brightness(few)
    assert client(url, "brightness").score(few) == pytest.approx([0.2, 0.8, 0.5], abs=0.51 / 255)
    assert client(url, "place", RemoteGroup).score(few) == [0, 2 / 3, 1 / 3]


def test_what_does_not_apply_and_metadata_travel(start: Start) -> None:
    remote = client(start({"picky": picky}), "picky")
    night = [Sample(Row("a night"), torch.zeros(3, 4, 4), 0, 3)]
    assert remote.score([*samples(0.1), *night]) == [3.0, None]


def test_many_clients_are_served_at_once_and_each_gets_its_own(start: Start) -> None:
    url = start({"brightness": brightness}, workers=4)
    remote = client(url, "brightness", encoding="float32")
    jobs = [samples(i / 40, i / 50) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(remote.score, jobs)) == [brightness(job) for job in jobs]


def test_a_served_reward_is_never_asked_more_often_at_once_than_its_workers(start: Start) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def slow(batch: Sequence[Sample]) -> list[Score]:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return [0.0] * len(batch)

    remote = client(start({"slow": slow}, workers=2), "slow")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(remote.score, [samples(0.1)] * 12))
    assert most == 2


def test_parts_of_scores_travel(start: Start) -> None:
    def graded(batch: Sequence[Sample]) -> list[Score]:
        parts = {"none": None, "half": 0.25}
        return [Composite(level, parts, {"half": "so so"} if level == 0.5 else {}) for level in brightness(batch)]

    scores = client(start({"graded": graded}), "graded", encoding="float32").score(samples(0.5, 0.75))
    assert all(isinstance(score, Composite) and score.parts == {"half": 0.25, "none": None} for score in scores)
    assert [(float(s), s.words) for s in scores if isinstance(s, Composite)] == [(0.5, {"half": "so so"}), (0.75, {})]


def test_condition_images_travel_once_and_arrive_as_files(start: Start, tmp_path: Path) -> None:
    assert "images" in Remote.reads & RemoteGroup.reads
    Image.new("RGB", (4, 2), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGB", (4, 2), (0, 0, 255)).save(tmp_path / "blue.webp", lossless=True)
    seen: list[Path] = []

    def redness(batch: Sequence[Sample]) -> list[Score]:
        seen.extend(path for s in batch for path in s.row.images)
        pictures = [[Image.open(path).getpixel((0, 0)) for path in s.row.images] for s in batch]
        return [sum(red - 2 * blue for red, _, blue in one) for one in pictures]  # type: ignore[misc]

    rows = [("red.png",), ("blue.webp",), ("red.png", "blue.webp"), ()]
    edits = [
        Sample(Row("x", images=tuple(tmp_path / name for name in names)), torch.zeros(3, 4, 4), 0, i)
        for i, names in enumerate(rows)
    ]
    assert client(start({"redness": redness}), "redness").score(edits) == [255, -510, -255, 0]
    assert len(seen) == 4
    assert not any(path.exists() for path in seen)
    assert b"image.1" in pack(edits, "png")
    assert b"image.2" not in pack(edits, "png")


def test_videos_travel(start: Start) -> None:
    def faces(batch: Sequence[Sample]) -> list[Score]:
        return [float(s.media[1].mean()) if s.media.dim() == 4 else None for s in batch]

    video = Sample(Row("x"), torch.stack([torch.zeros(3, 4, 6), torch.ones(3, 4, 6)]), 0, 0)
    for encoding in ("png", "float32"):
        assert client(start({"faces": faces}), "faces", encoding=encoding).score([video, *samples(0.5)]) == [1.0, None]


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    url = start({"brightness": brightness}, token="s3cret")
    for given in (None, "wrong", "s3cre", "s3crét"):
        headers = {} if given is None else {"Authorization": f"Bearer {given}".encode()}
        for refusal in (
            httpx.get(url + "/health", headers=headers),
            httpx.post(url + "/score/brightness", headers=headers),
        ):
            assert (refusal.status_code, refusal.json()) == (401, {"error": "the token is missing or wrong"})
    with pytest.raises(ServerError, match="answered 401"):
        client(url, "brightness")
    monkeypatch.setenv("OURS", "s3cret")
    with pytest.raises(SecretError, match=f"OURS is not sent to {url}: OURS_URL must hold that address"):
        client(url, "brightness", token_variable="OURS")
    monkeypatch.setenv("OURS_URL", f"https://elsewhere.example {url}/")
    assert client(url, "brightness", token_variable="OURS").score(samples(1.0)) == [1.0]


def test_an_oversize_body_is_refused(start: Start) -> None:
    url = start({"brightness": brightness}, max_bytes=2000)
    big = pack([Sample(Row("x"), torch.rand(3, 40, 40), 0, 0)], "float32")
    stated = httpx.post(url + "/score/brightness", content=big)
    streamed = httpx.post(url + "/score/brightness", content=iter([big[:1500], big[1500:]]))
    assert (stated.status_code, streamed.status_code) == (413, 411)
    assert client(url, "brightness").score(samples(1.0)) == [1.0]


def test_a_malformed_image_is_refused_and_harms_nobody(start: Start) -> None:
    url = start({"brightness": brightness})
    whole = pack(samples(0.5), "png")
    answer = httpx.post(url + "/score/brightness", content=whole[:-30] + b"\0" * 30)
    assert answer.status_code == 400
    assert "malformed" in answer.json()["error"]
    assert httpx.post(url + "/score/brightness", content=b"nonsense").status_code == 400
    assert client(url, "brightness").score(samples(1.0)) == [1.0]


def test_unknown_rewards_and_the_wrong_kind_are_told_at_the_start(start: Start) -> None:
    url = start({"brightness": brightness, "place": Place})
    with pytest.raises(ServerError, match="serves no reward 'beauty', but brightness, place"):
        client(url, "beauty")
    with pytest.raises(ServerError, match='needs name = "remote-group"'):
        client(url, "place")
    with pytest.raises(ServerError, match='needs name = "remote"'):
        client(url, "brightness", RemoteGroup)
    assert httpx.post(url + "/score/beauty").status_code == 404


def test_a_group_reward_refuses_two_groups(start: Start) -> None:
    url = start({"place": Place})
    two = pack([*samples(0.1, slot=0), *samples(0.2, slot=1)], "png")
    assert httpx.post(url + "/score/place", content=two).status_code == 400


@pytest.mark.parametrize(
    ("bad", "said"),
    [(broken, "ValueError: no model here"), (lambda batch: [float("nan")], "not a finite"), (lambda b: [], "0 scores")],
)
def test_a_failing_reward_is_a_failure_and_never_a_score(start: Start, bad: Any, said: str) -> None:
    with pytest.raises(ServerError, match=said):
        client(start({"bad": bad}), "bad").score(samples(0.5))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(b'{"protocol": 1, "rewards": {"r": {}}}'), "does not say of which kind its reward 'r' is"),
        (answer(b'{"protocol": 1, "rewards": {"r": {"group": 1}}}'), "does not say of which kind"),
        (answer(b'{"protocol": 1, "rewards": ["r"]}'), "does not say which rewards it serves"),
        (
            answer(b'{"protocol": 2, "rewards": {"r": {"group": false}}}'),
            "speaks protocol 2, and this client protocol 1",
        ),
        (answer(b'{"rewards": {"r": {"group": false}}}'), "speaks protocol None"),
        (answer(b"[" * 100_000), "answered"),
        (answer(b"\xff\xfe"), "answered"),
        (answer(b'{"error": {"a": 1}}', "500 Oops"), "answered 500: {'a': 1}"),
        (answer(b"", "302 Found", "Location: http://127.0.0.1:1/"), "answered 302"),
    ],
)
def test_a_hostile_answer_is_a_failure_in_words(said: bytes, why: str) -> None:
    with pytest.raises(ServerError, match=re.escape(why)):
        client(Raw(said).url, "r", attempts=1)


@pytest.mark.parametrize(
    "score",
    [
        "{}",
        '{"total": 1}',
        '{"total": "1", "parts": {}}',
        '{"total": true, "parts": {}}',
        '{"total": 1, "parts": 2}',
        '{"total": 1, "parts": {}, "words": {"a": 1}}',
        '{"total": 1, "parts": {}, "words": []}',
        '{"total": 1, "parts": {}, "more": 1}',
    ],
)
def test_half_a_composite_score_is_a_failure(score: str) -> None:
    asked = RewardClient(RemoteSpec(url=Raw(answer(f'{{"scores": [{score}]}}'.encode())).url, reward="r", attempts=1))
    with pytest.raises(ServerError, match="not a number nor a total with parts"):
        asked.score(samples(0.1))


@pytest.mark.parametrize("scores", ["[1]", "[1, 2, 3]", "{}", "null", "7"])
def test_as_many_scores_as_samples_are_expected(scores: str) -> None:
    asked = RewardClient(RemoteSpec(url=Raw(answer(f'{{"scores": {scores}}}'.encode())).url, reward="r", attempts=1))
    with pytest.raises(ServerError, match="answered no list of 2 scores"):
        asked.score(samples(0.1, 0.2))


def test_no_message_holds_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_TOKEN", "s3cret-of-mine")
    for said in (
        answer(b'{"error": "not s3cret-of-mine"}', "401 No"),
        answer(b"hello s3cret-of-mine"),
        b"nonsense\r\n\r\n",
    ):
        raw = Raw(said)
        with pytest.raises(ServerError) as raised:
            client(raw.url, "r", attempts=1)
        assert b"Bearer s3cret-of-mine" in raw.heard
        assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("odd", ["s3cret\n", "s3 cret", "s3crét", "\x1b[2Js3cret"])
def test_what_is_no_token_is_refused_unseen(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_TOKEN", odd)
    with pytest.raises(SecretError, match="FLOWFACTORY_TOKEN holds a space, a line end") as raised:
        client("http://127.0.0.1:9", "r", attempts=1)
    assert "cret" not in str(raised.value)
    told = CliRunner().invoke(cli.cli, ["serve-reward", str(EXAMPLES / "rewards.toml")])
    assert told.exit_code == 2
    assert "cret" not in told.output


def test_a_password_in_an_address_is_refused_unseen() -> None:
    with pytest.raises(SecretError, match="must hold no name and no password") as raised:
        client("http://me:s3cret@127.0.0.1:9", "r", attempts=1)
    assert "s3cret" not in str(raised.value)


# --- a server under load -------------------------------------------------------------------------------------------


def test_pixels_count_together_before_any_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack(samples(0.1, 0.2, 0.3), "png")  # 72 pixels
    assert len(unpack(whole, tmp_path, 72)) == 3
    monkeypatch.setattr(wire, "_image", lambda *_: pytest.fail("decoded"))
    for encoding in ("png", "float32"):
        with pytest.raises(WireError, match="they are 72 together; 71 are allowed"):
            unpack(pack(samples(0.1, 0.2, 0.3), encoding), tmp_path, 71)  # type: ignore[arg-type]


def test_a_served_table_keeps_its_micro_batch(start: Start) -> None:
    sizes: list[int] = []

    def counts(batch: Sequence[Sample]) -> list[Score]:
        sizes.append(len(batch))
        return brightness(batch)

    remote = client(start({"counts": counts}, micro_batch=2), "counts", encoding="float32")
    assert remote.score(samples(0.25, 0.5, 0.75)) == [0.25, 0.5, 0.75]
    assert sizes == [2, 1]


def test_a_slow_reward_keeps_no_other_waiting(start: Start) -> None:
    released = threading.Event()
    url = start({"slow": lambda batch: released.wait(30) and brightness(batch), "brightness": brightness})
    slow = client(url, "slow", attempts=1)
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(slow.score, samples(0.1)) for _ in range(60)]
        time.sleep(0.5)
        before = time.perf_counter()
        assert client(url, "brightness", encoding="float32").score(samples(0.5)) == [0.5]
        assert time.perf_counter() - before < 5
        released.set()
        assert all(one.result() for one in waiting)


def test_a_queue_has_an_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WAITING", 1)
    released = threading.Event()
    slow = client(start({"slow": lambda batch: released.wait(30) and brightness(batch)}), "slow", attempts=1)
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(slow.score, samples(0.1))]
        time.sleep(0.3)
        first.append(pool.submit(slow.score, samples(0.1)))
        time.sleep(0.3)
        with pytest.raises(ServerError, match="answered 503: 1 requests wait for this reward already"):
            slow.score(samples(0.1))
        released.set()
        assert all(one.result() for one in first)


@pytest.mark.parametrize(
    ("half", "said"),
    [
        (b"", b""),
        (b"POST /score/r HTTP/1.1\r\nA: b", b""),
        (b"POST /score/r HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx", b"408"),
    ],
)
def test_half_a_request_is_not_waited_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, half: bytes, said: bytes
) -> None:
    monkeypatch.setattr(server, "HEADERS", 0.3)
    monkeypatch.setattr(server, "BODY", 0.3)
    url = httpx.URL(start({"r": brightness}))
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        connection.sendall(half)
        heard = b""
        while got := connection.recv(65536):
            heard += got
    assert said in heard


# --- servers that come and go --------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_told_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ServerError, match="ConnectError"):
        client(url, "brightness", attempts=2)


def test_a_slow_server_times_out(start: Start) -> None:
    def slow(batch: Sequence[Sample]) -> list[Score]:
        time.sleep(2)
        return [0.0] * len(batch)

    remote = client(start({"slow": slow}), "slow", request_timeout=1, attempts=1)
    with pytest.raises(ServerError, match="ReadTimeout"):
        remote.score(samples(0.5))


def test_a_server_killed_in_the_middle_drops_what_it_had_not_scored(start: Start, running: list[Running]) -> None:
    url = start({"brightness": brightness})
    spec = RemoteSpec(url=url, reward="brightness", attempts=2, pause=0.0, encoding="float32")
    entry = RewardEntry(name="remote", label="remote", spec=spec, on_error="drop-group", max_dropped=1.0)
    ours = Judge([entry], {"remote": Registry().target("rewards", "remote")}, {})
    ours.load(CPU, torch.float32)
    with ours.session({"": 2}) as session:
        session.submit(samples(0.25, 0.5, slot=0))
        while not session.scored:
            time.sleep(0.01)
        running[0].stop()
        session.submit(samples(0.75, 1.0, slot=1))
        scored = session.finish()
    assert scored.values["remote"].tolist()[:2] == [0.25, 0.5]
    assert scored.failed["remote"].tolist() == [False, False, True, True]
    assert scored.values["remote"][2:].isnan().all()
    assert "ConnectError" in scored.failures[0].why


def test_the_command_serves_the_example_until_it_is_stopped() -> None:
    command = [sys.executable, "-m", "flowfactory", "serve-reward", str(EXAMPLES / "rewards.toml"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as server:
        assert server.stderr is not None
        try:
            told = next(line for line in server.stderr if line.startswith("serving"))
            found = re.search(r"serving small-files at (http://127\.0\.0\.1:\d+)", told)
            assert found is not None
            remote = client(found.group(1), "small-files", encoding="float32")
            noise = Sample(Row("noise"), torch.rand(3, 32, 32), 0, 1)
            scores = remote.score([*samples(0.5), noise])
            assert 0 > float(scores[0] or 0) > float(scores[1] or 0)
        finally:
            server.send_signal(signal.SIGTERM)


def test_a_server_whose_reward_hangs_ends_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(
        "import time\nfrom flowfactory import NoKeys, Provides, hookimpl\n"
        "def hangs(samples):\n    time.sleep(600)\n"
        "@hookimpl\ndef flowfactory_rewards():\n    yield Provides('hangs', NoKeys, hangs, 'It hangs.')\n"
    )
    (tmp_path / "rewards.toml").write_text('plugins = ["./hangs.py"]\n[[reward]]\nname = "hangs"\n')
    command = [sys.executable, "-m", "flowfactory", "serve-reward", str(tmp_path / "rewards.toml"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as serving:
        assert serving.stderr is not None
        url = next(line for line in serving.stderr if line.startswith("serving")).split()[-1]
        remote = client(url, "hangs", attempts=1)

        def ask() -> None:
            with pytest.raises(ServerError):
                remote.score(samples(0.5))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        serving.send_signal(signal.SIGTERM)
        serving.wait(60)  # a tenth of what the reward takes
    asking.join(60)
    assert not asking.is_alive()


def test_serving_other_machines_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWFACTORY_TOKEN", raising=False)
    answer = CliRunner().invoke(cli.cli, ["serve-reward", str(EXAMPLES / "rewards.toml"), "--host", "0.0.0.0"])
    assert answer.exit_code == 2
    assert "set FLOWFACTORY_TOKEN to a secret first" in answer.output


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("my-host", False),
    ],
)
def test_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_the_example_is_a_sound_spec() -> None:
    (entry,) = load_spec(EXAMPLES / "remote.toml", Registry()).rewards
    assert (entry.name, entry.workers, entry.spec.reward) == ("remote", 4, "small-files")


# --- the conformance kit -------------------------------------------------------------------------------------------


def asked_of(reward: str, target: Any) -> Callable[[Path], dict[str, Any]]:
    """The keys of a reward that a server of its own computes."""

    def keys(folder: Path) -> dict[str, Any]:
        return {"url": Running({reward: target}, max_bytes=10**8).url, "reward": reward, "pause": 0.01}

    return keys


SERVED = {"remote": asked_of("brightness", brightness), "remote-group": asked_of("place", Place)}
test_conformance = conformance("flowfactory-plugin-remote", keys=SERVED)
