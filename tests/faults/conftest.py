import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SEARCH = Path(__file__).parents[1] / "search" / "fake_search.py"


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """A search without models; `fake.command` runs it in a process of its own."""
    return SimpleNamespace(**runpy.run_path(str(SEARCH), run_name="fake_search"), command=[str(SEARCH)])
