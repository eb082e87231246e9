"""Worker processes on this machine, which speak the protocol of pool.py on their standard input and output."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from finemesh.search.executors.base import Worker
from finemesh.search.executors.pool import Pool
from finemesh.search.executors.process import WorkerProcess


class LocalExecutor(Pool):
    """Worker i logs to `logs`/worker-i.log.

    `environment` is added to that of this process; `devices` are shared out as CUDA_VISIBLE_DEVICES, one a worker.
    """

    def __init__(self, command: Sequence[str], workers: int, *, logs: Path,
                 environment: Mapping[str, str] | None = None, devices: Sequence[str] = (),
                 patience: float = 900.0) -> None:
        super().__init__(workers, patience)
        self._command, self._logs = list(command), logs
        self._environment, self._devices = dict(environment or {}), list(devices)

    def _start(self, index: int) -> Worker:
        device = {"CUDA_VISIBLE_DEVICES": self._devices[index % len(self._devices)]} if self._devices else {}
        return WorkerProcess(self._command, self._environment | device, self._logs / f"worker-{index}.log", self._inbox)
