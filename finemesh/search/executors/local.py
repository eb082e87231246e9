"""Worker processes on this machine. They keep the base model loaded and are replaced when they die.

The protocol is a JSON document a line: {"id", "kind", "arguments"} goes to a worker's standard input; from its standard
output come {"ready": {...}} or {"refused": message} once, then {"id", "progress"} and {"id", "result" or "error"}.
"""

import itertools
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemesh.errors import InputError
from finemesh.search.executors.base import Event, WorkerError
from finemesh.search.executors.process import WorkerProcess

STARTS = 3  # failures in a row after which no worker is started any more
POLL = 5.0  # seconds between looks at workers that say nothing


@dataclass
class Request:
    id: int
    kind: str
    arguments: dict[str, Any]
    deaths: int = 0


class LocalExecutor:
    """Workers are started when they are needed, up to `workers` of them; worker i logs to `logs`/worker-i.log.

    `environment` is added to that of this process; `devices` are shared out as CUDA_VISIBLE_DEVICES, one a worker.
    A busy worker that has neither written a line nor used the processor for `patience` seconds counts as dead.
    """

    def __init__(self, command: Sequence[str], workers: int, *, logs: Path,
                 environment: Mapping[str, str] | None = None, devices: Sequence[str] = (),
                 patience: float = 900.0) -> None:
        self._command, self._logs, self._patience = list(command), logs, patience
        self._environment, self._devices = dict(environment or {}), list(devices)
        self._inbox: queue.Queue[tuple[WorkerProcess, dict[str, Any] | None]] = queue.Queue()
        self._slots: list[WorkerProcess | None] = [None] * workers
        self._busy: dict[WorkerProcess, Request] = {}
        self._waiting: deque[Request] = deque()
        self._numbers = itertools.count(1)
        self._failed_starts = 0
        self.ready: dict[str, Any] = {}  # what the latest worker said of itself when it was ready

    def submit(self, kind: str, arguments: dict[str, Any]) -> int:
        request = Request(next(self._numbers), kind, arguments)
        self._waiting.append(request)
        self._dispatch()
        return request.id

    def wait(self, timeout: float | None = None) -> list[Event]:
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        events: list[Event] = []
        while not events and (self._busy or self._waiting):
            left = deadline - time.monotonic()
            try:
                events += self._handle(*self._inbox.get(timeout=max(0.0, min(left, POLL))))
                while not self._inbox.empty():
                    events += self._handle(*self._inbox.get_nowait())
            except queue.Empty:
                self._end_silent()
                if left <= POLL:
                    break
        return events

    def close(self) -> None:
        workers, self._slots = [worker for worker in self._slots if worker], [None] * len(self._slots)
        deadline = time.monotonic() + 2
        self._waiting.clear()
        self._busy.clear()
        for worker in workers:
            worker.end(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _dispatch(self) -> None:
        """Waiting requests go to idle workers; as many more are started as there are requests left."""
        for worker in self._slots:
            if self._waiting and worker and worker.ready and worker not in self._busy:
                request = self._waiting.popleft()
                self._busy[worker] = request
                worker.send({"id": request.id, "kind": request.kind, "arguments": request.arguments})
        loading = sum(worker is not None and not worker.ready for worker in self._slots)
        free = [index for index, worker in enumerate(self._slots) if worker is None]
        for index in free[: max(0, len(self._waiting) - loading)]:
            device = {"CUDA_VISIBLE_DEVICES": self._devices[index % len(self._devices)]} if self._devices else {}
            self._slots[index] = WorkerProcess(self._command, self._environment | device,
                                               self._logs / f"worker-{index}.log", self._inbox)

    def _handle(self, worker: WorkerProcess, message: dict[str, Any] | None) -> list[Event]:
        if worker not in self._slots:  # closed since
            return []
        worker.touch()
        if message is None:
            return self._buried(worker)
        if "refused" in message:
            raise InputError(message["refused"])
        if "ready" in message:
            self.ready, worker.ready, self._failed_starts = message["ready"], True, 0
            self._dispatch()
            return []
        if "progress" in message:
            return [Event(message["id"], "progress", message["progress"])]
        del self._busy[worker]
        self._dispatch()
        kind: Any = "result" if "result" in message else "error"
        return [Event(message["id"], kind, message[kind])]

    def _buried(self, worker: WorkerProcess) -> list[Event]:
        """A dead worker: its request goes to another one, once."""
        obituary = worker.obituary()
        self._slots[self._slots.index(worker)] = None
        request = self._busy.pop(worker, None)
        events = []
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise WorkerError(f"no worker can be started, after {STARTS} attempts: {obituary}")
        elif request is not None:
            request.deaths += 1
            if request.deaths == 1:
                self._waiting.appendleft(request)
                events = [Event(request.id, "retried", obituary)]
            else:
                events = [Event(request.id, "out_of_memory" if worker.out_of_memory() else "died", obituary)]
        self._dispatch()
        return events

    def _end_silent(self) -> None:
        for worker in self._slots:
            if worker and (worker in self._busy or not worker.ready) and worker.silence() > self._patience:
                worker.kill(f"it wrote nothing and did nothing for {self._patience:g} seconds")
