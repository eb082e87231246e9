"""Ten test functions: mixed, conditional, constrained and with several objectives; their optima are known and lie off any grid.

A function reads the hyperparameters that it needs from a mapping: what it does not read is inactive. So one that reads
lazily from an Optuna trial is define-by-run, and one that reads from a dict has the union of all variables.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from optuna._hypervolume import compute_hypervolume
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Values = tuple[tuple[float, ...], tuple[float, ...]]  # objectives to be minimised, constraints (at most 0 is feasible)


@dataclass(frozen=True)
class Blackbox:
    """`best`: the smallest loss or the largest hypervolume; `kinds`: of mixed, conditional, constrained, objectives."""

    name: str
    kinds: frozenset[str]
    space: Mapping[str, BaseDistribution]
    evaluate: Callable[[Mapping[str, Any]], Values]
    best: float = 0.0
    reference: tuple[float, ...] = ()  # of the hypervolume; empty with one objective

    def distances(self, history: list[Values]) -> list[float]:
        """After each evaluation: how far the best loss, or the hypervolume, is from the optimum's (inf: none feasible)."""
        result, front, best = [], [], math.inf
        for objectives, constraints in history:
            if all(excess <= 0 for excess in constraints):
                front.append(objectives)
                best = self.best - volume(front, self.reference) if self.reference else min(best, objectives[0] - self.best)
            result.append(max(best, 0.0))
        return result


def volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    inside = [point for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    return float(compute_hypervolume(np.array(inside), np.array(reference))) if inside else 0.0


def logarithmic(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def mixed(v: Mapping[str, Any]) -> Values:
    x, rate = v["x"] - 1.2873, math.log10(v["rate"]) + 3.2
    depth, width = (v["depth"] - 13) / 5, (math.log2(v["width"]) - 4) / 2
    return (x * x / 4 + rate * rate / 2 + 0.3 * x * rate + depth * depth + width * width,), ()


def categorical(v: Mapping[str, Any]) -> Values:
    offset, centre = {"relu": (0.2, 0.8), "gelu": (0.0, 0.3487), "silu": (0.05, 0.5), "tanh": (1.0, 0.1)}[v["activation"]]
    norm = {"none": 0.3, "layer": 0.0, "batch": 0.1}[v["norm"]]
    return (offset + norm + (v["x"] - centre) ** 2 + 2 * (v["y"] - 0.6127) ** 2,), ()


def conditional(v: Mapping[str, Any]) -> Values:
    match v["model"]:
        case "forest":
            return (0.1 + ((v["depth"] - 9) / 10) ** 2 + (v["share"] - 0.4127) ** 2,), ()
        case "network":
            rate = math.log10(v["rate"]) + 2.6
            loss = 0.2 * rate * rate + (v["momentum"] - 0.8873) ** 2
            widths = [v[f"width{layer}"] for layer in range(v["layers"])]
            return (loss + 0.2 * abs(len(widths) - 2) + sum((math.log2(width) - 6) ** 2 for width in widths) / 50,), ()
    return (0.05 + 0.05 * (math.log10(v["penalty"]) - 1) ** 2 + (0.1 if v["kernel"] == "linear" else
                                                               0.1 * (math.log10(v["gamma"]) + 2.07) ** 2),), ()


CENTRE, RADIUS = (4.37, 3.71, 2.93), 3.5


def constrained(v: Mapping[str, Any]) -> Values:
    x, y, z = v["x"], v["y"], v["z"]
    return (sum((a - b) ** 2 for a, b in zip((x, y, z), CENTRE, strict=True)),), (x * x + y * y + z * z - RADIUS**2,)


def constrained_conditional(v: Mapping[str, Any]) -> Values:
    """Ranks are limited by memory; full tuning is better but hardly ever fits."""
    if v["method"] == "full":
        batch, rate = v["batch"], math.log10(v["full.rate"]) + 4.5
        return (0.15 + 0.2 * rate * rate + 0.02 * (5 - math.log2(batch)) ** 2 - 0.1,), (batch / 2 - 1,)
    rank, layers = v["rank"], v["layers"]
    rate = math.log10(v["rate"]) + 3.04 + 0.1 * (math.log2(rank) - 4)
    return (0.8 - 0.1 * math.log2(rank) - 0.1 * layers + 0.2 * rate * rate,), (rank * layers / 64 - 1,)


def constrained_logarithmic(v: Mapping[str, Any]) -> Values:
    a, b = math.log10(v["a"]), math.log10(v["b"])
    return ((a + 2) ** 2 + (b + 3) ** 2 + v["dropout"],), (a + b + 6, 0.2 - v["dropout"] - 10 ** (b + 3))


TUNED = {"lora": (0.0, -3.04), "sift": (0.02, -3.7), "full": (0.05, -4.6), "prefix": (0.15, -2.0), "prompt": (0.3, -1.0),
         "head": (0.5, -2.5)}  # method -> floor, logarithm of the best rate


def tuning(v: Mapping[str, Any]) -> Values:
    """What a tuning landscape is like: the rate matters most, too large a one diverges, dropout hardly matters."""
    method = v["method"]
    floor, centre = TUNED[method]
    rate = math.log10(v[f"{method}.rate"]) - centre
    loss = floor + (0.15 * rate * rate if rate < 0.7 else 3.0) + 0.01 * v[f"{method}.dropout"]
    if method == "lora":
        loss += 0.02 * (7 - math.log2(v["lora.rank"])) ** 2 / 4 + 0.03 * (v["lora.layers"] != "all")
    return (loss + 0.03 * (v[f"{method}.warmup"] - 0.1) ** 2 / 0.01,), ()


def front(v: Mapping[str, Any]) -> Values:
    """ZDT1 (Zitzler, Deb & Thiele 2000) with mixed variables."""
    rate, depth = (math.log10(v["rate"]) + 5) / 4, v["depth"] / 20
    g = 1 + 3 * (abs(rate - 0.3137) + abs(depth - 0.6) + abs(v["x"] - 0.4127)) / 3
    return (v["share"], g * (1 - math.sqrt(v["share"] / g))), ()


def front_conditional(v: Mapping[str, Any]) -> Values:
    """Loss against size; ranks are limited by memory."""
    if v["method"] == "prompt":
        rate = math.log10(v["prompt.rate"]) + 1
        return (0.55 + 0.1 * rate * rate - 0.1 * math.log10(v["length"]), math.log2(v["length"]) / 30), ()
    rank, layers = v["rank"], v["layers"]
    rate = math.log10(v["rate"]) + 3.04 + 0.1 * (math.log2(rank) - 4)
    return (0.8 - 0.1 * math.log2(rank) - 0.1 * layers + 0.2 * rate * rate, math.log2(rank * layers) / 8), \
        (rank * layers / 64 - 1,)


def front_three(v: Mapping[str, Any]) -> Values:
    """DTLZ2 (Deb et al. 2002) with three objectives and an integer."""
    a, b = v["a"] * math.pi / 2, v["b"] * math.pi / 2
    g = 1 + (v["x"] - 0.5137) ** 2 + (v["y"] - 0.4873) ** 2 + ((v["depth"] - 7) / 10) ** 2
    return (g * math.cos(a) * math.cos(b), g * math.cos(a) * math.sin(b), g * math.sin(a)), ()


def front_conditional_points() -> Iterator[tuple[float, ...]]:
    """All that a Pareto-optimal point can be: the rate at its best."""
    for length in range(1, 101):
        yield front_conditional({"method": "prompt", "prompt.rate": 0.1, "length": length})[0]
    for rank, layers in product(range(2, 65), range(1, 5)):
        if rank * layers <= 64:
            yield 0.8 - 0.1 * math.log2(rank) - 0.1 * layers, math.log2(rank * layers) / 8


_rate, _lora = logarithmic(1e-6, 1.0), {"rank": IntDistribution(2, 256, log=True), "layers": IntDistribution(1, 4),
                                        "rate": logarithmic(1e-6, 1.0)}
_unit = FloatDistribution(0, 1)
BLACKBOXES = {blackbox.name: blackbox for blackbox in (
    Blackbox("mixed", frozenset({"mixed"}), {"x": FloatDistribution(-5, 5), "rate": _rate, "depth": IntDistribution(0, 20),
                                             "width": IntDistribution(1, 64, log=True)}, mixed),
    Blackbox("categorical", frozenset({"mixed"}), {
        "activation": CategoricalDistribution(("relu", "tanh", "gelu", "silu")),
        "norm": CategoricalDistribution(("none", "batch", "layer")), "x": _unit, "y": _unit}, categorical),
    Blackbox("conditional", frozenset({"mixed", "conditional"}), {
        "model": CategoricalDistribution(("forest", "network", "kernel machine")), "depth": IntDistribution(1, 30),
        "share": _unit, "rate": _rate, "momentum": _unit, "layers": IntDistribution(1, 3),
        **{f"width{layer}": IntDistribution(4, 512, log=True) for layer in range(3)}, "penalty": logarithmic(1e-3, 1e3),
        "kernel": CategoricalDistribution(("linear", "radial")), "gamma": logarithmic(1e-5, 1e1)}, conditional),
    Blackbox("constrained", frozenset({"constrained"}), {name: FloatDistribution(-5, 5) for name in "xyz"}, constrained,
             (math.hypot(*CENTRE) - RADIUS) ** 2),
    Blackbox("constrained conditional", frozenset({"mixed", "conditional", "constrained"}), {
        "method": CategoricalDistribution(("full", "lora")), "batch": IntDistribution(1, 64, log=True),
        "full.rate": logarithmic(1e-7, 1e-1), **_lora}, constrained_conditional),
    Blackbox("constrained logarithmic", frozenset({"constrained"}), {
        "a": _rate, "b": _rate, "dropout": FloatDistribution(0, 0.5)}, constrained_logarithmic, 0.5),
    Blackbox("tuning", frozenset({"mixed", "conditional"}), {
        "method": CategoricalDistribution(tuple(TUNED)), "lora.rank": IntDistribution(2, 256, log=True),
        "lora.layers": CategoricalDistribution(("all", "attention")),
        **{f"{method}.{name}": distribution for method in TUNED for name, distribution in
           {"rate": _rate, "dropout": FloatDistribution(0, 0.3, step=0.05), "warmup": FloatDistribution(0, 0.3)}.items()},
    }, tuning),
    Blackbox("front", frozenset({"mixed", "objectives"}), {
        "share": _unit, "x": _unit, "rate": logarithmic(1e-5, 1e-1), "depth": IntDistribution(0, 20)}, front,
        best=2.2 * 1.1 - 1 / 3, reference=(1.1, 2.2)),
    Blackbox("front conditional", frozenset({"mixed", "conditional", "constrained", "objectives"}), {
        "method": CategoricalDistribution(("prompt", "lora")), "prompt.rate": _rate,
        "length": IntDistribution(1, 100, log=True), **_lora}, front_conditional,
        best=volume(list(front_conditional_points()), (1.5, 1.0)), reference=(1.5, 1.0)),
    Blackbox("front of three", frozenset({"mixed", "objectives"}), {
        "a": _unit, "b": _unit, "x": _unit, "y": _unit, "depth": IntDistribution(0, 14)}, front_three,
        best=1.5**3 - math.pi / 6, reference=(1.5, 1.5, 1.5)),
)}
