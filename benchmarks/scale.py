"""How a search uses many workers: real trials on 1, 2 and 4 of this machine, recorded trial times on 100 and 1,000.

Here: real trials of MiniLM-L6, one after the other and side by side, the cores shared among the workers. Simulated: the whole
search (store, order of telling, samplers) on a recorded landscape (landscapes.py), whose trials take their recorded time on
a clock of its own, and no time is lost between them. `busy`: the share of the workers' time that trials filled until the
last one ended, against what as many workers could reach that never wait. `regret`: of the loss. Medians over seeds.

    python benchmarks/scale.py [--quick] [--here-only | --simulated-only] [--simulate 1,10,...] [--json]
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from landscapes import LANDSCAPES, Survey, write_topics
from optimizers import at, traced
from replay import Landscape, Replay, in_memory, recorded
from result import machine, show, versions
from rich.table import Table

from finemesh.run import RunFolder
from finemesh.search.beginning import beginning
from finemesh.search.budget import Budget
from finemesh.search.executors import LocalExecutor
from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.study import run_search, trials_in_flight
from finemesh.trial import write_json
from finemesh.tuning.environment import worker_environment
from finemesh.tuning.machine import usable_cores

HERE = Path(__file__).parent
REAL = 24  # trials
PER_WORKER = 10  # simulated trials for each worker, but at least FEWEST and at most MOST in all
FEWEST, MOST = 60, 3000
SEEDS = {1: 15, 10: 15, 100: 3}  # simulated searches, by workers; of others one


def here(workers: int, trials: int, folder: Path) -> float:
    """Trials an hour, from the first trial's start to the last one's end; the workers' start is not counted."""
    dataset = replace(LANDSCAPES[0].dataset, train=str(write_topics(folder)), steps=36, validations=2)
    survey = Survey(replace(LANDSCAPES[0], dataset=dataset), folder, folder, None)
    threads = max(1, usable_cores() // workers)
    file = survey.run.path / f".worker-{workers}.json"
    write_json(file, replace(survey.study.task, threads=threads, validations=2).to_json())
    space = survey.study.space.narrowed({"lora": {"rank": [4, 64], "variant": "lora"}})
    run = RunFolder(folder / f"search-{workers}")
    run.path.mkdir(parents=True)
    with LocalExecutor([sys.executable, "-m", "finemesh.tuning.worker", str(file)], workers, logs=run.logs,
                       environment=worker_environment(threads)) as executor:
        in_flight = trials_in_flight(workers, reproducible=True)

        def search(budget: int) -> None:
            run_search(space, OPTIMIZERS["random"](0, in_flight), Budget(budget), executor, run, seed=0, steps=dataset.steps,
                       in_flight=in_flight)

        search(workers)  # every worker has loaded its model by then
        start = time.monotonic()
        search(workers + trials)
        return trials / (time.monotonic() - start) * 3600


def simulated(landscape: Landscape, optimizer: str, workers: int, trials: int, seed: int, *,
              reproducible: bool) -> dict[str, float]:
    replay, in_flight = Replay(landscape, workers), trials_in_flight(workers, reproducible=reproducible)
    start = time.monotonic()
    with in_memory() as folder:
        outcomes = run_search(
            landscape.space, OPTIMIZERS[optimizer](seed, in_flight), Budget(trials), replay, RunFolder(folder), seed=seed,
            steps=landscape.steps, in_flight=in_flight, reproducible=reproducible,
            first=beginning(landscape.references, landscape.space, landscape.steps))
    return {"busy": replay.busy / (workers * replay.now), "hours": replay.now / 3600,
            "regret": at(traced(landscape, outcomes), trials) - landscape.lowest,
            "milliseconds_a_trial": 1000 * (time.monotonic() - start) / trials}


def measure(landscape: Landscape | None, here_workers: list[int], real: int, many: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"here": {}, "simulated": []}
    for workers in here_workers:
        with TemporaryDirectory() as folder:
            found["here"][str(workers)] = here(workers, real, Path(folder))
        print(f"{workers} workers here: {found['here'][str(workers)]:.0f} trials an hour", file=sys.stderr, flush=True)
    for workers in many if landscape else ():
        trials = min(max(FEWEST, PER_WORKER * workers), MOST)
        for optimizer in OPTIMIZERS:
            for reproducible in (True, False) if workers > 1 else (True,):
                rows = [simulated(landscape, optimizer, workers, trials, seed, reproducible=reproducible)
                        for seed in range(SEEDS.get(workers, 1))]
                found["simulated"].append({"optimizer": optimizer, "workers": workers, "trials": trials,
                                           "reproducible": reproducible, "seeds": len(rows),
                                           **{name: median(row[name] for row in rows) for name in rows[0]}})
                print(found["simulated"][-1], file=sys.stderr, flush=True)
    ratios = {f"throughput_{workers}_workers_vs_1": rate / found["here"]["1"] for workers, rate in found["here"].items()
              if workers != "1"}
    ratios |= {f"busy_{row['optimizer']}_{row['workers']}{'' if row['reproducible'] else '_free'}": row["busy"]
               for row in found["simulated"]}
    return {"ratios": ratios, **found, "machine": machine(), "versions": versions("finemesh", "optuna", "PyNomadBBO", "torch")}


def tables(result: dict[str, Any]) -> list[Table]:
    real = Table("workers here", "trials an hour")
    for workers, rate in result["here"].items():
        real.add_row(workers, f"{rate:.0f}")
    simulation = Table("optimizer", "workers", "trials", "order", "busy", "regret", "ms a trial")
    for row in result["simulated"]:
        simulation.add_row(row["optimizer"], str(row["workers"]), str(row["trials"]),
                           "reproducible" if row["reproducible"] else "as they end", f"{row['busy']:.0%}",
                           f"{row['regret']:.4f}", f"{row['milliseconds_a_trial']:.0f}")
    return [real, simulation]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 2 workers here, 1 and 20 simulated")
    parser.add_argument("--here-only", action="store_true")
    parser.add_argument("--simulated-only", action="store_true")
    parser.add_argument("--simulate", default="1,10,100,1000", help="so many workers")
    parser.add_argument("--landscape", type=Path, default=HERE / "landscapes" / "topics.jsonl")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    here_workers = [] if arguments.simulated_only else [1, 2] if arguments.quick else [1, 2, 4]
    many = [] if arguments.here_only else [1, 20] if arguments.quick else list(map(int, arguments.simulate.split(",")))
    landscape = recorded(arguments.landscape) if many else None
    result = measure(landscape, here_workers, 4 if arguments.quick else REAL, many)
    show(result, arguments.json, *tables(result))


if __name__ == "__main__":
    main()
