from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from finemesh.search.samplers.encoding import Box
from finemesh.search.samplers.structures import Structures

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "method": CategoricalDistribution(["lora", "full", "head"]), "adam": CategoricalDistribution([True, False]),
    "layers": IntDistribution(1, 6), "rank": IntDistribution(1, 64), "rate": FloatDistribution(0, 1),
    **{f"width{i}": IntDistribution(1, 100) for i in range(6)},
}


def learned(*trials: dict[str, Any]) -> Structures:
    structures = Structures()
    for values in trials:
        structures.add(values, {name: DISTRIBUTIONS[name] for name in values})
    return structures


def choices(box: Box, name: str) -> list[Any]:
    found = [dimension for dimension in box.dimensions if dimension.name == name]
    if not found:
        return [value for fixed, value in box.fixed if fixed == name]
    return [found[0].value(float(index)) for index in range(found[0].size or 0)]


def test_a_switch_keeps_to_its_structure_and_leaves_the_untried_choice_open() -> None:
    structures = learned({"method": "lora", "rank": 8, "rate": 0.5}, {"method": "full", "rate": 0.1})
    lora, full = map(structures.box, structures.keys)
    assert choices(lora, "method") == ["lora", "head"]
    assert choices(full, "method") == ["full", "head"]
    assert {dimension.name for dimension in full.dimensions} == {"method", "rate"}


def test_a_choice_with_a_structure_of_its_own_is_fixed() -> None:
    structures = learned({"method": "lora", "rank": 8}, {"method": "full", "rate": 0.1},
                         {"method": "head", "adam": True})
    assert [choices(structures.box(key), "method") for key in structures.keys] == [["lora"], ["full"], ["head"]]


def test_what_differs_by_coincidence_is_no_switch() -> None:
    """`adam` happens to differ in the first two, but only `method` tells all three apart."""
    structures = learned({"method": "lora", "adam": True, "rank": 1}, {"method": "full", "adam": False},
                         {"method": "head", "adam": True, "rate": 0.1})
    assert [choices(structures.box(key), "adam") for key in structures.keys] == [[True, False]] * 3


def test_a_categorical_is_a_switch_before_an_integer() -> None:
    structures = learned({"method": "lora", "layers": 2, "rank": 1}, {"method": "full", "layers": 5})
    assert choices(structures.box(structures.keys[0]), "layers") == [1, 2, 3, 4, 5, 6]


def test_an_integer_can_be_the_switch() -> None:
    structures = learned({"layers": 1, "width0": 9}, {"layers": 3, "width0": 9, "width1": 9, "width2": 9})
    one, three = map(structures.box, structures.keys)
    assert choices(one, "layers") == [1, 2]
    assert choices(three, "layers") == [2, 3, 4, 5, 6]


def test_each_structure_keeps_its_own_ranges() -> None:
    """`k` is a switch in two of them and too wide for one in the third; only what lies in a range can narrow it."""
    structures = Structures()
    for rest, k, low, high in (("a", 1, 1, 5), ("b", 9, 4, 12), ("c", 30, 16, 40)):
        structures.add({"k": k, rest: 1}, {"k": IntDistribution(low, high), rest: IntDistribution(1, 9)})
    boxes = map(structures.box, structures.keys)
    assert [[dimension.distribution for dimension in box.dimensions if dimension.name == "k"] for box in boxes] == \
        [[IntDistribution(1, 5)], [IntDistribution(4, 12)], [IntDistribution(16, 40)]]


def test_untried_choices_come_first_by_name_and_place() -> None:
    structures = learned({"method": "full", "adam": True})
    assert structures.untried([], switches_only=False) == ("adam", False)
    assert structures.untried([{"adam": False}], switches_only=False) == ("method", "lora")
    assert structures.untried([{"adam": False}], switches_only=True) is None
    structures.add({"method": "lora", "adam": False, "rank": 2}, DISTRIBUTIONS)
    assert structures.untried([], switches_only=True) == ("method", "head")


def test_the_last_range_counts() -> None:
    structures = learned({"rate": 0.5})
    structures.add({"rate": 1.5}, {"rate": FloatDistribution(0, 2)})
    assert structures.box(structures.keys[0]).dimensions[0].distribution == FloatDistribution(0, 2)
