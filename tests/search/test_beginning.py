"""What a search begins with."""

from math import sqrt

from finemesh.preparation import whole_space
from finemesh.search.beginning import USUAL_STEPS, beginning
from finemesh.search.space import Point
from finemesh.tuning.methods import METHODS

NAMES = ("lora", "full", "in_context")
SPACE = whole_space().narrowed(dict.fromkeys(NAMES))
REFERENCES: dict[str, Point] = {name: SPACE.point(name, {}, METHODS[name].reference) for name in NAMES}


def test_the_reference_settings_come_first_then_the_same_at_a_rate_for_short_runs() -> None:
    steps = USUAL_STEPS // 25
    found = beginning(REFERENCES, SPACE, steps)
    assert found[:3] == list(REFERENCES.items())
    assert [method for method, _ in found[3:]] == ["lora", "full"]  # nothing is trained in context
    for method, point in found[3:]:
        rate = REFERENCES[method]["learning_rate"] * sqrt(USUAL_STEPS / steps)
        assert point == {**REFERENCES[method], "learning_rate": rate}


def test_a_long_run_takes_the_rates_as_they_are() -> None:
    assert beginning(REFERENCES, SPACE, USUAL_STEPS) == list(REFERENCES.items())
    assert beginning(REFERENCES, SPACE, 10 * USUAL_STEPS) == list(REFERENCES.items())


def test_ranges_and_fixed_values_are_kept_and_no_point_comes_twice() -> None:
    space = SPACE.narrowed({"lora": {"learning_rate": [1e-4, 3e-4]}, "full": {"learning_rate": 1e-5}})
    references = {name: space.point(name, {}, METHODS[name].reference) for name in ("lora", "full")}
    found = beginning(references, space, 20)
    assert [(method, point["learning_rate"]) for method, point in found] == [("lora", 2e-4), ("full", 1e-5), ("lora", 3e-4)]
