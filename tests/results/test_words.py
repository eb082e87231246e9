import pytest

from finemesh.results import words


@pytest.mark.parametrize(("value", "text"), [
    (2e-4, "2e-4"), (0.0002345, "2.35e-4"), (0.05, "0.05"), (0.0, "0"), (16, "16"), (1234.6, "1235"), (2.5e6, "2.5e6"),
    (True, "True"), ("all_linear", "all_linear"), (-3e-5, "-3e-5"), ("Answer briefly.", '"Answer briefly."')])
def test_settings_are_short(value: object, text: str) -> None:
    assert words.setting(value) == text


def test_losses_that_are_none_or_no_number_are_a_dash() -> None:
    assert [words.loss(value) for value in (1.23456, None, float("nan"), 12345.6)] == ["1.235", "–", "–", "1.23e+04"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (5400, "1 h 30 min")])
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_spark_falls_with_the_losses_and_fits() -> None:
    assert words.spark([8.0, 6.0, 4.0, 1.0], 10) == "█▆▄▁"
    assert len(words.spark([float(i) for i in range(100)], 12)) == 12
    assert words.spark([], 5) == words.spark([1.0], 0) == ""
    assert words.spark([2.0, 2.0, float("nan")], 5) == "▁▁"


def test_lists() -> None:
    assert [words.listed(parts) for parts in (["9"], ["9", "4"], ["9", "11", "4"])] == ["9", "9 and 4", "9, 11 and 4"]
