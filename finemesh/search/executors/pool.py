"""Requests for workers that keep the base model loaded and are replaced when they die, wherever they are.

The protocol is a JSON document a line: {"id", "kind", "arguments"} goes to a worker; from it come {"ready": {...}} or
{"refused": message} once, then {"id", "progress"} and {"id", "result" or "error"}.
"""

import itertools
import queue
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

from finemesh.errors import InputError
from finemesh.search.executors.base import Event, Worker, WorkerError

STARTS = 3  # failures in a row after which no worker is started any more
LOSSES = 5  # machines that a request may be on when they vanish
POLL = 5.0  # seconds between looks at workers that say nothing

Inbox = queue.Queue[tuple[Worker, dict[str, Any] | None]]


@dataclass
class Request:
    id: int
    kind: str
    arguments: dict[str, Any]
    deaths: int = 0
    losses: int = 0


class Pool(ABC):
    """Workers are started when they are needed, up to `workers` of them; a subclass says how.

    A busy worker that has neither said anything nor used the processor for `patience` seconds counts as dead.
    """

    def __init__(self, workers: int, patience: float) -> None:
        self.workers, self._patience = workers, patience
        self._inbox: Inbox = queue.Queue()
        self._slots: list[Worker | None] = [None] * workers
        self._busy: dict[Worker, Request] = {}
        self._waiting: deque[Request] = deque()
        self._numbers = itertools.count(1)
        self._failed_starts = 0
        self.ready: dict[str, Any] = {}  # what the latest worker said of itself when it was ready

    @abstractmethod
    def _start(self, index: int) -> Worker:
        """A new worker for the slot `index`; it puts what it says into the inbox."""

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
                events += self._unplaced()
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

    def __enter__(self) -> Self:
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
            self._slots[index] = self._start(index)

    def _handle(self, worker: Worker, message: dict[str, Any] | None) -> list[Event]:
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

    def _buried(self, worker: Worker) -> list[Event]:
        """A dead worker: its request goes to another one, once; more often where a machine vanished under it."""
        obituary = worker.obituary()
        self._slots[self._slots.index(worker)] = None
        request = self._busy.pop(worker, None)
        events = []
        if not worker.ready and not worker.lost:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise WorkerError(f"no worker can be started, after {STARTS} attempts: {obituary}")
        elif request is not None:
            request.deaths, request.losses = request.deaths + (not worker.lost), request.losses + worker.lost
            if request.deaths <= 1 and request.losses <= LOSSES:
                self._waiting.appendleft(request)
                events = [Event(request.id, "retried", obituary)]
            else:
                events = [Event(request.id, "out_of_memory" if worker.out_of_memory() else "died", obituary)]
        self._dispatch()
        return events

    def _unplaced(self) -> list[Event]:
        """What is to be said of requests whose worker no machine has room for, where a subclass knows."""
        return []

    def _end_silent(self) -> None:
        for worker in self._slots:
            if worker and (worker in self._busy or not worker.ready) and worker.silence() > self._patience:
                worker.kill(f"it wrote nothing and did nothing for {self._patience:g} seconds")
