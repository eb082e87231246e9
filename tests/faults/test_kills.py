"""The command is killed at any moment, with no warning, and started again: nothing but time is lost."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from finemesh.run import RunFolder
from finemesh.trial import read_outcome

OPTIONS = {"steps": 4, "finishing": True, "script": {"seconds": 0.01, "die": {"2": 1}}}


def start(fake: SimpleNamespace, folder: Path, trials: int, workers: int) -> subprocess.Popen[bytes]:
    options = json.dumps(OPTIONS | {"trials": trials, "workers": workers})
    return subprocess.Popen([sys.executable, *fake.command, str(folder), options],
                            env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(("workers", "wanted"), [(1, 2), (3, 3)])
def test_a_command_killed_again_and_again_ends_as_the_uninterrupted_one(fake: SimpleNamespace, tmp_path: Path,
                                                                        workers: int, wanted: int) -> None:
    whole = fake.search(tmp_path / "whole", 10, workers=workers, **OPTIONS)
    chance, kills, died = random.Random(workers), 0, -signal.SIGKILL
    while died == -signal.SIGKILL:
        command = start(fake, tmp_path / "run", 10, workers)
        wait_for_work(tmp_path / "run", command)
        time.sleep(chance.uniform(0.0, 0.4))
        if kills < wanted:
            command.kill()
        died = command.wait(60)
        kills += died == -signal.SIGKILL
    assert died == 0
    assert kills == wanted
    assert fake.points(RunFolder(tmp_path / "run").outcomes()) == fake.points(whole)
    first, second = RunFolder(tmp_path / "whole").finish(), RunFolder(tmp_path / "run").finish()
    assert first is not None
    assert first == second


def wait_for_work(folder: Path, command: subprocess.Popen[bytes]) -> None:
    """Until this run of the command has a worker."""
    while command.poll() is None and not psutil.Process(command.pid).children():
        time.sleep(0.02)


def test_workers_end_when_the_command_is_killed(fake: SimpleNamespace, tmp_path: Path) -> None:
    command = start(fake, tmp_path, 1000, 2)
    while not list(tmp_path.glob("trials/*/outcome.json")):
        time.sleep(0.02)
    workers = psutil.Process(command.pid).children()
    assert len(workers) == 2
    command.kill()
    command.wait(60)
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_ctrl_c_ends_the_command_and_its_workers(fake: SimpleNamespace, tmp_path: Path) -> None:
    command = start(fake, tmp_path, 1000, 2)
    while not list(tmp_path.glob("trials/*/outcome.json")):
        time.sleep(0.02)
    workers = psutil.Process(command.pid).children()
    command.send_signal(signal.SIGINT)
    assert command.wait(60) not in (0, None)
    assert not any(worker.is_running() for worker in workers)
    ended = [path.parent for path in tmp_path.glob("trials/*/outcome.json")]
    assert all(read_outcome(folder) is not None for folder in ended)
