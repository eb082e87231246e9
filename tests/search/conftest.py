import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """tests/search/fake_search.py, which is also a command of its own."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_search.py")), run_name="fake_search"))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: SQLite waits for the disk at each of its commits."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="finemesh-") as folder:
        yield Path(folder)
