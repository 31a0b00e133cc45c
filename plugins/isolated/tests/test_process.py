"""Scorers that die, hang, print and answer wrongly, in processes of their own; in the environment of the tests."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory import ServerError
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.tables import RewardEntry
from flowfactory.testing import conformance
from flowfactory_plugin_isolated import IsolatedSpec
from flowfactory_plugin_isolated.environments import host_wheel
from flowfactory_plugin_isolated.process import Keeper, ScorerError

SCORER = """
import os, signal, sys, time
from pathlib import Path

from PIL import ImageStat

print("ready on stdout")


def act(prompt, image):
    if prompt == "die":
        print("farewell", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if prompt == "leave":
        os._exit(7)
    if prompt.startswith("die once"):
        flag = Path(prompt.split()[-1])
        if not flag.exists():
            flag.touch()
            os._exit(9)
    if prompt == "hang":
        time.sleep(600)
    if prompt == "print":
        print("said \\x1b[2J to all")
        os.write(1, b"10%\\r20%\\r100% done\\n")
        sys.stderr.write("and complained\\n")
    if prompt == "raise":
        raise ValueError("no weights")
    if prompt == "nan":
        return float("nan")
    if prompt == "pid":
        return os.getpid()
    if prompt == "ranks":
        return sum(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_X", "PYTHONPATH"))
    return ImageStat.Stat(image).mean[0] / 255


def score(images, prompts, rows):
    scores = [act(prompt, image) for prompt, image in zip(prompts, images)]
    return scores[1:] if "short" in prompts else scores
"""


def sample(prompt: str, level: float = 1.0, slot: int = 0) -> Sample:
    return Sample(Row(prompt), torch.full((3, 4, 4), level), slot, 0)


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("scorer") / "acts.py"
    file.write_text(SCORER)
    return f"{file}:score"


Start = Callable[..., Keeper]


@pytest.fixture(scope="module")
def start(function: str) -> Start:
    def begin(**keys: Any) -> Keeper:
        times = {"start_timeout": 60.0, "request_timeout": 60.0, "restarts": 1} | keys
        return Keeper(Path(sys.executable), host_wheel(), function, "cpu", **times)

    return begin


@pytest.fixture(scope="module")
def keeper(start: Start) -> Keeper:
    """For tests that leave the process as it was."""
    return start()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is written into a run's log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flowfactory")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def gone(pid: int) -> bool:
    """Whether a process ends within seconds."""
    for _ in range(100):
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return True
        time.sleep(0.1)
    return False


def test_it_scores(keeper: Keeper) -> None:
    assert keeper.score([sample("x", 0.0), sample("x", 1.0)]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("raise", "ValueError: no weights"),
        ("nan", "returned nan, not a finite number"),
        ("short", "returned 0 scores for 1 samples"),
    ],
)
def test_what_is_no_score_is_a_failure_in_words(keeper: Keeper, prompt: str, why: str) -> None:
    before = keeper.score([sample("pid")])
    with pytest.raises(ServerError, match=why):
        keeper.score([sample(prompt)])
    assert keeper.score([sample("pid")]) == before  # it has not ended


def test_what_it_prints_is_in_the_log_and_nowhere_else(
    keeper: Keeper, log: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    keeper.score([sample("print")])
    for _ in range(100):
        if any("and complained" in line for line in log):
            break
        time.sleep(0.05)
    said = [line.partition(":score: ")[2] for line in log]
    assert {"said \\x1b[2J to all", "100% done", "and complained"} <= {*said}
    assert capfd.readouterr().out == ""


def test_it_does_not_know_of_the_runs_processes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_X"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    assert start().score([sample("ranks")]) == [0.0]


def test_a_proxy_is_not_asked_for_what_is_here(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert start().score([sample("x")]) == [1.0]


def test_nobody_without_the_token_is_answered(keeper: Keeper) -> None:
    import httpx

    running = keeper._running
    assert running is not None
    url = running._server._spec.url
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 401


# --- dying, hanging ---


def test_one_that_dies_is_started_again_and_within_bounds(start: Start) -> None:
    ours = start()
    with pytest.raises(ScorerError, match=r"ended with SIGKILL; its last words were:\n(.*\n)*farewell"):
        ours.score([sample("die")])
    assert ours.score([sample("x")]) == [1.0]
    with pytest.raises(ScorerError, match="ended with exit code 7"):
        ours.score([sample("leave")])
    with pytest.raises(ScorerError, match="ended with SIGKILL"):
        ours.score([sample("die")])
    with pytest.raises(ScorerError, match="has ended 2 times without a score in between; it is not started again"):
        ours.score([sample("x")])


def test_one_that_hangs_is_ended(start: Start) -> None:
    ours = start(request_timeout=1.0)
    (pid,) = ours.score([sample("pid")])
    with pytest.raises(ScorerError, match="did not answer within 1 s, and was ended"):
        ours.score([sample("hang")])
    assert gone(int(pid or 0))
    assert ours.score([sample("x")]) == [1.0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("def other(): pass", "has no function 'score'"),
        ("import sys; sys.exit('weights are missing')", "weights are missing"),
    ],
)
def test_one_that_cannot_start_says_why(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ScorerError, match=rf"ended with exit code 1; its last words were:\n(.*\n)*.*{why}"):
        Keeper(Path(sys.executable), host_wheel(), f"{tmp_path / 'bad.py'}:score", "cpu", 60.0, 60.0, 0)


def test_one_that_never_becomes_ready_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(600)")
    with pytest.raises(ScorerError, match=r"was not ready within 0\.5 s, and was ended"):
        Keeper(Path(sys.executable), host_wheel(), f"{tmp_path / 'slow.py'}:score", "cpu", 0.5, 60.0, 0)


def test_it_ends_with_who_keeps_it(start: Start) -> None:
    ours = start()
    (pid,) = ours.score([sample("pid")])
    del ours
    assert gone(int(pid or 0))


KEEPS = """
import sys, time
from pathlib import Path
from flowfactory_plugin_isolated.environments import host_wheel
from flowfactory_plugin_isolated.process import Keeper

keeper = Keeper(Path(sys.executable), host_wheel(), sys.argv[1], "cpu", 60.0, 60.0, 1)
print(keeper._running._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_a_run_that_is_killed(function: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", KEEPS, function]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert Path(f"/proc/{pid}/cmdline").read_bytes() != b""
        run.send_signal(number)
        run.wait(20)
    assert gone(pid)


# --- in a run ---


def judge(function: str, **keys: Any) -> Judge:
    spec = IsolatedSpec(score=function, environment=sys.prefix, request_timeout=keys.pop("request_timeout", 60.0))
    entry = RewardEntry(name="isolated", label="acts", spec=spec, retry_pause=0.0, max_dropped=1.0, **keys)
    made = Judge([entry], {"isolated": Registry().target("rewards", "isolated")}, {})
    made.load(torch.device("cpu"), torch.float32)
    return made


def test_one_that_is_killed_in_mid_epoch_changes_no_score(function: str, tmp_path: Path) -> None:
    """The call is made again, and the scores are those of an undisturbed run."""
    ours = judge(function)
    with ours.session({"": 3}) as session:
        for slot, prompt in enumerate(("x", f"die once {tmp_path / 'died'}", "x")):
            session.submit([sample(prompt, 0.0, slot), sample("x", 1.0, slot)])
        scored = session.finish()
    assert (tmp_path / "died").exists()
    assert scored.values["acts"].tolist() == [0.0, 1.0] * 3
    assert scored.calls == {"acts": 1}
    assert not scored.failed["acts"].any()


def test_one_that_stays_dead_has_no_scores_and_gives_nobody_any(function: str) -> None:
    ours = judge(function, on_error="drop-group")
    with ours.session({"": 2}) as session:
        session.submit([sample("x", 0.0, 0), sample("x", 1.0, 0)])
        session.submit([sample("x", 0.0, 1), sample("die", 1.0, 1)])
        scored = session.finish()
    assert scored.values["acts"][:2].tolist() == [0.0, 1.0]
    assert scored.values["acts"][2:].isnan().all()
    assert scored.failed["acts"].tolist() == [False, False, True, True]
    assert "ended with SIGKILL" in scored.failures[0].why


def test_tables_that_say_the_same_share_a_process(function: str) -> None:
    spec = IsolatedSpec(score=function, environment=sys.prefix)
    entries = [RewardEntry(name="isolated", label=label, spec=spec) for label in ("one", "two")]
    ours = Judge(entries, {"isolated": Registry().target("rewards", "isolated")}, {})
    ours.load(torch.device("cpu"), torch.float32)
    found = ours.score([sample("pid")])
    assert found["one"] == found["two"]


def test_a_run_whose_scorer_cannot_start_ends_in_words(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package\ndef score(*a): pass\n")
    with pytest.raises(RewardError, match=r"reward 'acts' cannot be loaded: ScorerError: (.*\n)*.*no_such_package"):
        judge(f"{tmp_path / 'bad.py'}:score")


test_conformance = conformance("flowfactory-plugin-isolated")
