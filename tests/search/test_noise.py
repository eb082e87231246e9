from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from finemesh.search import noise
from finemesh.search.noise import Standing, seed_deviation, standings, undecided
from finemesh.trial import Outcome

SEARCH = 0  # the search's seed


def run(number: int, seed: int, loss: float, method: str = "lora") -> Outcome:
    return Outcome(number, "complete", method, {"rank": number}, seed, validation_loss=float(loss))


def ranked(losses: Mapping[int, Sequence[float]], searched: Mapping[int, float] | None = None,
           methods: Mapping[int, str] | None = None) -> list[Standing]:
    methods = methods or {}
    repeats = {number: [run(number, seed, loss, methods.get(number, "lora")) for seed, loss in enumerate(found, 1)]
               for number, found in losses.items()}
    trials = [run(number, SEARCH, loss, methods.get(number, "lora")) for number, loss in (searched or {}).items()]
    return standings(trials, repeats)


def test_leaders_that_differ_much_more_than_their_seeds_are_told_apart() -> None:
    first, second = ranked({3: [2.0, 2.011, 1.99], 8: [1.0, 1.012, 1.005]})
    assert (first.number, first.method, first.runs, second.number) == (8, "lora", 3, 3)
    assert first.best > 0.99
    assert first.winner_better is None
    assert second.winner_better == first.best == 1 - second.best
    assert first.expected_loss == pytest.approx(first.mean, abs=0.01)
    assert undecided([first, second]) == []


def test_leaders_within_the_noise_cannot_be_told_apart_and_are_expected_to_be_more_alike_than_they_look() -> None:
    found = ranked({1: [1.00, 1.08], 2: [1.03, 1.09], 3: [1.09, 1.04]})
    assert {one.number for one in undecided(found)} == {2, 3}
    assert [one.winner_better for one in undecided(found)] == sorted(one.winner_better or 0.0 for one in undecided(found))
    assert sum(one.best for one in found) == pytest.approx(1)
    assert found[0].mean < found[0].expected_loss < found[-1].expected_loss < found[-1].mean


def test_what_a_seed_does_to_all_leaders_tells_nothing_of_them_and_hides_nothing() -> None:
    """On seed 2 all are bad; each leader is where it was among them."""
    found = ranked({1: [1.00, 1.50, 1.001], 2: [1.02, 1.521, 1.02]})
    assert (found[0].number, undecided(found)) == (1, [])
    assert seed_deviation([[run(1, 1, 1.0), run(1, 2, 1.5)], [run(2, 1, 2.0)]]) == pytest.approx(0.5 / 2**0.5)


def test_the_trial_of_the_search_counts_but_not_by_how_low_it_is() -> None:
    repeats = {1: [1.00, 1.06], 2: [1.05, 1.00]}
    assert ranked(repeats, {1: 0.95, 2: 0.90})[0].number == 2
    assert ranked(repeats, {1: 0.90, 2: 0.95})[0].number == 1
    low, high = ranked(repeats, {1: 0.1, 2: 0.15}), ranked(repeats, {1: 0.90, 2: 0.95})
    assert [one.expected_loss for one in low] == pytest.approx([one.expected_loss for one in high])
    assert 1.0 < low[0].expected_loss < 1.06


def test_a_lucky_trial_of_a_noisy_method_is_believed_less_than_one_of_a_steady_method() -> None:
    losses = {1: [1.30, 0.85, 1.14], 2: [1.01, 1.00, 1.005], 3: [1.02, 1.01, 1.02]}
    found = ranked(losses, {1: 0.6, 2: 0.995, 3: 1.01}, {1: "prompt", 2: "lora", 3: "lora"})
    assert found[0].number == 2
    assert np.mean([0.6, *losses[1]]) < np.mean([0.995, *losses[2]])  # by the plain mean it would win


def test_one_repeat_is_enough_for_a_comparison_and_one_leader_for_none() -> None:
    assert undecided(ranked({1: [1.0], 2: [1.05]}, {1: 1.02, 2: 0.98}))
    assert seed_deviation([[run(1, 1, 1.0)], [run(2, 1, 1.0)]]) is None
    [only] = ranked({7: [1.5]}, {7: 1.0})
    assert (only.number, only.best, only.winner_better, only.expected_loss) == (7, 1.0, None, pytest.approx(1.5, abs=0.1))
    assert ranked({7: [1.5] * 3, 8: [1.6] * 3})[0].best > 0.99  # no noise at all


def test_the_true_best_wins_more_often_than_by_the_plain_mean_at_the_same_number_of_runs(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Four leaders of 30 trials. Eight runs: two each; or one each, and two rounds of two where they are needed."""
    monkeypatch.setattr(noise, "DRAWS", 400)
    random = np.random.default_rng(0)
    plain = modelled = runs = 0
    for _ in range(200):
        truth = 0.1 * (random.standard_normal((30, 3)) ** 2).mean(axis=1)
        losses = truth[:, None] + 0.02 * (random.standard_normal(4) + random.standard_normal((30, 4)))  # a seed moves all
        leaders = [int(number) for number in np.argsort(losses[:, SEARCH])[:4]]
        best = min(leaders, key=lambda number: truth[number])
        plain += min(leaders, key=lambda number: losses[number, 1:3].mean()) == best
        trials = [run(number, SEARCH, losses[number, SEARCH]) for number in leaders]
        repeats = {number: [run(number, 1, losses[number, 1])] for number in leaders}
        found = standings(trials, repeats)
        for seed in (2, 3):
            for one in [found[0], undecided(found)[0]] if undecided(found) else []:
                repeats[one.number].append(run(one.number, seed, losses[one.number, seed]))
            found = standings(trials, repeats)
        modelled += found[0].number == best
        runs += sum(map(len, repeats.values()))
    assert runs <= 8 * 200
    assert modelled >= plain + 10
