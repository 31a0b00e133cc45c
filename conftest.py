"""For every test: one thread per process, since tests run side by side on small tensors; a cache of its own."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

MEASURED = Path(__file__).parent / "tests" / "unit"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:  # as under nohup, or in the background of a script
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded prompts stay out of the user's folders; subprocesses inherit where they are."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FLOWFACTORY_CACHE"] = str(folder)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """With `--cov`, measure core by its unit tests alone: tracing doubles the time of a test of `check`."""
    if not item.config.pluginmanager.hasplugin("_cov") or item.path.is_relative_to(MEASURED):
        return (yield)
    from coverage import Coverage

    running = Coverage.current()
    assert running is not None
    running.stop()
    try:
        return (yield)
    finally:
        running.start()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Collecting garbage looks at nothing older than the file of tests: libraries are half a million objects."""
    gc.collect()
    gc.freeze()
