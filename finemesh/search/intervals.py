"""How sure a loss on the test split is: rows are drawn with replacement, and other seeds move it by Student's t.

Two or three runs say little of how far seeds differ, and drawing from them says too little: it held the truth in 50 to 75 %
instead of 95 (docs/decisions/019). So a group's variance is moderated by that of the groups beside it: G. K. Smyth, "Linear
models and empirical Bayes methods for assessing differential expression in microarray experiments", 2004.

No product here is a BLAS's: its last bit may depend on where an array lies, and a search that was stopped is to end alike.
"""

from collections.abc import Sequence
from math import exp, log, sqrt
from statistics import fmean, variance
from typing import Any

import numpy as np
from scipy.special import digamma

from finemesh.search.noise import PRIOR_DEGREES

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 64  # resamples at a time: bounds the memory at CHUNK x rows numbers

Runs = Sequence[Sequence[float]]  # [run][row], mean losses of a row; one run a seed


def interval(row_losses: Runs, row_weights: Sequence[float], *, prior: float | None = None, seed: int = 0) -> dict[str, float]:
    """`loss`, `low` and `high` from row_losses[run][row], mean losses of a row whose scored tokens are its weight.

    A run's loss is sum(weights * losses) / sum(weights), the loss the mean over the runs. `prior` is seed_variance of the
    groups beside this one. A single run has the interval of its rows alone.
    """
    [means] = _resampled([row_losses], row_weights, prior, seed)
    return _bounds(fmean(_losses(row_losses, row_weights)), means)


def difference(row_losses: Runs, others: Runs, row_weights: Sequence[float], *, prior: float | None = None,
               seed: int = 0) -> dict[str, float]:
    """By how much the loss is above that of `others`: the same rows are drawn for both, the seeds of each by themselves.

    Rows that are hard are hard for both, so this tells two models apart that two intervals do not.
    """
    means, other_means = _resampled([row_losses, others], row_weights, prior, seed)
    return _bounds(fmean(_losses(row_losses, row_weights)) - fmean(_losses(others, row_weights)), means - other_means)


def seed_variance(groups: Sequence[Runs], row_weights: Sequence[float]) -> float | None:
    """Of a run's loss from seed to seed, nats^2, as the groups of several runs have it; None where fewer than two have.

    The scale of the distribution that their variances come from, by the mean of their logarithms (Smyth, section 6.2). A
    group that no seed moves is left out.
    """
    scales = []
    for group in groups:
        degrees, own = len(group) - 1, _own_variance(_losses(group, row_weights))
        if own > 0:
            scales.append(log(own) - _mean_log(degrees))
    return exp(fmean(scales) + _mean_log(PRIOR_DEGREES)) if len(scales) > 1 else None


def _mean_log(degrees: float) -> float:
    """The expected logarithm of a variance that is estimated with so many degrees of freedom, where it is 1."""
    return float(digamma(degrees / 2)) - log(degrees / 2)


def _losses(row_losses: Runs, row_weights: Sequence[float]) -> list[float]:
    """Of each run."""
    losses, weights = np.asarray(row_losses, dtype=float), np.asarray(row_weights, dtype=float)
    return [float(loss) for loss in (losses * weights).sum(axis=1) / weights.sum()]


def _own_variance(losses: Sequence[float]) -> float:
    return variance(losses) if len(losses) > 1 else 0.0


def _resampled(groups: Sequence[Runs], row_weights: Sequence[float], prior: float | None, seed: int) -> list[Any]:
    """The mean loss of each group of runs in every resample, (resamples,) each."""
    weights = np.asarray(row_weights, dtype=float)  # (rows,)
    sums = [np.asarray(losses, dtype=float).mean(axis=0) * weights for losses in groups]  # (rows,) each
    random: Any = np.random.default_rng(seed)
    means: list[list[Any]] = [[] for _ in groups]
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        row_counts = random.multinomial(len(weights), np.full(len(weights), 1 / len(weights)), size=size)  # (size, rows)
        drawn = np.maximum(np.einsum("sr,r->s", row_counts, weights), 1e-12)
        for found, group in zip(means, sums, strict=True):
            found.append(np.einsum("sr,r->s", row_counts, group) / drawn)
    return [np.concatenate(found) + _by_seeds(_losses(group, row_weights), prior, random)
            for found, group in zip(means, groups, strict=True)]


def _by_seeds(losses: Sequence[float], prior: float | None, random: Any) -> Any:
    """What the mean of these runs is off by for their seeds, (resamples,)."""
    degrees, own = len(losses) - 1, _own_variance(losses)
    if not own:  # one run, or a method without chance
        return np.zeros(RESAMPLES)
    prior_degrees = PRIOR_DEGREES if prior is not None else 0.0
    moderated = (degrees * own + prior_degrees * (prior or 0.0)) / (degrees + prior_degrees)
    return random.standard_t(degrees + prior_degrees, RESAMPLES) * sqrt(moderated / len(losses))


def _bounds(loss: float, means: Any) -> dict[str, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"loss": loss, "low": float(low), "high": float(high)}
