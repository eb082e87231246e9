"""Every tuning method on five tasks, its learning rate searched by as many runs as the others', then three fresh seeds.

SST-2, CoLA and RTE (32 rows to learn from) with MiniLM-L6; Alpaca and E2E with SmolLM2-135M-Instruct. A run is known by task,
method, settings, seed and steps, and is written as one line of benchmarks/results/TASK.jsonl when it has ended: started again
(kill -9 included), the command goes on, and a method that is new in METHODS is added. About four hours on two cores in all;
tasks can be given to several processes.

    python benchmarks/methods.py [--tasks sst2,cola] [--quick] [--threads N] [--json]    (FINEMESH_DATA holds the data)
    python benchmarks/methods.py --table                  what the results say so far, as markdown; runs nothing
"""

import argparse
import json
import math
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from methods_results import Results, Run, document, markdown
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from recording import MINILM, SMOLLM, Dataset, Recording, results_file
from result import finite
from sides import DATA

from finemesh.preparation import whole_space
from finemesh.search.executors import LocalExecutor
from finemesh.search.narrowing import typed
from finemesh.tuning.methods import METHODS

HERE = Path(__file__).parent
# What is searched, all else being as in the reference: the learning rate, or the first setting of a method without one.
SEARCHED = {name: "learning_rate" if "learning_rate" in method.space else next(iter(method.space))
            for name, method in METHODS.items()}


DATASETS = (
    Dataset("sst2", MINILM, "sst2_train.tsv", test="sst2_dev.tsv", max_length=64),
    Dataset("cola", MINILM, "cola_in_domain_train.tsv", test="cola_in_domain_dev.tsv", max_length=64),
    Dataset("alpaca", SMOLLM, "alpaca_en_demo.jsonl", rows=(800, 48, 96), steps=20, batch_size=8, validations=1),
    Dataset("e2e", SMOLLM, "e2e_valid.jsonl", rows=(800, 64, 128), steps=20, batch_size=8, validations=1),
    Dataset("rte", MINILM, "rte_train.jsonl", "rte_dev32.jsonl", "rte_val.jsonl", steps=40, batch_size=8),
)


@dataclass(frozen=True)
class Size:
    """`trials` of each method on each task, its reference settings among them; then `seeds` of the best of these, the search
    itself being on seed 0. `stages`: runs of every method on every task before any gets more."""

    datasets: tuple[Dataset, ...]
    trials: int
    seeds: tuple[int, ...]
    stages: tuple[int, ...]


WHOLE = Size(DATASETS, 5, (1, 2, 3), (1, 3, 5, 8))
QUICK = Size(tuple(replace(dataset, rows=(64, 8, 16), steps=2, batch_size=8) for dataset in DATASETS
                   if dataset.name in ("sst2", "e2e")), 2, (1,), (3,))


class Bench(Recording):
    """One task, and the next run of each method."""

    def __init__(self, dataset: Dataset, out: Path, results: Path, size: Size, threads: int | None) -> None:
        super().__init__(dataset, out, results, threads)
        self.trials, self.seeds = size.trials, size.seeds

    def next_run(self, method: str, most: int) -> Run | None:
        """What comes after the runs that are known: reference, then the searched setting, then seeds; at most `most`."""
        space, reference, name = self.study.space, dict(self.study.references[method]), SEARCHED[method]

        def planned(value: Any, seed: int) -> Run:
            return Run(self.dataset.name, method, space.point(method, {name: value}, reference), seed, self.dataset.steps)

        losses = {line["hyperparameters"][name]: line["validation_loss"] if line["state"] == "complete" else math.inf
                  for line in self.results.of(self.dataset.name, method)
                  if line["key"] == planned(line["hyperparameters"][name], 0).key}
        if reference[name] not in losses:
            return planned(reference[name], 0)
        if len(losses) < self.trials:
            value = following(METHODS[method].space[name].distribution, losses)
            if value is not None:
                return planned(value, 0) if len(losses) < most else None
        best = min(losses, key=losses.__getitem__)
        repeats = [planned(best, seed) for seed in self.seeds]
        left = [run for run in repeats if not self.results.known(run)]
        may = self.trials + len(repeats) - len(left) < most and losses[best] < math.inf
        return left[0] if left and may else None

    def measure(self, run: Run, executor: LocalExecutor) -> None:
        """The trials of a search are not measured on the test rows."""
        start = time.monotonic()
        outcome = self.do(run, executor, tested=bool(run.seed) or run.hyperparameters == self.study.references[run.method])
        loss = f"{outcome.validation_loss:.4f}" if outcome.validation_loss is not None else outcome.error
        name = SEARCHED[run.method]
        print(f"{run.dataset} {run.method} {name} {run.hyperparameters[name]} seed {run.seed}: {loss}, "
              f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def following(distribution: BaseDistribution, losses: dict[Any, float]) -> Any:
    """The middle of the wider gap beside the best value so far, as if the ends of the range were known to be bad.

    Of choices the first that is not known. None where all that is near is known.
    """
    if isinstance(distribution, CategoricalDistribution):
        return next((value for value in distribution.choices if value not in losses), None)
    scale = Scale(distribution)
    known = {scale.share(value): loss for value, loss in losses.items()}
    for best in sorted(known, key=known.__getitem__):
        left, right = max([0.0, *(u for u in known if u < best)]), min([1.0, *(u for u in known if u > best)])
        for low, high in sorted([(left, best), (best, right)], key=lambda gap: gap[0] - gap[1]):
            value = scale.value((low + high) / 2)
            if value not in losses:
                return value
    return None


class Scale:
    """A numeric range as shares from 0 to 1, logarithmic where the range is."""

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution

    def share(self, value: float) -> float:
        low, high, value = (self._inner(x) for x in (self.distribution.low, self.distribution.high, value))
        return (value - low) / (high - low)

    def value(self, share: float) -> Any:
        low, high = self._inner(self.distribution.low), self._inner(self.distribution.high)
        inner = low + share * (high - low)
        value = float(f"{10 ** inner if self.distribution.log else inner:.3g}")
        return typed(self.distribution, value if isinstance(self.distribution, FloatDistribution) else round(value))

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.distribution.log else float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the runs are made (runs/methods, or runs/methods-quick)")
    parser.add_argument("--results", type=Path, help="where TASK.jsonl lie (benchmarks/results; with --quick as --out)")
    parser.add_argument("--tasks", help="only these, separated by commas")
    parser.add_argument("--quick", action="store_true", help="two tasks, two steps, two trials, one seed: some minutes")
    parser.add_argument("--threads", type=int, help="of the worker (default: all cores)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print what is there as markdown, run nothing")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs/methods-quick" if arguments.quick else "runs/methods")
    folder = arguments.results or (out if arguments.quick else HERE / "results")
    size = QUICK if arguments.quick else WHOLE
    if arguments.tasks:
        size = only(size, arguments.tasks.split(","))
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        there = tuple(dataset for dataset in size.datasets if (DATA / dataset.train).exists())
        for dataset in size.datasets:
            if dataset not in there:
                print(f"{dataset.name} is skipped: there is no {dataset.train} in {DATA} (FINEMESH_DATA)", file=sys.stderr)
        go_on(replace(size, datasets=there), out, folder, arguments.threads)
    references = {name: whole_space().point(name, {}, method.reference) for name, method in METHODS.items()}
    results = {dataset.name: Results(results_file(folder, dataset)) for dataset in size.datasets}
    found = document(results, size.datasets, SEARCHED, references)
    print(json.dumps(finite(found), indent=1, allow_nan=False) if arguments.json else markdown(found))


def only(size: Size, names: list[str]) -> Size:
    known = {dataset.name: dataset for dataset in size.datasets}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"There is no task {unknown[0]} here; there are {', '.join(known)}.")
    return replace(size, datasets=tuple(known[name] for name in names))


def go_on(size: Size, out: Path, results: Path, threads: int | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for dataset in size.datasets:
            locks.enter_context(FileLock(out / f".{dataset.name}.lock", timeout=1))
        benches = [Bench(dataset, out, results, size, threads) for dataset in size.datasets]
        for most in size.stages:
            for bench in benches:
                if not any(bench.next_run(method, most) for method in bench.study.space.methods):
                    continue
                with bench.worker() as executor:
                    bench.untuned(executor)
                    for method in bench.study.space.methods:
                        while (run := bench.next_run(method, most)) is not None:
                            bench.measure(run, executor)


if __name__ == "__main__":
    main()
