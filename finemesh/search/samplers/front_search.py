"""A mesh search for two to four objectives: NOMAD's DMulti-MADS over a structure.

NOMAD suggests no points where there are several objectives, so its run is replayed: the child begins it with all points
known, repeats what each of its blocks was answered, and says what the next one asks for. A block ends at its first new
point of the front, or when all of it is told. Where the surrogate has added to the front meanwhile, the next run
begins from there, with the frame size reached.

J. Bigeon, S. Le Digabel and L. Salomon, "DMulti-MADS: mesh adaptive direct multisearch for bound-constrained blackbox
multiobjective optimization", Computational Optimization and Applications 79(2), 2021; with constraints: the same authors,
"Handling of constraints in multiobjective blackbox optimization", the same journal 89(1), 2024.
"""

import numpy as np

from finemesh.search.samplers.encoding import Box, Coordinates
from finemesh.search.samplers.front import dominating, nondominated
from finemesh.search.samplers.mesh import CACHED, MeshSearch
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.options import Options
from finemesh.search.samplers.record import Record


class FrontSearch(MeshSearch):
    def __init__(self, box: Box, seed: int, options: Options, objectives: int) -> None:
        super().__init__(box, seed, options)
        self._objectives = objectives
        self._lines: list[str] = []  # the parameters of the run
        self._starts: list[tuple[list[float], list[float]]] = []  # what it began with; empty: begin another one
        self._blocks: list[list[list[float] | None]] = []  # what its blocks were answered
        self._block: list[tuple[Coordinates, Coordinates]] = []  # the one that is being run, with the points that strayed

    def told(self, point: Coordinates, record: Record) -> None:
        constraints = self._constraints
        super().told(point, record)
        if self._constraints != constraints:
            self._starts = []

    def _success(self) -> bool:
        """One of NOMAD's points has come to the front."""
        own = {point for _, point in self._points}
        new = {record.number for point, record in self.records[self._begun:] if point in own}
        return bool(new) and any(record.number in new for record in self._front())

    def _front(self) -> list[Record]:
        return nondominated([record for _, record in self.records])

    def _converged(self) -> bool:
        return False

    def _begin(self, process: NomadProcess) -> None:
        if not self._starts:
            self._start()
        self._begun = len(self.records)
        request = {"seed": self._seed(), "parameters": self._lines, "starts": self._starts, "blocks": self._blocks}
        self._offer(process.ask(request).get("points", []))
        self._block = self._points
        if not self._points:  # NOMAD's run has converged
            self._starts, self._frame = [], self._first_frame()

    def _start(self) -> None:
        self._iteration += 1
        self._lines, self._blocks = [*self._parameters(), "DMULTIMADS_OPTIMIZATION yes"], []
        usable = [(point, record) for point, record in self.records if record.kind == "complete"]
        counts = dominating(np.array([record.losses for _, record in usable]))
        chosen = np.argsort(counts, kind="stable")[:CACHED]
        once = {tuple(self._nomads(usable[index][0])): self._outputs(usable[index][1]) for index in sorted(chosen)}
        self._starts = [(list(point), outputs) for point, outputs in once.items()]

    def _close(self, process: NomadProcess) -> None:
        if not self._block:
            return
        answers = [self.known.get(point) for _, point in self._block]
        self._blocks.append([self._outputs(record) if record is not None and record.kind == "complete" else None
                             for record in answers])
        if self._success():
            self._frame = tuple(min(2 * size, first) for size, first in zip(self._frame, self._first_frame(), strict=True))
        else:
            self._frame = tuple(max(1.0, size // 2) for size in self._frame)
        seen = [tuple(point) for point, _ in self._starts] + [raw for raw, _ in self._block]
        front = {record.number for record in self._front()}
        if any(record.number in front and tuple(self._nomads(point)) not in seen for point, record in self.records):
            self._starts = []
