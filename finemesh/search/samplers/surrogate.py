"""A Gaussian process of the objective and the constraints over one structure: the search step's surrogate.

Matern 5/2 with a length scale a dimension, fitted by its posterior's maximum; expected improvement times the
probability of feasibility (Jones, Schonlau & Welch 1998; surrogates in a search step: Booker et al. 1999).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr

from finemesh.search.samplers.encoding import Vector

NOISE_FLOOR = 1e-6
LENGTH_PRIOR = (math.log(0.5), 0.8)  # mean and deviation of the logarithm
NOISE_PRIOR = (math.log(1e-3), 2.0)


@dataclass(frozen=True)
class Process:
    """A fitted process; targets are standardised, `scale` and `shift` undo it."""

    inputs: Vector  # (n, features)
    blocks: tuple[int, ...]
    lengths: Vector  # (dimensions,)
    cholesky: Vector  # (n, n)
    weights: Vector  # (n,)
    amplitude: float
    noise: float
    targets: Vector  # (n,) standardised
    shift: float
    scale: float

    def believing(self, features: Vector) -> "Process":
        """As if its own means had been measured at these points: what keeps parallel trials apart."""
        if not len(features):
            return self
        means = (self.predict(features)[0] - self.shift) / self.scale
        return condition(np.vstack([self.inputs, features]), np.concatenate([self.targets, means]), self.blocks,
                         self.lengths, self.amplitude, self.noise, self.shift, self.scale)

    def predict(self, features: Vector) -> tuple[Vector, Vector]:  # (m, features) -> means (m,), deviations (m,)
        cross = self.amplitude * matern(distances(features, self.inputs, self.blocks, self.lengths))  # (m, n)
        half = solve_triangular(self.cholesky, cross.T, lower=True)
        variance = np.maximum(self.amplitude - (half**2).sum(axis=0), 1e-10)
        return self.shift + self.scale * (cross @ self.weights), self.scale * np.sqrt(variance)


def distances(a: Vector, b: Vector, blocks: tuple[int, ...], lengths: Vector) -> Vector:
    scales = np.repeat(lengths, blocks)
    a, b = a / scales, b / scales
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0))


def matern(distance: Vector) -> Vector:
    root = math.sqrt(5) * distance
    return (1 + root + root**2 / 3) * np.exp(-root)


def fit(features: Vector, targets: Vector, blocks: tuple[int, ...]) -> Process:
    """Needs at least one point. `features` (n, features), `targets` (n,)."""
    shift = float(targets.mean())
    scale = float(targets.std()) or 1.0
    standard = (targets - shift) / scale
    starts = np.concatenate(([0], np.cumsum(blocks)[:-1])).astype(int)
    gaps = (features[:, None, :] - features[None, :, :]) ** 2  # (n, n, features)
    squared = np.stack([gaps[:, :, s:s + size].sum(-1) for s, size in zip(starts, blocks, strict=True)])

    def loss(theta: Vector) -> tuple[float, Vector]:
        return _negative_log_posterior(theta, squared, standard)

    start = np.array([LENGTH_PRIOR[0]] * len(blocks) + [0.0, NOISE_PRIOR[0]])
    bounds = [(math.log(0.03), math.log(20.0))] * len(blocks) + [(-3.0, 4.0), (math.log(NOISE_FLOOR), 1.0)]
    theta = start
    if len(targets) > 1:
        theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}).x
    amplitude, noise = float(np.exp(theta[-2])), float(np.exp(theta[-1]))
    return condition(features, standard, blocks, np.exp(theta[:-2]), amplitude, noise, shift, scale)


def condition(features: Vector, targets: Vector, blocks: tuple[int, ...], lengths: Vector, amplitude: float,
              noise: float, shift: float, scale: float) -> Process:
    covariance = amplitude * matern(distances(features, features, blocks, lengths))
    cholesky = np.linalg.cholesky(covariance + (noise + NOISE_FLOOR) * np.eye(len(targets))).astype(np.float64)
    weights = cho_solve((cholesky, True), targets)
    return Process(features, blocks, lengths, cholesky, weights, amplitude, noise, targets, shift, scale)


def _negative_log_posterior(theta: Vector, squared: Vector, targets: Vector) -> tuple[float, Vector]:
    """And its gradient; `squared` (dimensions, n, n) holds squared distances, theta the logarithms."""
    lengths, amplitude, noise = np.exp(theta[:-2]), np.exp(theta[-2]), np.exp(theta[-1])
    scaled = squared / lengths[:, None, None] ** 2
    root = np.sqrt(5 * scaled.sum(0))
    decay = amplitude * np.exp(-root)
    covariance = decay * (1 + root + root**2 / 3)
    n = len(targets)
    try:
        cholesky = np.linalg.cholesky(covariance + (noise + NOISE_FLOOR) * np.eye(n))
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((cholesky, True), np.eye(n))
    weights = inverse @ targets
    outer = inverse - np.outer(weights, weights)  # twice the gradient with respect to the covariance
    slope = decay * (1 + root) * 5 / 3
    gradient = np.concatenate([0.5 * np.einsum("ij,ij,dij->d", outer, slope, scaled),
                               [0.5 * (outer * covariance).sum(), 0.5 * noise * np.trace(outer)]])
    value = 0.5 * targets @ weights + np.log(np.diag(cholesky)).sum()
    means = np.array([LENGTH_PRIOR[0]] * len(lengths) + [0.0, NOISE_PRIOR[0]])
    deviations = np.array([LENGTH_PRIOR[1]] * len(lengths) + [1.0, NOISE_PRIOR[1]])
    z = (theta - means) / deviations
    return float(value + 0.5 * (z**2).sum()), gradient + z / deviations


def log_expected_improvement(means: Vector, deviations: Vector, best: float) -> Vector:
    z = (best - means) / deviations
    direct = z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    tail = -0.5 * z**2 - 2 * np.log(np.maximum(-z, 1.0))  # where the direct form cancels
    return np.log(deviations) + np.where(z > -5, np.log(np.maximum(direct, 1e-300)), tail)


def log_feasibility(constraints: Sequence[tuple[Vector, Vector]]) -> Vector | float:
    return sum(log_ndtr(-means / deviations) for means, deviations in constraints)


def compressed(targets: Vector) -> Vector:
    """The upper half bent to a logarithm: a diverged run should not flatten the landscape of the good ones."""
    middle, low = float(np.median(targets)), float(targets.min())
    scale = max(middle - low, 1e-12)
    above = np.maximum(targets - middle, 0.0)
    return np.where(targets > middle, middle + scale * np.log1p(above / scale), targets)
