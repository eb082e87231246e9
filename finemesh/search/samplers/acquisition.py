"""Which point of a structure to try next, by the surrogate: global candidates and those around the best points."""

from collections.abc import Sequence

import numpy as np

from finemesh.search.samplers import surrogate
from finemesh.search.samplers.encoding import Box, Coordinates, Vector
from finemesh.search.samplers.front import Front, dominating
from finemesh.search.samplers.record import Record

MODELLED = 120  # points that the surrogate is fitted to: the best and the latest
CANDIDATES = 400
REFINEMENTS = 3
SPREADS = (0.2, 0.05, 0.01)  # of a range, around the best candidates of the round before


class Acquisition:
    """Log expected improvement, of the loss or of the front's hypervolume, plus the log probability of feasibility."""

    def __init__(self, box: Box, told: Sequence[tuple[Coordinates, Record]], pending: Sequence[Coordinates],
                 front: Front | None = None) -> None:
        """`told` holds at least one trial with a loss; `front`, where there are several objectives, is that of all trials."""
        self.box = box
        chosen = _modelled(told)
        waiting = box.features(list(pending))
        valued = [(point, record) for point, record in chosen if record.kind != "infeasible"]
        points = box.features([point for point, _ in valued])
        losses = _losses([record for _, record in valued])  # (point, objective)
        targets = front.scaled(losses) if front else surrogate.compressed(losses[:, 0])[:, None]
        feasible = np.array([record.valued and record.feasible for _, record in valued])
        self.objectives = [surrogate.fit(points, column, box.feature_blocks).believing(waiting) for column in targets.T]
        self.front, self.best = front, None
        if front and pending:
            front.believe(self._predicted(waiting)[0])
        elif not front and feasible.any():
            self.best = float(targets[feasible].min())
        measured = [(point, record) for point, record in chosen if record.kind != "failed"]
        points = box.features([point for point, _ in measured])
        self.constraints = []
        for name in sorted({name for _, record in measured for name in record.violations}):
            excesses = _excesses(name, [record for _, record in measured])
            self.constraints.append(surrogate.fit(points, excesses, box.feature_blocks).believing(waiting))

    def scores(self, points: Sequence[Sequence[float]]) -> Vector:  # (point, coordinate) -> (point,)
        features = self.box.features(points)
        feasibility = surrogate.log_feasibility([process.predict(features) for process in self.constraints])
        means, deviations = self._predicted(features)
        if self.front and self.front.feasible:
            return self.front.log_improvement(means, deviations) + feasibility
        if self.best is None:  # find a feasible point first
            return np.asarray(feasibility, dtype=float) + np.zeros(len(points))
        return surrogate.log_expected_improvement(means[:, 0], deviations[:, 0], self.best) + feasibility

    def _predicted(self, features: Vector) -> tuple[Vector, Vector]:  # means and deviations, (point, objective)
        predictions = [objective.predict(features) for objective in self.objectives]
        return (np.stack([means for means, _ in predictions], axis=1),
                np.stack([deviations for _, deviations in predictions], axis=1))

    def maximum(self, known: set[Coordinates], around: Sequence[Coordinates],
                rng: np.random.Generator) -> Coordinates | None:
        """The best new point; None where no candidate is new."""
        size = len(self.box.dimensions)
        pool = {self.box.sampled(row) for row in rng.random((CANDIDATES, size))}
        pool |= {self._near(point, spread, rng) for point in around for spread in SPREADS for _ in range(16)}
        ranked = self._ranked(pool, known)
        for spread in SPREADS[:REFINEMENTS]:
            near = {self._near(point, spread, rng) for _, point in ranked[:5] for _ in range(30)}
            ranked = sorted({*ranked[:5], *self._ranked(near, known)}, reverse=True)
        return ranked[0][1] if ranked else None

    def _ranked(self, pool: set[Coordinates], known: set[Coordinates]) -> list[tuple[float, Coordinates]]:
        new = sorted(pool - known)
        if not new:
            return []
        return sorted(((float(score), point) for score, point in zip(self.scores(new), new, strict=True)), reverse=True)

    def _near(self, point: Coordinates, spread: float, rng: np.random.Generator) -> Coordinates:
        """Some of the coordinates moved: at least one."""
        dimensions = self.box.dimensions
        moved = rng.random(len(dimensions)) < max(0.4, 1 / len(dimensions))
        moved[rng.integers(len(dimensions))] = True
        result = []
        for dimension, z, move in zip(dimensions, point, moved, strict=True):
            if not move:
                result.append(z)
            elif dimension.unordered and dimension.size:
                result.append(float(rng.integers(dimension.size)))
            elif dimension.size is not None:
                step = rng.normal(0, max(1.0, spread * (dimension.size - 1)))
                result.append(float(np.clip(round(z + step), 0, dimension.size - 1)))
            else:
                result.append(float(np.clip(z + rng.normal(0, spread), 0, 1)))
        return self.box.snapped(result)


def _modelled(told: Sequence[tuple[Coordinates, Record]]) -> list[tuple[Coordinates, Record]]:
    if len(told) <= MODELLED:
        return list(told)
    best = by_merit(told)[: MODELLED // 2]
    chosen = {record.number for _, record in best}
    return best + [pair for pair in told[-MODELLED // 2:] if pair[1].number not in chosen]


def by_merit(told: Sequence[tuple[Coordinates, Record]]) -> list[tuple[Coordinates, Record]]:
    """The best first; where there are several objectives, those that few dominate."""
    if not told or len(told[0][1].losses) == 1:
        return sorted(told, key=lambda pair: pair[1].merit)
    counts = dominating(np.array([record.losses for _, record in told]))
    order = sorted(range(len(told)), key=lambda index: (told[index][1].merit[0], counts[index], told[index][1].merit))
    return [told[index] for index in order]


def _excesses(name: str, records: Sequence[Record]) -> Vector:
    """Of one constraint, with a bent scale; where a trial does not tell it, it was kept."""
    known = [record.violations[name] for record in records if name in record.violations]
    scale = float(np.median(np.abs(known))) or 1.0
    return np.arcsinh(np.array([record.violations.get(name, -scale) / scale for record in records]))


def _losses(records: Sequence[Record]) -> Vector:  # (point, objective)
    """A failure counts as the worst; what a pruned trial promised does not beat what was reached."""
    losses = np.array([record.losses for record in records])
    valued, complete = (np.array([record.kind in kinds for record in records])
                        for kinds in (("complete", "pruned"), ("complete",)))
    reached = losses[complete].min(axis=0) if complete.any() else -np.inf
    return np.where(valued[:, None], np.maximum(losses, reached), losses[valued].max(axis=0))
