"""A recorded landscape as a blackbox that answers at once, so that a whole search replays in seconds.

Between the recorded points of a method the logarithms of the learning curves are interpolated by radial basis functions with
a linear kernel, which pass through every recorded curve, and never beyond the lowest and the highest; each hyperparameter's
scale is chosen by the error in leaving one point out. Where the nearest recorded point failed a trial fails. A seed's noise is
what a recorded point nearby had on one of its seeds, the whole curve's: it grows with the rate, and has seeds' long tail.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from finemesh.hyperparameter import Hyperparameter, choice, integer
from finemesh.preparation import whole_space
from finemesh.search.executors.base import Event
from finemesh.search.samplers.encoding import Box, Dimension
from finemesh.search.space import Point, Space
from finemesh.trial import Job, Outcome, write_outcome
from finemesh.tuning.evaluation.rival import read_rival, write_rows
from finemesh.tuning.hurdles import hurdle_after
from finemesh.tuning.methods import METHODS

SCALES = (0.25, 1.0, 3.0)  # of a hyperparameter's range, one of which fits best
NEIGHBOURS = 4  # points whose seeds are drawn from
LLAMA = "llama2_7b_lora"
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """Of one method: curves (points, validations), over seeds the mean of their logarithms, by features (points, features)."""

    space: Mapping[str, Hyperparameter]
    points: Sequence[Point]
    curves: Vector
    failed: Sequence[Point]
    seeds: Sequence[Vector]  # of every point (seeds, validations): what to add to the logarithm; none where one seed is known
    seconds: float  # of a trial's step
    numbers: Mapping[str, float]  # of an outcome that hardly differ between points

    def curve(self, point: Mapping[str, Any]) -> Vector | None:
        """None where it fails."""
        here = self._features(point) * self._scale
        if len(self.failed):
            there = self._failed * self._scale
            if np.linalg.norm(there - here, axis=1).min() < np.linalg.norm(self._known * self._scale - here, axis=1).min():
                return None
        return np.clip(np.exp(self._model(here[None])[0]), self.curves.min(axis=0), self.curves.max(axis=0))

    def draws(self, point: Mapping[str, Any]) -> Vector:
        """(draws, validations): by what factors seeds are off the curve, as those of the nearest points that have several."""
        repeated = [index for index, seeds in enumerate(self.seeds) if len(seeds)]
        if not repeated:
            return np.ones((1, self.curves.shape[1]))
        far = np.linalg.norm((self._known[repeated] - self._features(point)) * self._scale, axis=1)
        return np.exp(np.concatenate([self.seeds[repeated[index]] for index in np.argsort(far, kind="stable")[:NEIGHBOURS]]))

    @cached_property
    def _known(self) -> Vector:
        return np.stack([self._features(point) for point in self.points])

    @cached_property
    def _failed(self) -> Vector:
        return np.stack([self._features(point) for point in self.failed])

    @cached_property
    def _model(self) -> RBFInterpolator:
        return interpolated(self._known * self._scale, np.log(self.curves))

    @cached_property
    def _scale(self) -> Vector:
        """Of every feature, one hyperparameter after the other."""
        ends = np.log(self.curves[:, -1:])
        scale = np.ones(self._known.shape[1])
        for _ in range(2):
            for block in self._blocks:
                tried = []
                for factor in SCALES:
                    changed = scale.copy()
                    changed[block] = factor
                    tried.append((left_out(self._known * changed, ends), changed))
                scale = min(tried, key=lambda item: item[0])[1]
        return scale

    @cached_property
    def _box(self) -> Box:
        return Box(tuple(Dimension.whole(name, hyperparameter.distribution) for name, hyperparameter in self.space.items()))

    @property
    def _blocks(self) -> list[slice]:
        """Of every hyperparameter its features."""
        return [slice(start, end) for start, end in pairwise([0, *accumulate(self._box.feature_blocks)])]

    def _features(self, point: Mapping[str, Any]) -> Vector:
        """An inactive hyperparameter is in the middle of its range."""
        return self._box.features([self._box.completed(point)])[0]


def interpolated(features: Vector, values: Vector) -> RBFInterpolator:
    """A little smoothing, for points that differ in nothing but what is rounded away."""
    return RBFInterpolator(features, values, kernel="linear", smoothing=1e-6, degree=0)


def left_out(features: Vector, values: Vector) -> float:
    """Mean absolute error at each point, interpolated from the others."""
    errors = []
    for index in range(len(features)):
        others = np.arange(len(features)) != index
        try:
            guess = interpolated(features[others], values[others])(features[index][None])
            errors.append(abs(float(guess[0, 0] - values[index, 0])))
        except np.linalg.LinAlgError:
            return math.inf
    return float(np.mean(errors)) if errors else math.inf


@dataclass
class Landscape:
    """`validated`: after which steps; `tokens` of a whole trial."""

    name: str
    space: Space
    references: Mapping[str, Point]
    surfaces: Mapping[str, Surface]
    validated: Sequence[int]
    tokens: float
    rows: Vector  # what the validation rows' losses are beside their mean
    unlike: float  # the standard deviation of a row's difference between two trials
    _curves: dict[str, Vector | None] = field(default_factory=dict)  # of every seed (seeds, validations)

    @property
    def steps(self) -> int:
        return self.validated[-1]

    @property
    def digest(self) -> str:
        """Changes with what is recorded."""
        what = [[method, surface.curves.tolist(), [seeds.tolist() for seeds in surface.seeds], len(surface.failed)]
                for method, surface in self.surfaces.items()]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]

    def curves(self, method: str, point: Mapping[str, Any]) -> Vector | None:
        """(draws, validations): what seeds may measure; None where it fails."""
        key = json.dumps([method, sorted(point.items())])
        if key not in self._curves:
            surface = self.surfaces[method]
            found = surface.curve(point)
            self._curves[key] = None if found is None else found * surface.draws(point)
        return self._curves[key]

    def end(self, method: str, point: Mapping[str, Any]) -> float:
        """The loss without a seed's noise: the mean over seeds."""
        found = self.curves(method, point)
        return math.inf if found is None else float(found[:, -1].mean())

    @cached_property
    def lowest(self) -> float:
        return min(self.end(method, point) for method, surface in self.surfaces.items() for point in surface.points)

    def measured(self, method: str, point: Mapping[str, Any], seed: int) -> Vector | None:
        """As a trial with this seed measures it."""
        found = self.curves(method, point)
        if found is None:
            return None
        drawn: Vector = found[generator(method, point, seed).integers(len(found))]
        return drawn

    def row_losses(self, method: str, point: Mapping[str, Any], seed: int, loss: float) -> list[float]:
        noise = generator("rows", method, point, seed).standard_normal(len(self.rows)) * self.unlike / math.sqrt(2)
        return list(loss + self.rows + noise - noise.mean())


def generator(*what: Any) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The trials of a file that landscapes.py has written."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def recorded(file: Path) -> Landscape:
    """The landscape of a file that landscapes.py has written."""
    lines = lines_of(file)
    methods = [method for method in METHODS if any(line["method"] == method for line in lines)]
    space = whole_space().narrowed(dict.fromkeys(methods))
    whole = next(line for line in lines if line["state"] == "complete")
    validated = [step for step, _ in whole["curve"]]
    surfaces = {}
    known = [same for same in by_point(lines) if [step for step, _ in same[0]["curve"]] == validated]
    offset = first_seed(known)
    for method in methods:
        own = [line for line in lines if line["method"] == method]
        good = [same for same in known if same[0]["method"] == method]
        logs = [logarithms(same) for same in good]
        surfaces[method] = Surface(
            space.methods[method], [same[0]["hyperparameters"] for same in good],
            np.exp([log.mean(axis=0) if len(log) > 1 else log[0] + offset for log in logs]),
            [line["hyperparameters"] for line in own if line["state"] != "complete"], [off_mean(log) for log in logs],
            median(same[0]["seconds"] for same in good) / validated[-1],
            {name: median(same[0][name] for same in good)
             for name in ("peak_memory_mb", "trainable_parameters", "adapter_mb")})
    losses = np.array([line["row_losses"] for line in lines if "row_losses" in line])
    near = losses[np.argsort(losses.mean(axis=1))[:len(losses) // 4]]  # trials that could be leaders
    return Landscape(
        file.stem, space, {method: space.point(method, {}, METHODS[method].reference) for method in methods}, surfaces,
        validated, float(whole["trained_tokens"]), near.mean(axis=0) - near.mean(),
        float(np.median([np.std(a - b) for a, b in combinations(near, 2)])))


def by_point(lines: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The complete runs of every point, one a seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["state"] == "complete":
            groups.setdefault(json.dumps([line["method"], line["hyperparameters"]]), []).append(line)
    return list(groups.values())


def logarithms(same: Sequence[Mapping[str, Any]]) -> Vector:
    """(seeds, validations): of a point's curves."""
    return np.log([[loss for _, loss in line["curve"]] for line in same])


def first_seed(points: Sequence[Sequence[Mapping[str, Any]]]) -> Vector:
    """(validations,) how far the mean over seeds is above the first seed, whose batches and order all points share: the median
    over the points that ran on several. What is known on the first seed alone is moved by it."""
    several = [logarithms(same) for same in points if len(same) > 1]
    return np.median([log.mean(axis=0) - log[0] for log in several], axis=0) if several else np.zeros(1)


def off_mean(logs: Vector) -> Vector:
    """(seeds, validations): what each is beside the mean of all, as wide as seeds are that the mean does not know."""
    count = len(logs)
    return (logs - logs.mean(axis=0)) * math.sqrt(count / (count - 1)) if count > 1 else logs[:0]


def published(file: Path) -> Landscape:
    """The 50 evaluations of LoRA on LLaMA-2 7B of Tribes et al. (arXiv 2312.00949): at full length only, one seed."""
    header, *rows = (line.split(",") for line in file.read_text(encoding="utf-8").split())
    lines = [dict(zip(header, map(float, row), strict=True)) for row in rows]
    space = {"rank": integer(8, 64, 8, log=True), "alpha": integer(16, 3584, 64, log=True),
             "dropout": choice((0.0, 0.0001, 0.001, 0.01, 0.1), 0.0)}  # the learning rate was the same in all of them
    points: list[Point] = [{"rank": int(line["rank"]), "alpha": int(line["alpha"]), "dropout": line["dropout"]}
                           for line in lines]
    surface = Surface(space, points, np.array([[line["validation_loss"]] for line in lines]), [],
                      [np.empty((0, 1))] * len(lines), median(line["train_seconds"] for line in lines), {})
    return Landscape(LLAMA, Space({"lora": space}), {"lora": points[0]}, {"lora": surface}, [1], 1.0, np.zeros(1), 0.0)


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for the runs of replays, gone afterwards; in memory where the system has such a place."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


class Replay:
    """An executor whose trials take no time; `now` is when the latest would have ended, in recorded seconds."""

    def __init__(self, landscape: Landscape, workers: int = 1) -> None:
        self.landscape, self.workers = landscape, workers
        self.now, self.trained = 0.0, 0.0  # seconds, steps
        self.busy = 0.0  # seconds, of all workers
        self._ending: dict[int, tuple[float, Outcome]] = {}
        self._requests = 0

    def submit(self, kind: str, arguments: dict[str, Any]) -> int:
        self._requests += 1
        job = Job.from_json(arguments)
        outcome, made = self._outcome(job)
        took = made * self.landscape.surfaces[job.method].seconds
        self.trained += made
        self.busy += took
        self._ending[self._requests] = self.now + took, outcome
        return self._requests

    def wait(self, timeout: float | None = None) -> list[Event]:
        request = min(self._ending, key=lambda number: (self._ending[number][0], number))
        self.now, outcome = self._ending.pop(request)
        return [Event(request, "result", outcome.to_json())]

    def close(self) -> None:
        self._ending.clear()

    def _outcome(self, job: Job) -> tuple[Outcome, int]:
        """And how many steps were made for it."""
        land, surface = self.landscape, self.landscape.surfaces[job.method]
        checkpoint = job.folder / "checkpoint.safetensors"
        start = int(checkpoint.read_text()) if checkpoint.exists() else 0
        losses = land.measured(job.method, job.hyperparameters, job.seed)
        outcome = Outcome(job.number, "failed", job.method, job.hyperparameters, job.seed, continues=job.continues,
                          foreseen=job.foreseen, error="the loss is not finite")
        if losses is None:
            write_outcome(job.folder, outcome)
            return outcome, job.steps - start
        last, error = job.steps, None
        curve = dict(zip(land.validated, map(float, losses), strict=True))
        for step in (step for step in land.validated if start < step <= job.steps):
            rows = land.row_losses(job.method, job.hyperparameters, job.seed, curve[step])
            if self._hopeless(job, step, curve[step], rows):
                last, error = step, "too far behind"
                break
            if job.hurdles is not None:
                write_rows(job.folder, step, curve[step], rows)
        with open(job.folder / "curve.jsonl", "w", encoding="utf-8") as file:
            for step in (step for step in land.validated if step <= last):
                file.write(json.dumps({"step": step, "validation_loss": curve[step]}) + "\n")
        checkpoint.write_text(str(last))
        outcome = Outcome(
            job.number, "complete" if last == land.steps and error is None else "pruned", job.method, job.hyperparameters,
            job.seed, last, validation_loss=curve[last], trained_tokens=round(land.tokens * last / land.steps),
            seconds=last * surface.seconds, continues=job.continues, foreseen=job.foreseen, error=error, **surface.numbers)
        write_outcome(job.folder, outcome)
        return outcome, last - start

    def _hopeless(self, job: Job, step: int, loss: float, rows: list[float]) -> bool:
        """As finemesh/tuning/hurdles.py says it, of all rows at once."""
        hurdle = hurdle_after(job, step)
        if hurdle is None:
            return False
        rival = read_rival(job.folder.parent / hurdle.rival, step, hurdle.loss)
        beaten = rival is not None and rival.better(np.array(rows), np.ones(len(rows))) is not None
        return beaten or (loss > hurdle.loss and step < job.steps)


def noise(surface: Surface) -> str:
    """The standard deviation of a seed, in nats, at the four quarters of the repeated points, best first."""
    ends = sorted((float(curve[-1]), float(curve[-1] * np.std(np.exp(seeds[:, -1])))) for curve, seeds in zip(
        surface.curves, surface.seeds, strict=True) if len(seeds))
    quarters = np.array_split(np.array([deviation for _, deviation in ends]), 4)
    return ", ".join(f"{quarter.mean():.3f}" for quarter in quarters if len(quarter))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        land = recorded(Path(name))
        for method, surface in land.surfaces.items():
            print(f"{land.name} {method}: {len(surface.points)} points, {len(surface.failed)} failed, best "
                  f"{surface.curves[:, -1].min():.4f}, spread {np.std(surface.curves[:, -1]):.4f}, left out "
                  f"{left_out(surface._known * surface._scale, np.log(surface.curves[:, -1:])):.4f}, noise "
                  f"{noise(surface)} at the quartiles of the loss")
