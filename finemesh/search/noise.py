"""How much a seed decides, and which leader is best all the same: a small Bayesian model of the leaders' losses.

A leader's loss on a seed is the level of that seed, shared by all leaders, plus what the leader differs by, plus noise. The
search's own trials count, but they became leaders by their losses, so these are too low (the winner's curse): by the square of
the method's noise times a slope (B. Efron, "Tweedie's formula and selection bias", 2011), which is free, as the levels are. The
differences are N(0, (r sigma)^2), which shrinks them as James and Stein do; sigma and r are integrated out, r with a
half-Cauchy prior (A. Gelman, "Prior distributions for variance parameters in hierarchical models", 2006).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finemesh.trial import Outcome

SURE = 0.95  # two leaders are told apart where one is the better with so much probability
RATIOS = np.geomspace(0.05, 50, 24)  # r: the leaders' differences in units of the noise
PRIOR_DEGREES = 4.0  # of the variance of all leaders, where that of one method is estimated
DRAWS = 4000
SMALLEST = 1e-6  # a deviation that is none
DIGITS = 9  # of an expected loss: the last bits of linear algebra depend on where an array lies

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """A leader. `mean` is that of its `runs` on fresh seeds, `expected_loss` what another seed is expected to give.

    `best` is the probability that no leader is better, `winner_better` that the first leader is better than this one.
    """

    number: int
    method: str
    runs: int
    mean: float
    expected_loss: float
    best: float
    winner_better: float | None


def standings(trials: Sequence[Outcome], repeats: Mapping[int, Sequence[Outcome]]) -> list[Standing]:
    """Of the leaders, best first. `repeats` holds at least one complete run of each, `trials` those of the search."""
    leaders, fresh = list(repeats), [run for runs in repeats.values() for run in runs]
    searched = [trial for trial in trials if trial.number in repeats and trial.state == "complete"]
    runs, seeds = [*searched, *fresh], sorted({run.seed for run in [*searched, *fresh]})
    relative = _relative_variances(list(repeats.values()))
    variances = np.array([relative[run.method] for run in runs])
    of_leader = np.array([[run.number == number for number in leaders] for run in runs], dtype=float)  # (run, leader)
    of_seed = np.array([[run.seed == seed for seed in seeds] for run in runs], dtype=float)  # (run, seed)
    cursed = variances * (np.arange(len(runs)) < len(searched))
    means, drawn = _posterior(np.array([loss_of(run) for run in runs]), variances, of_leader,
                              np.column_stack([of_seed, cursed]))
    level = fmean(loss_of(run) - means[leaders.index(run.number)] for run in fresh)
    shares, first = np.bincount(drawn.argmin(axis=1), minlength=len(leaders)) / len(drawn), int(means.argmin())
    found = [Standing(number, repeats[number][0].method, len(repeats[number]), fmean(map(loss_of, repeats[number])),
                      round(level + float(means[i]), DIGITS), float(shares[i]),
                      None if i == first else float((drawn[:, first] < drawn[:, i]).mean()))
             for i, number in enumerate(leaders)]
    return sorted(found, key=lambda one: (one.winner_better is not None, one.expected_loss))


def undecided(ranked: Sequence[Standing]) -> list[Standing]:
    """Those that cannot be told apart from the first, the likeliest rival first."""
    rivals = [one for one in ranked if one.winner_better is not None and one.winner_better < SURE]
    return sorted(rivals, key=lambda one: one.winner_better or 0.0)


def seed_deviation(repeats: Sequence[Sequence[Outcome]]) -> float | None:
    """Of one point's loss from seed to seed, pooled over the repeated ones; None where none has two runs."""
    groups = [[loss_of(run) for run in runs] for runs in repeats if len(runs) > 1]
    degrees = sum(len(losses) - 1 for losses in groups)
    return sqrt(sum(variance(losses) * (len(losses) - 1) for losses in groups) / degrees) if degrees else None


def _relative_variances(repeats: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """Of each method, in units of that of all leaders and drawn towards it, the more the fewer runs there are.

    As variances are moderated by G. Smyth ("Linear models and empirical Bayes methods", 2004).
    """
    pooled = max(seed_deviation(repeats) or 0.0, SMALLEST) ** 2
    found = {}
    for method in {runs[0].method for runs in repeats}:
        own = [runs for runs in repeats if runs[0].method == method]
        degrees = sum(len(runs) - 1 for runs in own)
        squares = (seed_deviation(own) or 0.0) ** 2 * degrees / pooled
        found[method] = (PRIOR_DEGREES + squares) / (PRIOR_DEGREES + degrees)
    return found


def _posterior(losses: Vector, variances: Vector, of_leader: Vector, free: Vector) -> tuple[Vector, Vector]:
    """What each leader differs by: the mean, and draws (draw, leader). `free`: columns of which nothing is known."""
    scale = 1 / np.sqrt(variances)
    basis, sizes, _ = np.linalg.svd(free * scale[:, None], full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes[0]]
    scaled, design = losses * scale, of_leader * scale[:, None]
    scaled, design = scaled - basis @ (basis.T @ scaled), design - basis @ (basis.T @ design)
    leaders, degrees = design.shape[1], len(losses) - basis.shape[1]
    covariances = np.linalg.inv(design.T @ design + np.eye(leaders) / RATIOS[:, None, None] ** 2)  # (ratio, leader, leader)
    means = covariances @ (design.T @ scaled)  # (ratio, leader)
    squares = np.maximum(scaled @ scaled - means @ (design.T @ scaled), len(losses) * SMALLEST**2)
    likelihood = 0.5 * np.linalg.slogdet(covariances)[1] - leaders * np.log(RATIOS) - 0.5 * degrees * np.log(squares)
    likelihood += np.log(RATIOS / (1 + RATIOS**2))  # half-Cauchy, the ratios being spaced by their logarithms
    chances = np.exp(likelihood - likelihood.max())
    chances /= chances.sum()
    random: Any = np.random.default_rng(0)
    ratios = random.choice(len(RATIOS), DRAWS, p=chances)
    noise = np.sqrt(squares[ratios] / random.chisquare(max(degrees, 1), DRAWS))
    steps = np.einsum("dij,dj->di", np.linalg.cholesky(covariances)[ratios], random.standard_normal((DRAWS, leaders)))
    return chances @ means, means[ratios] + noise[:, None] * steps


def loss_of(run: Outcome) -> float:
    assert run.validation_loss is not None
    return run.validation_loss
