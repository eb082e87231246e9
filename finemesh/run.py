"""A run folder: where everything of one search is written, and the only place that knows its file names.

Every file is written whole or not at all. One process at a time searches in a folder, and asks for all its trials; others
may run trials for it (search/board.py), and any number may read it.
"""

import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from finemesh.disk import full_disk, size, write_text
from finemesh.errors import InputError
from finemesh.trial import Outcome, read_json, read_outcome, write_json
from finemesh.yaml_lines import read_yaml, write_yaml

Curve = list[dict[str, Any]]
CHECKPOINT = "checkpoint.safetensors"
HEAVY_MB = 100  # adapters of trials are kept up to this size
MAY_CHANGE = ("search.trials", "search.hours", "out", "executor", "ray.address", "ray.cpus", "ray.gpus",
              "ray.memory_mb")  # by when to stop, where trials run and where the folder is change no point


class RunFolder:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.splits = self.path / "splits"
        self.sources = self.path / "sources.json"  # hashes of the files that the splits are of
        self.task = self.path / "task.json"
        self.space = self.path / "space.json"
        self.earlier = self.path / "earlier.json"  # the points of earlier studies that are tried
        self.transfer = self.path / "transfer.json"  # what they have come to here
        self.machine = self.path / "machine.json"
        self.best = self.path / "best"
        self.report = self.path / "report.html"
        self.logs = self.path / "logs"
        self.jobs = self.path / "jobs"  # those that wait for a process
        self.taken: dict[Path, FileLock] = {}  # by folder, the jobs that this process has taken
        self.study = self.path / "study.db"

    @staticmethod
    def existing(path: Path | str) -> "RunFolder":
        """InputError where a search has not begun in it."""
        run = RunFolder(path)
        if not run.config.exists():
            raise InputError(f"{path} is not the folder of a run (it holds no config.yaml); finemesh search writes one")
        return run

    def study_name(self, storage: str | None) -> str:
        """In a database that other studies may share, the folder's first name and what tells it from others so named."""
        if storage is None:
            return self.path.resolve().name
        file = self.path / "study_name.txt"
        if not file.exists():
            write_text(file, f"{self.path.resolve().name}-{secrets.token_hex(4)}")
        return file.read_text(encoding="utf-8")

    def trial(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def repeat(self, number: int, index: int) -> Path:
        """Trial `number` once more, on the fresh seed `index` (from 1)."""
        return self.path / "repeats" / f"{number:04d}-{index}"

    def reference(self, method: str, index: int) -> Path:
        return self.path / "reference" / f"{method}-{index}"

    def lighten(self, folder: Path) -> None:
        """Removes what a run in `folder` saved, where it is a whole model: `finemesh tune RUN --trial N` makes it again."""
        if size(folder / "adapter") > HEAVY_MB * 1e6:
            shutil.rmtree(folder / "adapter", ignore_errors=True)

    def hand_on(self, number: int, successor: int) -> None:
        """The trial that continues another one takes its checkpoint; what that one saved is of no use any more."""
        checkpoint = self.trial(number) / CHECKPOINT
        if checkpoint.exists():
            checkpoint.replace(self.trial(successor) / CHECKPOINT)
        shutil.rmtree(self.trial(number) / "adapter", ignore_errors=True)

    def forget_checkpoint(self, number: int) -> None:
        (self.trial(number) / CHECKPOINT).unlink(missing_ok=True)

    def forget_lightened(self) -> None:
        """Repeats whose whole models are gone are run again by the next finish, which may hand one of them over."""
        for folder in (self.path / "repeats").glob("*"):
            outcome = read_outcome(folder)
            if outcome is not None and outcome.state == "complete" and not (folder / "adapter").exists():
                (folder / "outcome.json").unlink()  # evaluated.json stays: the test split is measured once

    def worker_task(self) -> Path:
        """What this process's workers read; it goes with the process, or when the next one begins."""
        return self.path / f".worker-{process_name()}.json"

    def forget_ended(self) -> None:
        """The files of this machine's processes that were killed."""
        for file in self.path.glob(f".worker-{socket.gethostname()}-*.json"):
            if not psutil.pid_exists(int(file.stem.rpartition("-")[2])):
                file.unlink(missing_ok=True)

    @property
    def untuned(self) -> Path:
        return self.path / "reference" / "untuned"

    def outcomes(self) -> list[Outcome]:
        """Of the trials that have ended, in the order of their numbers."""
        return _outcomes(self.path / "trials")

    def repeats(self) -> list[Outcome]:
        return _outcomes(self.path / "repeats")

    def references(self) -> list[Outcome]:
        return _outcomes(self.path / "reference")

    def curve(self, number: int) -> Curve:
        return read_curve(self.trial(number))

    def finish(self) -> dict[str, Any] | None:
        """What finish.json says; None until the leaders of these very trials are repeated and tested."""
        found: dict[str, Any] | None = read_json(self.path / "finish.json")
        return found

    def write_finish(self, document: Mapping[str, Any]) -> None:
        with full_disk(self.path):
            write_json(self.path / "finish.json", document)

    def unfinish(self) -> None:
        """More trials are run: what was the finish is none any more."""
        (self.path / "finish.json").unlink(missing_ok=True)

    def winner(self) -> dict[str, Any] | None:
        """Which run best/ was handed over from: method, hyperparameters, folder, seeds and loss."""
        found: dict[str, Any] | None = read_json(self.best / "finemesh.json")
        return found

    def clock(self) -> dict[str, float]:
        """`seconds` spent by the command so far, and of these the phases' (search, finish)."""
        return read_json(self.path / "clock.json") or {}

    def write_clock(self, phase: str, seconds: float) -> None:
        phases = {name: value for name, value in self.clock().items() if name != "seconds"} | {phase: seconds}
        with full_disk(self.path):
            write_json(self.path / "clock.json", {"seconds": sum(phases.values()), **phases})

    @contextmanager
    def locked(self, meanwhile: Callable[[Callable[[], bool]], None] | None = None) -> Iterator[None]:
        """InputError where another process works on this folder.

        Instead, `meanwhile` is called, where it is given, with what says (once) that the folder is free and now ours.
        """
        lock, owner = FileLock(self.path / ".lock"), self.path / ".lock.pid"

        def free(patience: float = 0) -> bool:
            with full_disk(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=patience)
            except Timeout:
                return False
            return True

        if not free(1 if meanwhile is None else 0):
            if meanwhile is None:
                process = owner.read_text(encoding="utf-8") if owner.exists() else "?"
                raise InputError(f"{self.path}: process {process} is already working on this run. Wait for it, stop it, "
                                 "or choose another --out.")
            try:
                meanwhile(free)
            finally:
                self._give_back()
        try:
            with full_disk(self.path):
                owner.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            self._give_back()
            owner.unlink(missing_ok=True)
            lock.release()

    def _give_back(self) -> None:
        """The workers have ended: other processes may take the jobs."""
        while self.taken:
            self.taken.popitem()[1].release()

    def working(self) -> bool:
        """Whether a process holds the lock."""
        if not (self.path / ".lock.pid").exists():
            return False
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # somebody else's folder, or a disk, that may only be read
            process, _, host = (self.path / ".lock.pid").read_text(encoding="utf-8").partition(" on ")
            return host != socket.gethostname() or psutil.pid_exists(int(process))
        lock.release()
        return False

    def begin(self, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """Writes config.yaml. InputError where the folder holds a run of another config, or something else."""
        if self.config.exists():
            self.check(config, defaults)
        elif foreign := sorted(path.name for path in self.path.iterdir() if not path.name.startswith(".lock")):
            raise InputError(f"{self.path} is not the folder of a run (it holds {foreign[0]}, but no config.yaml): "
                             "choose another --out")
        with full_disk(self.path):
            write_text(self.config, write_yaml(dict(config)))

    def check(self, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """InputError where the run is one of another config. `defaults`: of fields that there were not when it began."""
        _check_same(read_yaml(self.config).values, config, self.path, defaults or {})


def process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def read_curve(folder: Path) -> Curve:
    """The whole lines: the last one of a run that was killed may be cut off."""
    path = folder / "curve.jsonl"
    lines: Curve = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def _outcomes(parent: Path) -> list[Outcome]:
    folders = sorted(parent.iterdir()) if parent.is_dir() else []
    return sorted(filter(None, map(read_outcome, folders)), key=lambda outcome: outcome.number)


def _check_same(old: Any, new: Mapping[str, Any], path: Path, defaults: Mapping[str, Any]) -> None:
    before, now = _flat(_over(defaults, old or {})), _flat(json.loads(json.dumps(new)))
    differing = [name for name in sorted(before.keys() | now.keys())
                 if name not in MAY_CHANGE and before.get(name) != now.get(name)]
    if differing:
        lines = [f"  {name}: {before.get(name, 'not set')} there, {now.get(name, 'not set')} now" for name in differing]
        raise InputError(f"{path} holds a run of another config:\n" + "\n".join(lines) + "\nChoose another --out, or "
                         "set these back. Only search.trials, search.hours, executor and ray may change in a run.")


def _over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and the defaults of what they leave out."""
    both = {name: _over(default, values[name]) for name, default in defaults.items()
            if isinstance(default, Mapping) and isinstance(values.get(name), Mapping)}
    return {**defaults, **values, **both}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
