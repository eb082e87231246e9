"""Whether a point will keep the constraints, foreseen before it is started, from the trials that have been told.

How many parameters a point trains is counted. Time, memory and the adapter's size follow, for each method, by ridge regression
on that number and on the hyperparameters; a point counts as infeasible where the bound is broken by more than the
error that the regression makes in leaving one trial out. Scores and losses are what the search is for: they are not foreseen.
How often that is right is measured by benchmarks/foresight.py, by which FEWEST and MARGIN were chosen (LOG.md).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finemesh.search.samplers.encoding import Box, Dimension
from finemesh.search.space import Space
from finemesh.trial import Outcome

Count = Callable[[str, Mapping[str, Any]], int | None]  # method, point -> parameters that are trained
COUNTED = "trainable_parameters"
FORESEEN = (COUNTED, "adapter_mb", "peak_memory_mb", "seconds")
FEWEST = 3  # told trials of a method, before anything is foreseen
LATEST = 300  # told trials of a method, by which it is foreseen
MARGIN = 1.0  # errors
RIDGE = 0.3  # on standardised hyperparameters; the number of parameters is hardly held back
CHECK_EVERY = 5  # one in so many points that the regression thinks infeasible is run all the same, the first among them

Vector = NDArray[np.float64]


class Foresight:
    """`space` and `count` say what a point is like, `steps` how long a whole trial is."""

    def __init__(self, bounds: Mapping[str, float], space: Space, count: Count | None, steps: int) -> None:
        foreseen = [name for name in bounds if name in FORESEEN]
        self._bounds = {name: bounds[name] for name in foreseen if count is not None}
        self._space, self._count, self._steps = space, count, steps
        self._told: dict[str, deque[tuple[Outcome, Vector]]] = {}  # by method, with their features
        self._boxes: dict[str, Box] = {}  # by method
        self._doubted = 0  # points that the regression thought infeasible

    def tell(self, outcome: Outcome) -> None:
        self._doubted += outcome.foreseen == "infeasible" and outcome.constraints.get(COUNTED, 0.0) <= 0
        if self._bounds and outcome.trainable_parameters is not None:
            features = self._features(outcome.method, outcome.hyperparameters, outcome.trainable_parameters)
            self._told.setdefault(outcome.method, deque(maxlen=LATEST)).append((outcome, features))

    def excesses(self, method: str, point: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
        """value - bound as it is expected; and whether that is feasible or infeasible for sure enough, None for no telling."""
        if self._count is None or not self._bounds:
            return {}, None
        trained = self._count(method, point)
        expected: dict[str, float] = {}
        surely = tellable = False
        for name, bound in self._bounds.items():
            value, margin = (trained, 0.0) if name == COUNTED else self._regressed(name, method, point, trained)
            if value is not None:
                expected[name] = value - bound
                tellable, surely = True, surely or value - margin > bound
        return expected, ("infeasible" if surely else "feasible") if tellable else None

    def reason(self, excesses: Mapping[str, float]) -> str:
        broken = {name: excess for name, excess in excesses.items() if excess > 0}
        return "predicted: " + ", ".join(f"{name} would be {self._bounds[name] + excess:.4g}, more than "
                                         f"{self._bounds[name]:g}" for name, excess in broken.items())

    def starts(self, excesses: Mapping[str, float], foreseen: str | None) -> bool:
        """Also where it is foreseen to be infeasible by the regression alone, now and then: to see how often that is right."""
        if foreseen != "infeasible":
            return True
        return excesses.get(COUNTED, 0.0) <= 0 and self._doubted % CHECK_EVERY == 0

    def _regressed(self, name: str, method: str, point: Mapping[str, Any], trained: int | None) -> tuple[float | None, float]:
        """The expected value and the margin that it may be wrong by."""
        known = [(features, value) for outcome, features in self._told.get(method, ()) if (value := self._value(outcome, name))]
        if len(known) < FEWEST or trained is None:
            return None, 0.0
        rows = np.array([features for features, _ in known])
        new = self._features(method, point, trained)
        centre, scale = rows.mean(0), rows.std(0)
        rows, new = (rows - centre) / np.where(scale > 0, scale, 1.0), (new - centre) / np.where(scale > 0, scale, 1.0)
        return _ridge(rows, np.array([value for _, value in known]), new)

    def _value(self, outcome: Outcome, name: str) -> float | None:
        """Of the whole trial, where the time of one that was pruned or stopped is a part of it."""
        value: float | None = getattr(outcome, name)
        ran = outcome.validation_loss is not None  # one that was stopped says only of what stopped it how large it gets
        if value is None or not (ran or outcome.constraints.get(name, 0.0) > 0):
            return None
        if name != "seconds" or not outcome.steps:
            return value
        before = outcome.preparation_seconds
        return outcome.whole_seconds or before + (value - before) * self._steps / outcome.steps

    def _features(self, method: str, point: Mapping[str, Any], trained: int) -> Vector:
        """The number of parameters, then the hyperparameters; an inactive one is in the middle."""
        if method not in self._boxes:
            self._boxes[method] = Box(tuple(Dimension.whole(name, hyperparameter.distribution) for name, hyperparameter in
                                            self._space.methods[method].items() if not hyperparameter.distribution.single()))
        box = self._boxes[method]
        return np.array([float(trained), *box.features([box.completed(point)])[0]])


def _ridge(rows: Vector, targets: Vector, new: Vector) -> tuple[float, float]:  # (n, features), (n,), (features,)
    """The prediction at `new`, and MARGIN times its error: that of leaving one out, larger where `new` lies far outside."""
    held = np.array([1e-6] + [RIDGE] * (rows.shape[1] - 1)) * len(rows)
    inverse = np.linalg.inv(rows.T @ rows + np.diag(held))
    weights = inverse @ rows.T @ (targets - targets.mean())
    leverage = 1 / len(rows) + np.einsum("ij,jk,ik->i", rows, inverse, rows)
    left_out = (targets - targets.mean() - rows @ weights) / np.maximum(1e-3, 1 - leverage)
    error = float(np.sqrt((left_out**2).mean()))
    far = math.sqrt(1 + float(new @ inverse @ new))
    return float(targets.mean() + new @ weights), MARGIN * error * far
