"""Several processes on one run: every trial runs once, whichever runs it, and whoever is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from finemesh.run import RunFolder
from finemesh.search import jobs as in_flight

OPTIONS = {"trials": 4, "workers": 3, "here": 1, "steps": 6}


def start(fake: SimpleNamespace, folder: Path, finishing: bool = False, **script: Any) -> subprocess.Popen[bytes]:
    """A process that shares the run in this folder and runs one trial at a time."""
    code = ("import json, pathlib, runpy, sys, finemesh.search.jobs\nfinemesh.search.jobs.LOOK_EVERY = 0.02\n"
            "runpy.run_path(sys.argv[1])['search'](pathlib.Path(sys.argv[2]), **json.loads(sys.argv[3]))")
    options = json.dumps(OPTIONS | {"script": script, "finishing": finishing})
    return subprocess.Popen([sys.executable, "-c", code, fake.__file__, str(folder), options],
                            env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def whole(fake: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("whole")
    outcomes = fake.search(folder, **OPTIONS | {"here": 3}, finishing=True)
    return SimpleNamespace(points=fake.points(outcomes), finish=RunFolder(folder).finish())


def steps(folder: Path) -> list[list[int]]:
    return [[int(step) for step in path.read_text().split()] for path in sorted(folder.glob("*/*/steps.log"))]


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_share_the_trials_and_none_runs_twice(fake: SimpleNamespace, tmp_path: Path, whole: SimpleNamespace,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "LOOK_EVERY", 0.02)
    script = {"until": {"0": 1}, "die": {"2": 1, "3": 1}}  # trial 0 goes on when trial 1 has begun, in the other process
    first = start(fake, tmp_path, finishing=True, **script)
    wait_for((tmp_path / "trials/0000").exists)
    watcher = fake.Watcher()
    outcomes = fake.search(tmp_path, **OPTIONS, script=script, observer=watcher, finishing=True)
    assert first.wait(30) == 0
    assert fake.points(outcomes) == whole.points
    assert RunFolder(tmp_path).finish() == whole.finish
    assert [path.name for path in tmp_path.glob("fake-*")] == [f"fake-{os.getpid()}"]
    ran_here = {(job.folder.parent.name, job.folder.name) for job in watcher.jobs}
    assert ("trials", "0001") in ran_here
    assert len(ran_here) == len(watcher.jobs) < len(steps(tmp_path))
    assert all(log in ([*range(6)], [*range(4), *range(3, 6)]) for log in steps(tmp_path))  # once, or on after a death
    assert list(RunFolder(tmp_path).jobs.iterdir()) == []


def test_whoever_is_killed_another_one_ends_the_search(fake: SimpleNamespace, tmp_path: Path, whole: SimpleNamespace) -> None:
    """Process 0 asks; 1 and 2 run what waits; 2 is left, runs what the others had taken, and asks."""
    script = {"seconds": 0.02, "until": {"0": 1, "1": 2}}  # three trials run at the same time
    processes = [start(fake, tmp_path, **script)]
    wait_for((tmp_path / "trials/0000").exists)
    processes += [start(fake, tmp_path, **script) for _ in range(2)]
    wait_for((tmp_path / "trials/0002/steps.log").exists)
    workers = [worker for victim in processes[:2] for worker in psutil.Process(victim.pid).children()]
    for victim in processes[:2]:
        victim.kill()
        victim.wait(30)
    assert workers
    assert processes[2].wait(30) == 0
    psutil.wait_procs(workers, timeout=30)
    assert fake.points(RunFolder(tmp_path).outcomes()) == whole.points
