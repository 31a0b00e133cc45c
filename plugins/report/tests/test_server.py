"""The page that is served while a run goes on: to whom, what of, and how it is asked again."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from flowfactory import RunError, read_runs
from flowfactory_plugin_report import server as module
from flowfactory_plugin_report.server import Server, listen, time_left
from PIL import Image
from runs import colour, lay_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_run(tmp_path / "runs" / "run")


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with listen(folder, 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    named = f"127.0.0.1:{server.server_port}" if host is None else host
    connection.putrequest(method, path, skip_host=True)
    if named:
        connection.putheader("Host", named)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def content(page: bytes) -> dict[str, object]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.decode())
    found: dict[str, object] = json.loads(text)
    return found


def test_the_page_is_the_reports_with_what_is_now(server: Server) -> None:
    status, headers, page = ask(server, "/")
    assert status == 200
    assert b"<b>finished</b>: epoch 6 of 6" in page
    assert b'id="library"' in page
    assert headers["Cache-Control"] == "no-store"
    assert "img-src data: 'self'; connect-src 'self'" in page.decode()


@pytest.mark.parametrize(
    ("metrics", "total"),
    [
        ({"reward/a/mean": 0.5, "reward/score": 0.25}, "training score 0.250, "),
        ({"reward/bright/mean": 0.542, "reward/score": 0.542}, ""),  # which is the only reward's
    ],
)
def test_the_newest_scores_begin_with_a_total(tmp_path: Path, metrics: dict[str, float], total: str) -> None:
    run = lay_run(tmp_path / "run", metrics=metrics)
    with listen(run, 0) as made:
        page = made.source.page(code=False)
    assert f'<p class="newest">{total}held-out bright 0.620, training bright 0.542' in page


def test_it_listens_at_the_loopback_address_alone(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil"])
@pytest.mark.parametrize("path", ["/", "/now", "/samples/eval-0000/0000.png", "/small/eval-0000/0000.png", "/x"])
def test_whoever_calls_it_otherwise_is_refused(server: Server, host: str, path: str) -> None:
    """As the page of a stranger would, that has its name lead here."""
    status, _, text = ask(server, path, host=host)
    assert status == 421
    assert text == b"this server has another name\n"


def test_it_may_be_called_localhost(server: Server) -> None:
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200


def test_it_says_whether_anything_is_new(server: Server, folder: Path) -> None:
    version = content(ask(server, "/")[2])["version"]
    assert ask(server, f"/now?version={version}")[0] == 204
    with (folder / "metrics.jsonl").open("a") as table:
        table.write(json.dumps({"epoch": 7, "reward/bright/mean": 0.75, "time/sample": 1.0}) + "\n")
    status, _, page = ask(server, f"/now?version={version}")
    assert status == 200
    assert b"epoch 7 of 6" in page
    assert b'id="library"' not in page
    assert b"training bright 0.750" in page
    assert content(page)["version"] != version


def test_that_a_run_goes_on_is_seen_by_its_lock(server: Server, folder: Path) -> None:
    (before,) = {content(ask(server, "/")[2])["version"]}
    with FileLock(folder / ".lock"):
        assert b"<b>running</b>" in ask(server, "/")[2]
        assert ask(server, f"/now?version={before}")[0] == 200


def test_pictures_are_served_small_and_whole(server: Server, folder: Path) -> None:
    large = Image.new("RGB", (900, 600), colour(0, 1, 0))
    large.save(folder / "samples/eval-0000/0001.png")
    (folder / "samples/eval-0000/0001.mp4").write_bytes(b"film")
    for size, width in (("small", 256), ("samples", 900)):
        status, headers, data = ask(server, f"/{size}/eval-0000/0001.png")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert Image.open(io.BytesIO(data)).width == width
    assert ask(server, "/samples/eval-0000/0001.mp4")[1:][1] == b"film"
    assert ask(server, "/samples/eval-0000/0001.png", "HEAD")[2] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/plan.json",
        "/spec.toml",
        "/metrics.jsonl",
        "/samples/eval-0000/samples.jsonl",
        "/samples/eval-0000/../../plan.json",
        "/samples/eval-0000/%2e%2e/plan.json",
        "/samples/../../run-source/train.txt",
        "/samples/eval-0000/0000.png/",
        "/samples/eval-0000/9999.png",
        "/small/eval-0000/0000.mp4",
        "/small/eval-9999/0000.png",
        "/small/epoch-0000/0000.png",
        "//evil.example/",
        "/favicon.ico",
    ],
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_no_link_leads_out_of_the_run(server: Server, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "samples/eval-0000/0000.png").unlink()
    (folder / "samples/eval-0000/0000.png").symlink_to(secret)
    (folder / "samples/eval-9000").symlink_to(tmp_path)
    for path in ("samples/eval-0000/0000.png", "small/eval-0000/0000.png", "samples/eval-9000/0000.png"):
        assert ask(server, f"/{path}")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_taken_in(server: Server, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


def test_a_run_that_cannot_be_read_for_a_moment_ends_nothing(server: Server, folder: Path) -> None:
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text("{")
    status, _, said = ask(server, "/now")
    assert status == 503
    assert b"plan.json cannot be read" in said
    (folder / "plan.json").write_text(text)
    assert ask(server, "/now")[0] == 200


def test_damaged_pictures_are_grey(server: Server, folder: Path) -> None:
    (folder / "samples/eval-0000/0000.png").write_bytes(b"no picture")
    assert ask(server, "/")[0] == 200
    small = Image.open(io.BytesIO(ask(server, "/small/eval-0000/0000.png")[2]))
    assert small.convert("RGB").getpixel((0, 0)) == (200, 200, 200)


def test_connections_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond are closed at once; the others are served when it is their turn."""
    idle = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(module.CONNECTIONS)]
    last = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
    assert last.recv(1) == b""
    for one in (*idle, last):
        one.close()


def test_small_pictures_are_kept_within_a_limit(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(ask(server, f"/small/eval-0000/{n:04d}.png")[2]) for n in range(3)]
    kept = server.source._small
    assert [len(content) for _, content in kept.values()] == sizes
    monkeypatch.setattr(module, "KEPT", sum(sizes))
    ask(server, "/small/eval-0002/0000.png")
    assert sum(len(content) for _, content in kept.values()) <= sum(sizes)
    assert ask(server, "/small/eval-0002/0000.png")[0] == 200


def test_the_time_that_is_left_is_told_by_the_last_epochs(tmp_path: Path) -> None:
    (run,) = read_runs([lay_run(tmp_path / "run")])
    mean = sum(2.0 + 1.0 + epoch / 10 + (0.5 if epoch % 2 == 0 else 0) for epoch in range(1, 7)) / 6
    for epochs, said in ((100, f"about {round(100 * mean / 60)} min left"), (0, ""), (1, "about 1 min left")):
        assert time_left(run, epochs) == said
    hours, minutes = divmod(round(3000 * mean / 60), 60)
    assert time_left(run, 3000) == f"about {hours} h {minutes} min left"


def test_what_is_no_run_is_refused_and_one_that_begins_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not the folder of a run: it has no plan\.json"):
        listen(tmp_path, 0)
    timer = threading.Timer(0.3, lambda: (lay_run(tmp_path / "later"), (tmp_path / "later").rename(tmp_path / "run")))
    timer.start()
    with listen(tmp_path / "run", 0, wait=30) as server:
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
    timer.join()


def test_a_port_that_is_taken_is_told_or_another_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen(folder, 0) as first:
        with pytest.raises(RunError, match=rf"cannot listen at 127\.0\.0\.1:{first.server_port}: .*another --port"):
            listen(folder, first.server_port)
        monkeypatch.setattr(module, "PORT", first.server_port)
        with listen(folder, None) as second:
            assert second.server_port not in (0, first.server_port)
