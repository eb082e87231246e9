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

from finemesh.search.samplers.acquisition import Acquisition
from finemesh.search.samplers.encoding import Box, Coordinates
from finemesh.search.samplers.mesh import MeshSearch
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.record import Record
from finemesh.search.samplers.structures import Key, Structures

FIRST = 6  # trials in which the choices of every categorical are tried in turn
EXPLORE = 40  # one in so many trials ignores what was learned of the structures
DECAY = 1.0  # the share of rank r is (r + 1) ** -DECAY
STRAYS = 3  # trials in a row that led elsewhere: the space has lost this structure
POLL = 2  # one in so many points of a structure is NOMAD's


@dataclass(frozen=True)
class Choice:
    """What to do at a trial: where `key` is None, sample every hyperparameter independently."""

    kind: Literal["explore", "start", "search", "poll"]
    key: Key | None = None
    forced: tuple[str, Any] | None = None
    points: tuple[Coordinates, ...] = ()


@dataclass
class Standing:
    """What is known of one structure."""

    records: list[Record] = field(default_factory=list)
    strays: list[Record] = field(default_factory=list)  # planned for this structure, led into another one
    strays_in_a_row: int = 0
    visits: int = 0  # trials planned for it, or led into it by chance
    complete: int = 0
    best: tuple[float, ...] = (math.inf,)  # merit

    def told(self, record: Record) -> None:
        self.records.append(record)
        self.complete += record.kind == "complete"
        self.best = min(self.best, record.merit)


class Portfolio:
    def __init__(self, seed: int, process: NomadProcess) -> None:
        self.seed = seed
        self.process = process
        self.structures = Structures()
        self.standings: dict[Key, Standing] = defaultdict(Standing)
        self.pending: dict[int, Mapping[str, Any]] = {}
        self._searches: dict[Key, MeshSearch] = {}
        self._planned: dict[int, Key] = {}

    def asked(self, number: int, values: Mapping[str, Any]) -> None:
        """Trial `number` runs with these values."""
        self.pending[number] = values
        landed = frozenset(values)
        planned = self._planned.get(number, landed)
        self.standings[planned].visits += 1
        for key in {landed, planned} & self._searches.keys():
            point = self._searches[key].box.coordinates(values)
            if point is not None:
                self._searches[key].asked(point)
            self._searches[key].strayed(values)

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
        if choice.key is not None and choice.forced is None:
            self._planned[number] = choice.key
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
        if self._is_starting(key, search.box):
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
            acquisition = Acquisition(search.box, search.records, self._waiting(search))
            if choice.kind == "poll":
                scores = acquisition.scores(choice.points)
                point = choice.points[int(np.argmax(scores))]
            else:
                best = sorted(search.records, key=lambda pair: pair[1].merit)[:4]
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
            search = MeshSearch(box, int(generator(self.seed, 0, *sorted(key)).integers(2**31)))
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
        ranked = sorted(keys, key=lambda key: self.standings[key].best)
        shares = np.arange(1, len(ranked) + 1) ** -DECAY
        visits = np.array([self.standings[key].visits for key in ranked])
        behind = shares / shares.sum() * (visits.sum() + 1) - visits
        return ranked[int(np.argmax(behind))]

    def _is_starting(self, key: Key, box: Box) -> bool:
        """Too few points told, or soon to be, of the space-filling start; failures do not count, up to as many again."""
        size = max(2, round((len(box.dimensions) + 2) / len(self.structures.keys) ** 0.5))
        standing = self.standings[key]
        failures = len(standing.records) - standing.complete
        return not standing.complete or standing.visits - min(failures, size) < size

    def _start_point(self, key: Key, search: MeshSearch) -> Coordinates | None:
        """The next new point of an additive recurrence: even in every dimension, whatever their number."""
        size = len(search.box.dimensions)
        if not size:
            return ()
        ratio = 2.0
        for _ in range(40):
            ratio = (1 + ratio) ** (1 / (size + 1))
        steps = ratio ** -np.arange(1.0, size + 1)
        shift = generator(self.seed, 0, "start", *sorted(key)).random(size)
        visits = self.standings[key].visits
        for index in range(visits + 1, visits + 100):
            point = search.box.sampled((shift + index * steps) % 1.0)
            if point not in search.known:
                return point
        return None


def generator(seed: int, number: int, *words: str) -> np.random.Generator:
    """Random numbers of their own for every trial and purpose, the same in every process."""
    text = "\0".join([str(seed), str(number), *words])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))
