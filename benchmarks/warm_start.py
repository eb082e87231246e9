"""What `search.from` gains: searches on recorded landscapes (landscapes.py) with and without an earlier run to begin from.

The earlier run is a whole search (NOMAD with halving, 45 points) on the same landscape with another seed, on the other
landscape (another model, task and data; the methods that both have), or on the same one turned upside down, where what was
good is bad: what a warm start may cost at worst. Each is judged as in optimizers.py, by the loss without a seed's noise of
the trial that the search thinks best.
`steps_vs_cold_SOURCE`: steps until the loss that the cold search has after 10 full-length trials' steps, over its own.

    python benchmarks/warm_start.py [--quick] [--seeds 30] [--json]
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna
from optimizers import Trace, at, middle, searched, spread, traced, until
from replay import Landscape, in_memory, recorded
from result import machine, show, versions
from rich.table import Table

from finemesh.run import RunFolder
from finemesh.search.space import Space
from finemesh.search.transfer import Known, known_points

HERE = Path(__file__).parent
EARLIER, POINTS = 45, 45  # new points of the earlier search, and of those that are compared
GOAL = 10  # full-length trials' steps of the cold search, whose loss is to be reached
SHOWN = (3, 6, 10, 15)
OTHER_SEED = 1000  # of the earlier search
SOURCES = ("same", "other", "reversed")


def replayed(landscape: Landscape, space: Space, points: int, seed: int, path: Path,
             earlier: Sequence[Known] = ()) -> tuple[Trace, float | None]:
    """The trace, and Kendall's tau of the earlier points that were measured here too."""
    path.mkdir()
    run = RunFolder(path)
    run.begin({})
    outcomes = searched(landscape, space, "nomad", "halving", points, seed, run, earlier)
    tau = json.loads(run.transfer.read_text(encoding="utf-8"))["kendall"] if run.transfer.exists() else None
    return traced(landscape, outcomes), tau


def turned(landscape: Landscape) -> Landscape:
    """Every final loss is as far below the highest as it was above the lowest, all along its curve."""
    surfaces = {}
    lowest, highest = landscape.lowest, max(float(s.curves[:, -1].max()) for s in landscape.surfaces.values())
    for method, surface in landscape.surfaces.items():
        ends = surface.curves[:, -1:]
        surfaces[method] = replace(surface, curves=surface.curves * (lowest + highest - ends) / ends)
    return replace(landscape, surfaces=surfaces, _curves={})


def measure(landscapes: Mapping[str, Landscape], seeds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, target in landscapes.items():
        other = next(one for key, one in landscapes.items() if key != name)
        sources = {"same": target, "other": other, "reversed": turned(target)}
        traces: dict[str, list[Trace]] = {"cold": [], **{source: [] for source in sources}}
        taus: dict[str, list[float]] = {source: [] for source in sources}
        for seed in range(seeds):
            with in_memory() as path:
                traces["cold"].append(replayed(target, target.space, POINTS, seed, path / "cold")[0])
                for source, landscape in sources.items():
                    shared = landscape.space.narrowed({m: None for m in landscape.space.methods if m in target.space.methods})
                    replayed(landscape, shared, EARLIER, seed + OTHER_SEED, path / source)
                    earlier = known_points(path / source, target.space, target.references)
                    trace, tau = replayed(target, target.space, POINTS, seed, path / f"from-{source}", earlier)
                    traces[source].append(trace)
                    taus[source] += [] if tau is None else [tau]
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
        found[name] = judged(target, traces) | {"kendall": {source: round(mean(of), 2) for source, of in taus.items() if of}}
    ratios = {f"steps_vs_cold_{source}": round(math.exp(mean(
        math.log(entry["searches"][source]["steps_vs_cold"][0]) for entry in found.values())), 3) for source in SOURCES}
    return {"ratios": ratios, "landscapes": found, "seeds": seeds, "machine": machine(),
            "versions": versions("finemesh", "numpy")}


def judged(landscape: Landscape, traces: Mapping[str, list[Trace]]) -> dict[str, Any]:
    goal = middle(np.array([at(trace, GOAL) for trace in traces["cold"]]))
    needed = middle(np.array([until(trace, goal) for trace in traces["cold"]]))  # finite: more than half of them reach it
    return {"searches": {name: {
        "regret": [[spent, *spread([at(trace, spent) - landscape.lowest for trace in of])] for spent in SHOWN],
        "steps_vs_cold": spread([until(trace, goal) / needed for trace in of])} for name, of in traces.items()}}


def tables(result: Mapping[str, Any]) -> list[Table]:
    found = []
    for name, entry in result["landscapes"].items():
        shown = Table("begins from", *(f"after {spent}" for spent in SHOWN), f"steps until the cold one's {GOAL}, of its",
                      "Kendall's tau", title=f"{name}: median regret of the validation loss, {result['seeds']} seeds")
        for source, row in entry["searches"].items():
            middle, low, high = row["steps_vs_cold"]
            shown.add_row(source, *(f"{regret:.3f}" for _, regret, *_ in row["regret"]),
                          f"{middle:.2f} ({low:.2f} to {high:.2f})", str(entry["kendall"].get(source, "")))
        found.append(shown)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=HERE / "landscapes", help="where landscapes.py has written")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscapes = {file.stem: recorded(file) for file in sorted(arguments.folder.glob("*.jsonl"))}
    if len(landscapes) < 2:
        sys.exit(f"Two landscapes are compared; in {arguments.folder} there are {len(landscapes)}. Run landscapes.py.")
    result = measure(landscapes, 3 if arguments.quick else arguments.seeds)
    show(result, arguments.json, *tables(result))


if __name__ == "__main__":
    main()
