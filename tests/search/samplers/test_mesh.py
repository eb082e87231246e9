from collections.abc import Callable, Iterator

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from finemesh.search.samplers.encoding import Box, Coordinates, Dimension
from finemesh.search.samplers.mesh import SMALLEST_FRAME, MeshSearch
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.options import Options
from finemesh.search.samplers.record import Record

PLANE = Box((Dimension("x", FloatDistribution(0, 1)), Dimension("y", FloatDistribution(0, 1))))


@pytest.fixture(scope="module")
def process() -> Iterator[NomadProcess]:
    process = NomadProcess()
    yield process
    process.close()


def record(search: MeshSearch, point: Coordinates, loss: float, **violations: float) -> Record:
    return Record(len(search.records), search.box.values(point), {}, "complete", loss, violations)


def tell(search: MeshSearch, point: Coordinates, loss: float, **violations: float) -> None:
    search.told(point, record(search, point, loss, **violations))


def run(search: MeshSearch, process: NomadProcess, loss: Callable[..., float], evaluations: int) -> None:
    for _ in range(evaluations):
        points = search.open_points(process)
        if not points:
            return
        tell(search, points[0], loss(**search.box.values(points[0])))


def bowl(x: float, y: float) -> float:
    return (x - 0.7) ** 2 + 2 * (y - 0.4) ** 2


def test_nothing_to_poll_around_before_a_point_is_known(process: NomadProcess) -> None:
    search = MeshSearch(PLANE, 0)
    assert search.open_points(process) == []
    search.told((0.5, 0.5), Record(0, {}, {}, "failed", float("inf"), {}))
    assert search.open_points(process) == []


def test_finds_the_minimum(process: NomadProcess) -> None:
    search = MeshSearch(PLANE, 0)
    tell(search, (0.1, 0.9), bowl(0.1, 0.9))
    run(search, process, bowl, 60)
    assert search.best is not None
    assert search.best.loss < 1e-3


def test_a_success_ends_the_iteration_and_failures_all_of_it(process: NomadProcess) -> None:
    search = MeshSearch(PLANE, 0)
    tell(search, (0.5, 0.5), 1.0)
    first = search.open_points(process)
    tell(search, first[0], 2.0)
    assert search.open_points(process) == first[1:]
    tell(search, first[1], 0.5)
    around_the_success = search.open_points(process)
    assert not set(around_the_success) & set(first)


def test_asked_points_are_not_handed_out_again_and_the_iteration_waits_for_them(process: NomadProcess) -> None:
    search = MeshSearch(PLANE, 0)
    tell(search, (0.5, 0.5), 1.0)
    first = search.open_points(process)
    for point in first:
        search.asked(point)
    assert search.open_points(process) == []
    for point in first[:-1]:
        tell(search, point, 2.0)
    assert search.open_points(process) == []
    tell(search, first[-1], 2.0)
    assert search.open_points(process)


def test_a_point_that_strays_is_waited_for_no_longer(process: NomadProcess) -> None:
    search = MeshSearch(PLANE, 0)
    tell(search, (0.5, 0.5), 1.0)
    for point in search.open_points(process):
        search.strayed({"x": PLANE.values(point)["x"]})
    assert search.open_points(process)


def test_the_converged_search_restarts_from_the_best_point_elsewhere(process: NomadProcess) -> None:
    """A needle next to a broad bowl: the first search ends in the needle, the next looks at the bowl again."""
    search = MeshSearch(PLANE, 0)
    tell(search, (0.1, 0.1), -1.0)
    tell(search, (0.9, 0.9), bowl(0.9, 0.9))
    run(search, process, bowl, 120)
    near = [record for point, record in search.records if point != (0.1, 0.1) and max(point) < 0.4]
    bowl_best = min(record.loss for _, record in search.records[1:])
    assert near
    assert bowl_best < 0.01
    assert any(size > SMALLEST_FRAME for size in search._frame)


def test_the_barrier_leads_from_infeasible_to_feasible(process: NomadProcess) -> None:
    search = MeshSearch(PLANE, 0)
    tell(search, (0.25, 0.25), 0.5, memory=0.3)
    for _ in range(20):
        point = search.open_points(process)[0]
        x, y = point
        tell(search, point, x + y, memory=0.8 - x - y)
    assert search.best is not None
    assert search.best.feasible
    assert search.best.loss < 0.9


def test_a_finite_structure_is_exhausted_once_all_is_known(process: NomadProcess) -> None:
    box = Box((Dimension("k", IntDistribution(0, 2)), Dimension("r", IntDistribution(1, 3, log=True))))
    search = MeshSearch(box, 0)
    tell(search, box.sampled((0.0, 0.0)), 2.0)
    run(search, process, lambda k, r: (k - 1) ** 2 + (r - 2) ** 2, 20)
    assert min(record.loss for _, record in search.records) == 0.0
    for k in (0.0, 0.5, 0.9):
        for r in (0.0, 0.6, 1.0):
            search.asked(box.sampled((k, r)))
    assert search.exhausted
    assert search.open_points(process) == []


@pytest.mark.parametrize("option", ["quadratic_model_search", "nelder_mead_search"])
def test_a_search_of_nomads_can_be_left_out(process: NomadProcess, option: str) -> None:
    proposed = []
    for options in (Options(), Options(**{option: False})):
        search = MeshSearch(PLANE, 0, options)
        for index in range(9):
            x, y = index / 8, index * 3 % 8 / 8
            tell(search, (x, y), bowl(x, y))
        proposed.append(set(search.open_points(process)))
    assert proposed[0] - proposed[1]
