import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """tests/search/fake_search.py, which is also a command of its own."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_search.py")), run_name="fake_search"))
