from collections.abc import Callable, Iterator

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from finemesh.search.samplers.encoding import Box, Coordinates, Dimension
from finemesh.search.samplers.front import nondominated
from finemesh.search.samplers.front_search import FrontSearch
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.options import Options
from finemesh.search.samplers.record import Record

PLANE = Box((Dimension("k", IntDistribution(0, 9)), Dimension("x", FloatDistribution(0, 1))))
Losses = tuple[float, ...]


@pytest.fixture(scope="module")
def process() -> Iterator[NomadProcess]:
    process = NomadProcess()
    yield process
    process.close()


def search(objectives: int = 2) -> FrontSearch:
    return FrontSearch(PLANE, 0, Options(), objectives)


def tell(search: FrontSearch, point: Coordinates, losses: Losses, **violations: float) -> None:
    search.told(point, Record(len(search.records), PLANE.values(point), {}, "complete", losses[0], violations, losses[1:]))


def run(search: FrontSearch, process: NomadProcess, losses: Callable[..., Losses], evaluations: int,
        limit: float | None = None) -> list[Coordinates]:
    points = []
    for _ in range(evaluations):
        points.append(search.open_points(process)[0])
        values = PLANE.values(points[-1])
        violations = {} if limit is None else {"limit": values["x"] - limit}
        tell(search, points[-1], losses(**values), **violations)
    return points


def two_bowls(k: int, x: float) -> Losses:
    return (k - 2) ** 2 / 10 + (x - 0.2) ** 2, (k - 6) ** 2 / 10 + (x - 0.8) ** 2


def test_spreads_over_the_front(process: NomadProcess) -> None:
    searched = search(objectives=3)

    def losses(k: int, x: float) -> Losses:
        return *two_bowls(k, x), x + k / 10

    tell(searched, (9.0, 0.0), losses(9, 0.0))
    points = run(searched, process, losses, 24)
    assert len(set(points)) == 24
    front = [record for record in nondominated([record for _, record in searched.records]) if sum(record.losses[:2]) < 2.0]
    assert {2, 6} <= {record.values["k"] for record in front}
    assert len(front) >= 6


def test_goes_on_alike_from_what_was_told(process: NomadProcess) -> None:
    """A search that is told everything at its iterations' ends again asks NOMAD the same, whatever else it did."""
    first, second = search(), search()
    for searched in (first, second):
        tell(searched, (5.0, 0.5), two_bowls(5, 0.5))
    expected = run(first, process, two_bowls, 12)
    process.close()
    assert run(second, process, two_bowls, 12) == expected


def test_constraints_lead_to_the_feasible_part_of_the_front(process: NomadProcess) -> None:
    searched = search()
    tell(searched, (9.0, 0.9), two_bowls(9, 0.9), limit=0.5)
    run(searched, process, two_bowls, 14, limit=0.4)
    front = nondominated([record for _, record in searched.records])
    assert len(front) >= 2
    assert all(record.feasible for record in front)


def test_the_surrogates_points_begin_another_run_and_are_not_asked_for_again(process: NomadProcess) -> None:
    searched = search()
    tell(searched, (9.0, 0.0), two_bowls(9, 0.0))
    before = searched.open_points(process)
    for k, x in ((2, 0.2), (4, 0.5), (6, 0.8)):
        tell(searched, (float(k), x), two_bowls(k, x))
    for point in before:
        if searched.known.get(point) is None:
            tell(searched, point, (9.0, 9.0))
    after = searched.open_points(process)
    assert not set(after) & set(searched.known)
    assert min(abs(x - best) for _, x in after for best in (0.2, 0.5, 0.8)) <= 0.2


def test_points_that_strayed_cost_their_block_no_more(process: NomadProcess) -> None:
    """NOMAD's run goes on, with those of the block that were told, if any."""
    searched = search()
    tell(searched, (5.0, 0.5), two_bowls(5, 0.5))
    handed_out: list[Coordinates] = []
    for told in (1, 0):
        points = searched.open_points(process)
        assert not set(points) & set(handed_out)
        handed_out += points
        for point in points[told:]:
            searched.strayed(PLANE.values(point))
        for point in points[:told]:
            tell(searched, point, (9.0, 9.0))
    assert not set(searched.open_points(process)) & set(handed_out)
    assert len(searched._blocks) == 2


def test_a_point_that_failed_costs_its_block_no_more(process: NomadProcess) -> None:
    searched = search()
    tell(searched, (5.0, 0.5), two_bowls(5, 0.5))
    for _ in range(10):
        point = searched.open_points(process)[0]
        searched.told(point, Record(len(searched.records), {}, {}, "failed", float("inf"), {}, (float("inf"),)))
    assert len(searched.known) == 11
