"""The paired test on rows: sure where one model is worse, silent where it is as good."""

from pathlib import Path

import numpy as np
import pytest

from finemesh.tuning.evaluation.rival import Rival, read_rival, write_rows


def rows(seed: int, count: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Losses that differ much from row to row, and the tokens of each row."""
    chance = np.random.default_rng(seed)
    return chance.gamma(2.0, 1.0, count), chance.integers(5, 60, count)


def looked_at(rival: Rival, losses: np.ndarray, weights: np.ndarray) -> tuple[int, float | None]:
    """How many rows it took, and the estimate."""
    seen = np.zeros(len(losses), dtype=int)
    for part in rival.parts():
        seen[part] = weights[part]
        estimate = rival.better(losses * seen, seen)
        if estimate is not None:
            return int((seen > 0).sum()), estimate
    return len(losses), None


def test_a_worse_model_is_found_out_by_few_rows_and_its_loss_estimated() -> None:
    losses, weights = rows(0)
    noise = np.random.default_rng(1).normal(0.15, 0.1, len(losses))
    rival = Rival(losses.tolist(), float(np.average(losses, weights=weights)))
    count, estimate = looked_at(rival, losses + noise, weights)
    assert count <= 40
    assert estimate == pytest.approx(np.average(losses + noise, weights=weights), abs=0.03)
    assert abs(np.average(losses[:40], weights=weights[:40]) - np.average(losses, weights=weights)) > 0.03  # without pairs
    assert looked_at(Rival(losses.tolist(), rival.loss, 0.15), losses + noise, weights) == (160, None)


def test_a_model_as_good_is_hardly_ever_given_up() -> None:
    given_up = 0
    for seed in range(100):
        losses, weights = rows(seed)
        noise = np.random.default_rng(seed + 1000).normal(0.0, 0.2, len(losses))
        given_up += looked_at(Rival(losses.tolist(), float(losses.mean())), losses + noise, weights)[1] is not None
    assert given_up <= 3


def test_a_few_rows_that_outweigh_the_others_are_reckoned_with() -> None:
    """Most rows are a little worse and a few much better: as good on the whole. A test of medians gave half of these up."""
    given_up = 0
    for seed in range(100):
        losses, _ = rows(seed, 800)
        skewed = 0.3 * (1 - np.random.default_rng(seed + 1000).exponential(1.0, len(losses)))
        rival = Rival(losses.tolist(), float(losses.mean()))
        given_up += looked_at(rival, losses + skewed - skewed.mean(), np.ones(len(losses), dtype=int))[1] is not None
    assert given_up <= 3


def test_the_same_excess_in_every_row_is_no_chance() -> None:
    losses, _ = rows(0)
    rival, ones = Rival([1.0] * len(losses), 1.0), np.ones(len(losses), dtype=int)
    assert looked_at(rival, np.full(len(losses), 1.5), ones) == (20, 1.5)
    assert looked_at(rival, np.ones(len(losses)), ones) == (160, None)


def test_every_row_is_looked_at_once_in_growing_parts() -> None:
    parts = Rival([1.0] * 80, 1.0).parts()
    assert [len(part) for part in parts] == [10, 10, 20, 40]
    assert sorted(row for part in parts for row in part) == list(range(80))
    assert sum(map(len, Rival([1.0] * 3, 1.0).parts())) == 3


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path, 30, 2.5, [2.0, 3.0])
    assert read_rival(tmp_path, 30, 2.75) == Rival([2.0, 3.0], 2.5, 0.25)
    assert read_rival(tmp_path, 10, 2.75) is None
