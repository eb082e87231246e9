"""One mesh adaptive direct search (MADS) over a structure, its mathematics NOMAD's.

An iteration asks NOMAD for the search and poll points around the best points known (feasible and infeasible: the
progressive barrier), hands them out, and ends at the first success or when all are told; NOMAD then changes the frame
size. Points known from elsewhere (the start, the surrogate, enqueued ones) enter NOMAD's cache all the same. When
the frame is smaller than anyone can tell apart, the search restarts from the best point elsewhere.

C. Audet and J. E. Dennis Jr., "Mesh adaptive direct search algorithms for constrained optimization", SIAM J. Optim.
17(1), 2006. C. Audet, S. Le Digabel, V. Rochon Montplaisir and C. Tribes, "Algorithm 1027: NOMAD version 4", ACM
TOMS 48(3), 2022.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import IntDistribution

from finemesh.search.samplers.encoding import Box, Coordinates, Dimension, same
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.options import Options
from finemesh.search.samplers.record import Record

GRID = 1000  # steps of a continuous dimension: NOMAD's suggestions lose the frame size of a real variable
FRAME = 0.2  # of a range: the first frame size
SMALLEST_FRAME = 2.0  # grid steps of a continuous dimension
FAILED = 1e20  # how a failure is observed; it never enters the cache
SEEDS = 10_000  # NOMAD draws as many random numbers to set a seed
QUADRATIC = 100  # points, up to which NOMAD's quadratic models are worth their time beside the surrogate
CACHED = 200  # points that NOMAD is given: the best and the latest
EMPTY_ITERATIONS = 8  # in a row, all of whose points were known


class MeshSearch:
    """`records` are those of this structure, in the order told, each with its coordinates."""

    def __init__(self, box: Box, seed: int, options: Options = Options()) -> None:
        self.box = box
        self.seed = seed
        self.options = options
        self.records: list[tuple[Coordinates, Record]] = []
        self.known: dict[Coordinates, Record | None] = {}  # None: asked, not told yet
        self.best: Record | None = None  # outside the converged searches
        self._objectives = 1
        self._constraints: tuple[str, ...] = ()
        self._steps = [GRID if d.size is None else d.size - 1 for d in box.dimensions]  # of NOMAD's grid
        self._frame: tuple[float, ...] = self._first_frame()
        self._barrier = ""
        self._iteration = 0
        self._open: list[tuple[Coordinates, Coordinates]] = []  # (NOMAD's coordinates, those of its values)
        self._points: list[tuple[Coordinates, Coordinates]] = []  # the whole iteration
        self._begun = 0  # records told before this iteration
        self._best_before: Record | None = None
        self._centres: list[Coordinates] = []  # of converged searches
        self._free: list[bool] = []  # of each record, whether it lies outside these

    def _first_frame(self) -> tuple[float, ...]:
        return tuple(float(max(1, round(FRAME * steps))) for steps in self._steps)

    @property
    def exhausted(self) -> bool:
        """Every point of a finite structure has been asked for."""
        return math.prod(d.count for d in self.box.dimensions) <= len(self.known)

    @property
    def valued(self) -> bool:
        """Whether a loss is known in it."""
        return any(record.valued for _, record in self.records)

    def asked(self, point: Coordinates) -> None:
        self.known.setdefault(point, None)
        self._open = [pair for pair in self._open if pair[1] != point]

    def strayed(self, values: Mapping[str, Any]) -> None:
        """A point with these values was handed out, but its trial is another point: it will not be told."""
        def is_it(point: Coordinates) -> bool:
            return all(same(values[name], value) for name, value in self.box.values(point).items() if name in values)

        self._open = [pair for pair in self._open if not is_it(pair[1])]
        self._points = [pair for pair in self._points if pair[1] in self.known or not is_it(pair[1])]

    def told(self, point: Coordinates, record: Record) -> None:
        self.asked(point)
        former, is_free = self.known[point], self._are_free([point])[0]
        if former is not None and former.kind == "pruned":  # this is how it ended
            self.records[self.records.index((point, former))] = (point, record)
            self.known[point] = record
            if self.best is former:
                self.best = self._best_free()
        else:
            if former is None or record.merit < former.merit:
                self.known[point] = record
            self.records.append((point, record))
            self._free.append(is_free)
        if not record.violations.keys() <= set(self._constraints):
            self._constraints = tuple(sorted({*self._constraints, *record.violations}))
        if (self.best is None or record.merit < self.best.merit) and is_free:
            self.best = record

    def open_points(self, process: NomadProcess) -> list[Coordinates]:
        """Points of NOMAD's that may be handed out now; none while the last ones of an iteration are being run."""
        if self.exhausted or not self.valued:
            return []
        for _ in range(EMPTY_ITERATIONS):
            if not self._over():
                return [point for _, point in self._open]
            self._close(process)
            if self._converged():
                self._restart()
            self._begin(process)
        return [point for _, point in self._open]

    def _success(self) -> bool:
        return self.best is not None and (self._best_before is None or self.best.merit < self._best_before.merit)

    def _over(self) -> bool:
        return self._success() or all(self.known.get(point) is not None for _, point in self._points)

    def _begin(self, process: NomadProcess) -> None:
        self._iteration += 1
        self._begun, self._best_before = len(self.records), self.best
        request = {"seed": self._seed(), "parameters": self._parameters(), "cache": self._cache()}
        self._offer(process.ask(request).get("points", []))

    def _offer(self, raw: Sequence[Sequence[float]]) -> None:
        """NOMAD's points as the iteration's; those that are known, or will be, are not handed out."""
        self._points = [(tuple(point), self.box.snapped(self._ours(point))) for point in raw]
        self._open = []
        for pair in self._points:
            if pair[1] not in self.known and all(pair[1] != point for _, point in self._open):
                self._open.append(pair)

    def _close(self, process: NomadProcess) -> None:
        """Tell NOMAD what this iteration brought: the frame grows after a success and shrinks after a failure."""
        if self._iteration == 0:
            return
        told = [(list(raw), self._outputs(self.known.get(point))) for raw, point in self._points
                if self.known.get(point) is not None]
        raws = [point for point, _ in told]
        told += [(self._nomads(point), self._outputs(record)) for point, record in self.records[self._begun:]
                 if self._nomads(point) not in raws]
        before = self._frame
        if told:
            request = {"seed": self._seed(), "parameters": self._parameters(), "cache": self._cache(self._begun)}
            answer = process.ask(request | {"points": told})
            for line in answer.get("parameters", []):
                self._read_parameter(line)
        if not self._success():  # NOMAD sometimes keeps or enlarges the frame when all points were known
            smaller = tuple(map(min, self._frame, before))
            self._frame = smaller if smaller != before else tuple(max(1.0, size // 2) for size in before)

    def _read_parameter(self, line: str) -> None:
        name, _, text = line.partition(" ")
        if name == "INITIAL_FRAME_SIZE":
            sizes = [float(word) for word in text.strip("() ").split()]
            self._frame = tuple(min(max(1.0, size), steps) for steps, size in zip(self._steps, sizes, strict=True))
        elif name == "H_MAX_0" and "inf" not in text.lower():
            self._barrier = f"H_MAX_0 {text}"

    def _converged(self) -> bool:
        return all(size <= _smallest_frame(d) for d, size in zip(self.box.dimensions, self._frame, strict=True)) and \
            all(self.known.get(point) is not None for _, point in self._points)

    def _restart(self) -> None:
        free = [pair for pair, is_free in zip(self.records, self._free, strict=True) if pair[1].valued and is_free]
        if free:
            self._centres.append(min(free, key=_merit)[0])
        if not any(self._are_free([point for point, _ in free])):
            self._centres.clear()  # everything known is near a former centre: begin again with the best
        self._free = self._are_free([point for point, _ in self.records])
        self.best = self._best_free()
        self._frame, self._barrier = self._first_frame(), ""

    def _best_free(self) -> Record | None:
        return min((record for (_, record), is_free in zip(self.records, self._free, strict=True) if is_free),
                   key=lambda record: record.merit, default=None)

    def _are_free(self, points: Sequence[Coordinates]) -> list[bool]:
        """Outside the frames in which former searches began and ended."""
        if not self._centres or not points:
            return [True] * len(points)
        features, centres = self.box.features(points), self.box.features(self._centres)  # (point, feature)
        apart = [np.abs(features - centre).max(axis=1) > FRAME / 2 for centre in centres]
        return [bool(free) for free in np.all(apart, axis=0)]

    def _cache(self, upto: int | None = None) -> list[tuple[list[float], list[float]]]:
        usable = [pair for pair, is_free in zip(self.records[:upto], self._free, strict=False) if pair[1].valued and is_free]
        if len(usable) > CACHED:
            best = sorted(usable, key=_merit)[: CACHED // 2]
            usable = best + [pair for pair in usable[-CACHED // 2:] if pair not in best]
        once = {tuple(self._nomads(point)): record for point, record in sorted(usable, key=_merit, reverse=True)}
        return [(list(point), self._outputs(record)) for point, record in once.items()]

    def _outputs(self, record: Record | None) -> list[float]:
        if record is None or not record.valued:  # what is infeasible without a loss is no centre either
            return [FAILED] * (self._objectives + len(self._constraints))
        return [*record.losses, *[record.violations.get(name, -1.0) for name in self._constraints]]

    def _ours(self, point: Sequence[float]) -> Coordinates:
        """NOMAD's coordinates, grid steps all of them, as ours."""
        return tuple(min(max(z, 0.0), steps) / (GRID if d.size is None else 1)
                     for d, z, steps in zip(self.box.dimensions, point, self._steps, strict=True))

    def _nomads(self, point: Coordinates) -> list[float]:
        """Ours as NOMAD's: on its grid."""
        return [float(round(z * GRID)) if d.size is None else z for d, z in zip(self.box.dimensions, point, strict=True)]

    def _seed(self) -> int:
        return (self.seed + self._iteration) % SEEDS

    def _parameters(self) -> list[str]:
        dimensions = self.box.dimensions
        types = ["B" if steps == 1 else "I" for steps in self._steps]
        quadratic = self.options.quadratic_model_search and len(self.records) < QUADRATIC
        outputs = ["OBJ"] * self._objectives + ["PB"] * len(self._constraints)
        return [f"DIMENSION {len(dimensions)}", "LOWER_BOUND * 0", f"UPPER_BOUND {_vector(self._steps)}",
                f"BB_INPUT_TYPE {_vector(types)}", f"BB_OUTPUT_TYPE {' '.join(outputs)}",
                "DIRECTION_TYPE ORTHO 2N", f"QUAD_MODEL_SEARCH {_yes(quadratic)}",
                f"NM_SEARCH {_yes(self.options.nelder_mead_search)}",
                f"INITIAL_FRAME_SIZE {_vector(self._frame)}", *filter(None, [self._barrier])]


def _smallest_frame(dimension: Dimension) -> float:
    """In steps of NOMAD's grid; half of what tells the two largest values apart, for a logarithmic integer."""
    if dimension.size is not None:
        return 1.0
    if isinstance(dimension.distribution, IntDistribution):
        low, high = dimension.distribution.low, dimension.distribution.high
        return max(SMALLEST_FRAME, GRID / 2 * math.log(high / (high - 1)) / math.log(high / low))
    return SMALLEST_FRAME


def _merit(pair: tuple[Coordinates, Record]) -> tuple[int, float, float]:
    return pair[1].merit


def _yes(wanted: bool) -> str:
    return "yes" if wanted else "no"


def _vector(items: Sequence[Any]) -> str:
    return f"( {' '.join(str(item) for item in items)} )"
