"""How sure a loss on the test split is: an interval bootstrapped over rows and seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 64  # resamples at a time: bounds the memory at CHUNK x rows numbers


def interval(row_losses: Sequence[Sequence[float]], row_weights: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """`loss`, `low` and `high` from row_losses[run][row], mean losses of a row whose scored tokens are its weight.

    A run's loss is sum(weights * losses) / sum(weights), the loss the mean over the runs. Both the rows and the runs
    (one a seed) are drawn with replacement.
    """
    losses, weights = np.asarray(row_losses, dtype=float), np.asarray(row_weights, dtype=float)  # (runs, rows), (rows,)
    runs, rows = losses.shape
    random: Any = np.random.default_rng(seed)
    sums = losses * weights  # (runs, rows)
    means = []
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        row_counts = random.multinomial(rows, np.full(rows, 1 / rows), size=size)  # (size, rows)
        run_shares = random.multinomial(runs, np.full(runs, 1 / runs), size=size) / runs  # (size, runs)
        by_run = (row_counts @ sums.T) / np.maximum(row_counts @ weights, 1e-12)[:, None]  # (size, runs)
        means.append((run_shares * by_run).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    loss = float((sums.sum(axis=1) / weights.sum()).mean())
    return {"loss": loss, "low": float(low), "high": float(high)}
