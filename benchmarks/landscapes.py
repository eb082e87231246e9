"""Records landscapes: real trials of many methods on two tasks, so that whole searches replay in seconds (optimizers.py).

Small talk's questions by topic with MiniLM-L6, and its answers with SmolLM2-135M-Instruct (the demo's task). Of each
method: the reference settings, then points that fill its whole space evenly (an additive recurrence), then points near the
best two so far, then the best on two more seeds, then every point on a second seed, then the better half on a third. Every
run is a line of benchmarks/landscapes/TASK.jsonl, with its learning curve and the final losses of the validation rows;
started again, the command goes on. About four hours on two cores; the tasks can be given to two processes.

    python benchmarks/landscapes.py [--tasks topics,chatterbot] [--methods lora,...] [--quick] [--threads N] [--json]
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock
from methods_results import Results, Run
from recording import MINILM, SMOLLM, Dataset, Recording, results_file
from result import machine, show, versions
from rich.table import Table

from finemesh.search.samplers.encoding import Dimension, recurrence
from finemesh.search.space import Point
from finemesh.tuning.methods import METHODS

HERE = Path(__file__).parent
NEAR = 0.12  # the standard deviation of a step from a good point, as a share of each range
FEWEST = 15  # questions of a topic
REPEATS = 3  # rounds of repeats
OTHER = 0.25  # the chance that a choice is drawn anew on the way


@dataclass(frozen=True)
class Landscape:
    """`even` and `near`: how many points of each method, beside the reference.

    More `seeds` go to the `repeated` best, then the first of them to every point, the others to the better half.
    """

    dataset: Dataset
    methods: tuple[str, ...]
    even: int
    near: int
    repeated: int = 2
    seeds: tuple[int, ...] = (1, 2)


LANDSCAPES = (
    Landscape(Dataset("topics", MINILM, "questions.jsonl", max_length=32, rows=(2000, 100, 1), steps=54, batch_size=8,
                      validations=9),
              ("full", "head", "bottleneck", "prefix", "prompt", "p_tuning", "p_tuning_v2", "lora", "sift"), 15, 16),
    Landscape(Dataset("chatterbot", SMOLLM, "package:chatterbot-corpus", rows=(2000, 20, 1), steps=18, batch_size=4,
                      validations=9),
              ("lora", "full", "sift", "bottleneck", "prefix", "prompt", "head"), 9, 8, repeated=1),
)


def write_topics(folder: Path) -> Path:
    """chatterbot-corpus as text and label: each question with the topic of its file, of topics with enough questions."""
    specification = importlib.util.find_spec("chatterbot_corpus")
    if specification is None or specification.origin is None:
        sys.exit("chatterbot-corpus is not installed: run make setup.")
    questions: dict[str, str] = {}
    for file in sorted((Path(specification.origin).parent / "data" / "english").glob("*.yml")):
        for turns in yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)["conversations"]:
            if isinstance(turns, list):
                questions.setdefault(str(turns[0]).strip(), file.stem)
    sizes = Counter(questions.values())
    rows = [{"text": text, "label": topic} for text, topic in questions.items() if sizes[topic] >= FEWEST]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_data(landscape: Landscape, folder: Path) -> Landscape:
    """The landscape with its rows' file written into `folder`, where no package holds them."""
    if landscape.dataset.name != "topics":
        return landscape
    return replace(landscape, dataset=replace(landscape.dataset, train=str(write_topics(folder).absolute())))


class Survey(Recording):
    """One landscape as far as it is recorded."""

    def __init__(self, landscape: Landscape, out: Path, results: Path, threads: int | None) -> None:
        super().__init__(landscape.dataset, out, results, threads)
        self.landscape = landscape

    def next_run(self, method: str, most: int) -> Run | None:
        """What is not known of the first `most` points, then of the repeats: of the best, of all, of the better half."""
        found: list[tuple[float, Run]] = []
        points = 1 + self.landscape.even + self.landscape.near
        for index in range(min(most, points)):
            run = self._run(method, self._point(method, index, found))
            if not self.results.known(run):
                return run
            line = self.results[run]
            found.append((line["validation_loss"] if line["state"] == "complete" else math.inf, run))
        second, *others = self.landscape.seeds
        repeats = (self.landscape.repeated, self.landscape.seeds), (len(found), (second,)), (len(found) // 2, others)
        for count, seeds in repeats[:max(0, most - points)]:
            for _, run in best_first(found)[:count]:
                for seed in seeds:
                    if not self.results.known(again := replace(run, seed=seed)):
                        return again
        return None

    def _run(self, method: str, point: Point) -> Run:
        return Run(self.dataset.name, method, point, 0, self.dataset.steps)

    def _point(self, method: str, index: int, found: list[tuple[float, Run]]) -> Point:
        if index == 0:
            return dict(self.study.references[method])
        space = self.study.space.methods[method]
        chance = np.random.default_rng([index, *method.encode()])
        if index <= self.landscape.even:
            shares = dict(zip(space, (0.5 + index * recurrence(len(space))) % 1, strict=True))
        else:
            base = best_first(found)[index % 2][1]
            shares = {name: stepped(Dimension.whole(name, space[name].distribution), base.hyperparameters.get(name), chance)
                      for name in space}
        point: Point = {}
        for name, hyperparameter in space.items():
            if hyperparameter.active(point):
                axis = Dimension.whole(name, hyperparameter.distribution)
                point[name] = axis.value(axis.snapped(axis.sampled(shares[name])))
        return point


def best_first(found: list[tuple[float, Run]]) -> list[tuple[float, Run]]:
    return sorted(found, key=lambda item: item[0])


def stepped(axis: Dimension, value: Any, chance: np.random.Generator) -> float:
    """A share of the range near the value's; any where there is none."""
    step, anew, other = NEAR * chance.standard_normal(), chance.random(), chance.random()
    at = None if value is None else axis.coordinate(value)
    if at is None or (axis.unordered and other < OTHER):
        return anew
    share = at if axis.size is None else (at + 0.5) / axis.size
    return share if axis.unordered else min(max(share + step, 0.0), 1 - 1e-9)


def record(landscape: Landscape, out: Path, results: Path, threads: int | None) -> None:
    """Point by point of all methods, so that what is there at any time is even."""
    with FileLock(out / f".{landscape.dataset.name}.lock", timeout=1):
        survey = Survey(landscape, out, results, threads)
        rounds = 1 + landscape.even + landscape.near + REPEATS
        if not any(survey.next_run(method, rounds) for method in landscape.methods):
            return
        with survey.worker() as executor:
            for run in planned(survey, rounds):
                start = time.monotonic()
                outcome = survey.do(run, executor, rows=True)
                loss = f"{outcome.validation_loss:.4f}" if outcome.validation_loss is not None else outcome.error
                print(f"{run.dataset} {run.method} seed {run.seed}: {loss}, {time.monotonic() - start:.0f} s", file=sys.stderr,
                      flush=True)


def planned(survey: Survey, rounds: int) -> Iterator[Run]:
    for most in range(1, rounds + 1):
        methods = list(survey.landscape.methods)
        while methods:
            for method in tuple(methods):
                if (run := survey.next_run(method, most)) is not None:
                    yield run
                else:
                    methods.remove(method)


def document(landscapes: list[Landscape], folder: Path) -> dict[str, Any]:
    found = {}
    for landscape in landscapes:
        results = Results(results_file(folder, landscape.dataset))
        lines = {method: results.of(landscape.dataset.name, method) for method in landscape.methods}
        found[landscape.dataset.name] = {method: {
            "runs": len(of), "complete": sum(line["state"] == "complete" for line in of),
            "best": min((line["validation_loss"] for line in of if line["state"] == "complete"), default=None),
            "seconds": sum(line["seconds"] for line in of)} for method, of in lines.items()}
    return {"ratios": {}, "landscapes": found, "machine": machine(), "versions": versions("finemesh", "torch", "transformers")}


def table(found: Mapping[str, Any]) -> Table:
    shown = Table("landscape", "method", "runs", "complete", "best validation loss", "minutes")
    for name, methods in found.items():
        for method, entry in methods.items():
            best = "–" if entry["best"] is None else f"{entry['best']:.4f}"
            shown.add_row(name, method, str(entry["runs"]), str(entry["complete"]), best, f"{entry['seconds'] / 60:.1f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the runs are made (runs/landscapes, or runs/landscapes-quick)")
    parser.add_argument("--results", type=Path, help="where TASK.jsonl lie (benchmarks/landscapes; with --quick as --out)")
    parser.add_argument("--tasks", default=",".join(landscape.dataset.name for landscape in LANDSCAPES))
    parser.add_argument("--methods", default=",".join(METHODS), help="only these, of those that a task has")
    parser.add_argument("--quick", action="store_true", help="two methods, three points: some minutes")
    parser.add_argument("--threads", type=int, help="of the worker (default: all cores)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs/landscapes-quick" if arguments.quick else "runs/landscapes")
    folder = arguments.results or (out if arguments.quick else HERE / "landscapes")
    chosen = [landscape for landscape in LANDSCAPES if landscape.dataset.name in arguments.tasks.split(",")]
    if not chosen:
        sys.exit(f"--tasks: {arguments.tasks} is none of {', '.join(one.dataset.name for one in LANDSCAPES)}.")
    if unknown := set(arguments.methods.split(",")) - set(METHODS):
        sys.exit(f"--methods: there is no {' and no '.join(sorted(unknown))}; there are {', '.join(METHODS)}.")
    chosen = [replace(one, methods=tuple(method for method in one.methods if method in arguments.methods.split(",")))
              for one in chosen]
    if arguments.quick:
        chosen = [replace(one, methods=("lora", "prompt"), even=1, near=1, repeated=0, dataset=replace(
            one.dataset, steps=2, validations=2, rows=(64, 8, 1))) for one in chosen]
    assert all(method in METHODS for landscape in chosen for method in landscape.methods)
    out.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for landscape in chosen:
        record(with_data(landscape, out), out, folder, arguments.threads)
    found = document(chosen, folder)
    show(found, arguments.json, table(found["landscapes"]))


if __name__ == "__main__":
    main()
