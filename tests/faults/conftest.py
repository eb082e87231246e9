import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

SEARCH = Path(__file__).parents[1] / "search" / "fake_search.py"


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """A search without models; `fake.command` runs it in a process of its own."""
    return SimpleNamespace(**runpy.run_path(str(SEARCH), run_name="fake_search"), command=[str(SEARCH)])


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: SQLite waits for the disk at each of its commits."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="finemesh-") as folder:
        yield Path(folder)
