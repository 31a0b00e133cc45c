"""For every test: one thread per process, since tests run side by side on small tensors; a cache of its own."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded prompts stay out of the user's folders; subprocesses inherit where they are."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FLOWFACTORY_CACHE"] = str(folder)
    return folder
