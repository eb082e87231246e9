import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """tests/search/fake_search.py, which is also a command of its own."""
    spec = importlib.util.spec_from_file_location("fake_search", Path(__file__).with_name("fake_search.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
