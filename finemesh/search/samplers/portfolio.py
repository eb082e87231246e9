"""A mesh search for every structure of the space, and how the trials are shared between them.

Every structure is begun with a few space-filling points; then the structures are ranked by the best they have shown
and the trials are shared by rank, so that a poor one fades and none is ever given up. Within a structure the
surrogate's search points alternate with NOMAD's. What happens at trial n follows from the seed and the trials before
it alone.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from finemesh.search.samplers.acquisition import Acquisition, by_merit
from finemesh.search.samplers.encoding import Coordinates, Vector, recurrence
from finemesh.search.samplers.front import Front
from finemesh.search.samplers.front_search import FrontSearch
from finemesh.search.samplers.mesh import MeshSearch
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.options import Options
from finemesh.search.samplers.record import Record
from finemesh.search.samplers.structures import Key, Structures

FIRST = 6  # trials in which the choices of every categorical are tried in turn
EXPLORE = 40  # one in so many trials ignores what was learned of the structures
DECAY = 1.0  # the share of rank r is (r + 1) ** -DECAY
STRAYS = 3  # trials in a row that led elsewhere: the space has lost this structure
POLL = 2  # one in so many points of a structure is NOMAD's
REFINED = 4  # of a structure's best points, for each objective, the surrogate also looks around


@dataclass(frozen=True)
class Choice:
    """What to do at a trial: where `key` is None, sample every hyperparameter independently."""

    kind: Literal["explore", "start", "search", "poll"]
    key: Key | None = None
    forced: tuple[str, Any] | None = None
    points: tuple[Coordinates, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether its trial is to stay within a structure, which a forced value may leave."""
        return self.key is not None and self.forced is None


@dataclass
class Standing:
    """What is known of one structure."""

    records: list[Record] = field(default_factory=list)
    strays: list[Record] = field(default_factory=list)  # planned for this structure, led into another one
    strays_in_a_row: int = 0
    visits: int = 0  # trials planned for it, or led into it by chance
    foreign: int = 0  # of these, trials of another sampler
    starts: int = 0  # of these, planned to begin it
    complete: int = 0
    best: tuple[float, ...] = (math.inf,)  # merit

    def told(self, record: Record) -> None:
        former = next((known for known in self.records if known.kind == "pruned" and known.values == record.values), None)
        if former is not None:  # this is how it ended
            self.records.remove(former)
            self.complete -= 1
            self.best = min((known.merit for known in self.records), default=(math.inf,))
        self.records.append(record)
        self.complete += record.valued
        self.best = min(self.best, record.merit)


class Portfolio:
    def __init__(self, seed: int, process: NomadProcess, options: Options, objectives: int) -> None:
        self.seed = seed
        self.process = process
        self.options = options
        self.objectives = objectives
        self.structures = Structures()
        self.standings: dict[Key, Standing] = defaultdict(Standing)
        self.pending: dict[int, Mapping[str, Any]] = {}
        self._searches: dict[Key, MeshSearch] = {}
        self._planned: dict[int, Key] = {}

    def asked(self, number: int, values: Mapping[str, Any], plan: Mapping[str, Any], is_foreign: bool) -> None:
        """Trial `number` runs with these values; `plan` holds those that were planned for it in a structure, if any."""
        self.pending[number] = values
        landed = frozenset(values)
        planned = frozenset(plan) or landed
        self.standings[planned].visits += 1
        self.standings[planned].foreign += is_foreign
        for key in {landed, planned} & self._searches.keys():
            point = self._searches[key].box.coordinates(values)
            if point is not None:
                self._searches[key].asked(point)
            self._searches[key].strayed(values)
        if plan:
            self._planned[number] = planned
            if planned in self._searches:
                self._searches[planned].strayed(plan)

    def told(self, record: Record) -> None:
        self.pending.pop(record.number, None)
        landed = self.structures.add(record.values, record.distributions)
        self.standings[landed].told(record)
        planned = self._planned.get(record.number, landed)
        if planned == landed:
            self.standings[landed].strays_in_a_row = 0
        else:
            self.standings[planned].strays.append(record)
            self.standings[planned].strays_in_a_row += record.kind != "failed"
        for key in {landed, planned} & self._searches.keys():
            self._tell(key, self._searches[key], record)

    def _tell(self, key: Key, search: MeshSearch, record: Record) -> None:
        point = search.box.coordinates(record.values)
        if point is None and key != frozenset(record.values):
            point = search.box.completed(record.values)
        if point is not None:
            search.told(point, record)

    def choose(self, number: int) -> Choice:
        choice = self._choice(number)
        if choice.key is not None and choice.stays:
            self.standings[choice.key].starts += choice.kind == "start"
        return choice

    def _choice(self, number: int) -> Choice:
        keys = self._open_keys()
        if not keys:
            return Choice("explore")
        untried = self.structures.untried(self.pending.values(), switches_only=number >= FIRST)
        if untried:
            return Choice("start", next(key for key in keys if untried[0] in key), untried)
        if number % EXPLORE == EXPLORE - 1 and self.structures.switchable:
            return Choice("explore")
        key = self._due(keys)
        search = self._search(key)
        if self._is_starting(key, search):
            return Choice("start", key)
        if self.standings[key].visits % POLL == 0:
            points = search.open_points(self.process)
            if points:
                return Choice("poll", key, points=tuple(points))
        return Choice("search", key)

    def point(self, choice: Choice, number: int) -> dict[str, Any]:
        """The values to try; of an exploring choice, none."""
        if choice.key is None:
            return {}
        search = self._search(choice.key)
        rng = generator(self.seed, number, "point")
        point = None
        if choice.kind == "start" or search.exhausted:
            point = self._start_point(choice.key, search)
        else:
            acquisition = Acquisition(search.box, search.records, self._waiting(search), self._front())
            if choice.kind == "poll":
                scores = acquisition.scores(choice.points)
                point = choice.points[int(np.argmax(scores))]
            else:
                best = by_merit(search.records)[:REFINED * self.objectives]
                point = acquisition.maximum(set(search.known), [p for p, _ in best], rng)
        if point is None:
            point = search.box.sampled(rng.random(len(search.box.dimensions)))
        return search.box.values(point) | dict([choice.forced] if choice.forced else [])

    def _waiting(self, search: MeshSearch) -> list[Coordinates]:
        points = [search.box.coordinates(values) for values in self.pending.values()]
        return [point for point in points if point is not None]

    def _search(self, key: Key) -> MeshSearch:
        """The structure's search; begun anew where its box has changed."""
        box = self.structures.box(key)
        if key not in self._searches or self._searches[key].box != box:
            seed = int(generator(self.seed, 0, *sorted(key)).integers(2**31))
            search = MeshSearch(box, seed, self.options) if self.objectives == 1 else \
                FrontSearch(box, seed, self.options, self.objectives)
            standing = self.standings[key]
            for record in sorted([*standing.records, *standing.strays], key=lambda record: record.number):
                self._tell(key, search, record)
            for point in self._waiting(search):
                search.asked(point)
            self._searches[key] = search
        return self._searches[key]

    def _open_keys(self) -> list[Key]:
        """Structures with something left to try: not those that the space has lost, nor parts of a failed trial."""
        keys = [key for key in self.structures.keys
                if self.standings[key].strays_in_a_row < STRAYS and self.structures.box(key).dimensions
                and (self.standings[key].complete or not any(key < other for other in self.structures.keys))]
        return [key for key in keys if not self._search(key).exhausted] or keys

    def _due(self, keys: list[Key]) -> Key:
        """The structure that is furthest behind its share."""
        ranked = self._ranked(keys)
        shares = np.arange(1, len(ranked) + 1) ** -DECAY
        visits = np.array([self.standings[key].visits - self.standings[key].foreign for key in ranked])
        behind = shares / shares.sum() * (visits.sum() + 1) - visits
        return ranked[int(np.argmax(behind))]

    def _ranked(self, keys: list[Key]) -> list[Key]:
        """By the best loss; with several objectives, by what of the front's hypervolume would be missing without them."""
        front = self._front()
        if front is None or not front.feasible:
            return sorted(keys, key=lambda key: self.standings[key].best)
        volumes = {key: front.volumes(self.standings[key].records) for key in keys}

        def rank(key: Key) -> tuple[float, float, tuple[float, ...]]:
            others = [volumes[other] for other in keys if other != key]
            alone = np.maximum(volumes[key] - np.max(others, axis=0), 0.0).mean() if others else 0.0
            return -float(alone), -float(volumes[key].mean()), self.standings[key].best

        return sorted(keys, key=rank)

    def _front(self) -> Front | None:
        """With several objectives, that of all structures."""
        if self.objectives == 1:
            return None
        records = [record for standing in self.standings.values() for record in standing.records]
        return Front(records) if any(record.kind == "complete" for record in records) else None

    def _is_starting(self, key: Key, search: MeshSearch) -> bool:
        """Too few points told, or soon to be, of the space-filling start; failures do not count, up to as many again."""
        standing, count = self.standings[key], self.options.latin_hypercube
        size = count or max(2, round((len(search.box.dimensions) + 2) / len(self.structures.keys) ** 0.5))
        failures = len(standing.records) - standing.complete
        if not standing.complete or not search.valued:  # the losses that there are may lie outside ranges that have moved
            return True
        return (standing.starts if count else standing.visits) - min(failures, size) < size

    def _start_point(self, key: Key, search: MeshSearch) -> Coordinates | None:
        """The next new point of an additive recurrence, which is even in every dimension, or of a Latin hypercube."""
        size = len(search.box.dimensions)
        if not size:
            return ()
        shift = generator(self.seed, 0, "start", *sorted(key)).random(size)
        standing = self.standings[key]
        for index in range(99):
            uniforms = self._stratified(key, size, standing.starts - 1 + index) if self.options.latin_hypercube else \
                (shift + (standing.visits + 1 + index) * recurrence(size)) % 1.0
            point = search.box.sampled(uniforms)
            if point not in search.known:
                return point
        return None

    def _stratified(self, key: Key, size: int, index: int) -> Vector:
        """Point `index` of Latin hypercubes that follow each other."""
        count = self.options.latin_hypercube
        assert count is not None
        turn, place = divmod(index, count)
        rng = generator(self.seed, turn, "hypercube", *sorted(key))
        strata = np.array([rng.permutation(count)[place] for _ in range(size)])
        return np.asarray((strata + rng.random((count, size))[place]) / count)


def generator(seed: int, number: int, *words: str) -> np.random.Generator:
    """Random numbers of their own for every trial and purpose, the same in every process."""
    text = "\0".join([str(seed), str(number), *words])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))
