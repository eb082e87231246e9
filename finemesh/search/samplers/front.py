"""Several objectives: what dominates what, and how much a point would add to what the known ones dominate.

The hypervolume is a mean over directions of a scalar each (D. Golovin & Q. Zhang, "Random hypervolume scalarizations for
provable multi-objective black box optimization", ICML 2020): one formula for any number of objectives.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from finemesh.search.samplers.encoding import Vector, recurrence
from finemesh.search.samplers.record import Record

BITS = 1024  # points that are compared with all at a time: what that takes stays in the processor's cache
DIRECTIONS = 128
DRAWS = 8  # of what the surrogate holds for possible, at every candidate
REFERENCE = 1.5  # in each objective, where the front reaches from 0 to 1: its ends are to be moved outwards, too
NOTHING = 1e-9  # a gain that is none: below it, the point that is nearest to one is best


def dominating(losses: Vector) -> Vector:  # (point, objective) -> (point,)
    """How many of the points dominate each: those that are nowhere worse, a bit each, less those that are equal."""
    counts = np.zeros(len(losses))
    orders = [np.argsort(column, kind="stable") for column in losses.T]
    lasts = [np.searchsorted(column[order], column, side="right") - 1 for column, order in zip(losses.T, orders, strict=True)]
    for start in range(0, len(losses), BITS):
        no_worse = np.full((len(losses), BITS // 64), ~np.uint64(0))  # bits: the points from `start` on
        for order, last in zip(orders, lasts, strict=True):
            sets = np.zeros_like(no_worse)  # row r: what of the bits the r + 1 best of this objective hold
            ranks = np.flatnonzero((order >= start) & (order < start + BITS))
            word, bit = np.divmod(order[ranks] - start, 64)
            sets[ranks, word] = np.uint64(1) << bit.astype(np.uint64)
            no_worse &= np.bitwise_or.accumulate(sets, axis=0, out=sets)[last]
        counts += np.bitwise_count(no_worse).sum(axis=1)
    _, equal, copies = np.unique(losses + 0.0, axis=0, return_inverse=True, return_counts=True)  # 0.0: not -0.0
    return np.asarray(counts - copies[equal.ravel()])


def nondominated(records: Sequence[Record]) -> list[Record]:
    """The front of the feasible ones; where none is feasible, the least infeasible one."""
    feasible = [record for record in records if record.kind == "complete" and record.feasible]
    if not feasible:
        return sorted((record for record in records if record.kind == "complete"), key=lambda record: record.merit)[:1]
    counts = dominating(np.array([record.losses for record in feasible]))
    return [record for record, count in zip(feasible, counts, strict=True) if count == 0]


class Front:
    """The front of the feasible records, on scales on which it reaches from 0 to 1 in every objective."""

    def __init__(self, records: Sequence[Record]) -> None:
        """At least one of `records` is complete."""
        losses = np.array([record.losses for record in records if record.kind == "complete"])
        self._middle, self._low = np.median(losses, axis=0), losses.min(axis=0)
        self._bend = np.maximum(self._middle - self._low, 1e-12)
        feasible = [record for record in nondominated(records) if record.feasible]
        bent = self._bent(np.array([record.losses for record in feasible])) if feasible else self._bent(losses)
        self._ideal = bent.min(axis=0)
        spread = bent.max(axis=0) - self._ideal
        self._spread = np.where(spread > 1e-9 * self._bend, spread, np.maximum(self._bend, 1e-12))
        self._directions = _directions(losses.shape[1])
        self.best = np.zeros(DIRECTIONS)  # along each direction
        if feasible:
            self.best = self._along(self.scaled(np.array([record.losses for record in feasible]))).max(axis=0)
        self.feasible = bool(feasible)

    def _bent(self, losses: Vector) -> Vector:
        """The upper half of each objective bent to a logarithm, as surrogate.compressed does."""
        above = np.maximum(losses - self._middle, 0.0)
        return np.where(losses > self._middle, self._middle + self._bend * np.log1p(above / self._bend), losses)

    def scaled(self, losses: Vector) -> Vector:  # (point, objective)
        return (self._bent(losses) - self._ideal) / self._spread

    def _along(self, scaled: Vector) -> Vector:  # (..., objective) -> (..., direction)
        """The part of each direction's hypervolume that a point dominates; below 0 beyond the reference."""
        reach = np.multiply.outer(REFERENCE - scaled[..., 0], 1 / self._directions[:, 0])
        for objective in range(1, scaled.shape[-1]):
            reach = np.minimum(reach, np.multiply.outer(REFERENCE - scaled[..., objective], 1 / self._directions[:, objective]))
        power = reach
        for _ in range(1, scaled.shape[-1]):
            power = power * np.abs(reach)
        return np.asarray(power)

    def volumes(self, records: Sequence[Record]) -> Vector:  # (direction,)
        """What the feasible ones of them dominate along each direction."""
        losses = [record.losses for record in records if record.kind == "complete" and record.feasible]
        dominated = self._along(self.scaled(np.array(losses))).max(axis=0) if losses else np.zeros(DIRECTIONS)
        return np.maximum(dominated, 0.0)

    def believe(self, scaled: Vector) -> None:
        """As if these points, which are being run, were known."""
        if len(scaled):
            self.best = np.maximum(self.best, self._along(scaled).max(axis=0))

    def log_improvement(self, means: Vector, deviations: Vector) -> Vector:  # (point, objective), scaled -> (point,)
        """The logarithm of the expected gain in hypervolume."""
        draws = _normal(DRAWS, means.shape[1])
        gains = self._along(means[:, None, :] + deviations[:, None, :] * draws) - self.best  # (point, draw, direction)
        nearest = np.minimum(gains.max(axis=(1, 2)), 0.0)
        return np.asarray(np.log(np.maximum(gains, 0.0).mean(axis=(1, 2)) + NOTHING) + nearest)


def _uniform(count: int, size: int) -> Vector:
    return (0.5 + np.arange(1, count + 1)[:, None] * recurrence(size)) % 1.0


def _normal(count: int, size: int) -> Vector:
    return np.asarray(ndtri(_uniform(count, size)), dtype=float)


def _directions(size: int) -> Vector:  # (direction, objective), of length 1, none of them quite along an axis
    if size == 2:
        angles = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * math.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    halves = np.asarray(ndtri((1 + _uniform(DIRECTIONS, size)) / 2), dtype=float)
    return np.maximum(halves / np.linalg.norm(halves, axis=1, keepdims=True), 1e-3)
