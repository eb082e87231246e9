"""Jobs in flight: given to the executor, adopted where they have ended before, their outcomes handed back."""

import time
from collections.abc import Callable
from pathlib import Path

from finemesh.disk import disk_is_full, full_disk, says_full
from finemesh.errors import InputError
from finemesh.search.board import Board
from finemesh.search.executors.base import Event, Executor
from finemesh.search.observer import Observer
from finemesh.trial import Job, Outcome, read_outcome, write_outcome

LOOK_EVERY = 1.0  # seconds between looks at what other processes do
OUT_OF_MEMORY = "out_of_memory"  # the constraint that a trial breaks whose worker the system killed


class Jobs:
    """`start` and `wait` give each job's outcome exactly once; its outcome.json is written by then.

    With a board, what has no free worker here waits there for any process of the run.
    """

    def __init__(self, executor: Executor, observer: Observer, board: Board | None = None) -> None:
        self._executor, self._observer, self._board = executor, observer, board
        self._running: dict[int, Job] = {}
        self._open: dict[Path, Job] = {}  # by folder: they wait, or run in another process

    def __len__(self) -> int:
        return len(self._running) + len(self._open)

    def __contains__(self, job: Job) -> bool:
        return job.folder in self._open or any(running.folder == job.folder for running in self._running.values())

    def start(self, job: Job) -> Outcome | None:
        """The outcome at once where an earlier run of the command has it."""
        outcome = read_outcome(job.folder)
        if outcome is not None:
            _check_same(job, outcome)
            self._remove(job)
            return outcome
        if job not in self:  # else it went on while the search waited for its database
            if self._board:
                self._board.post(job)
            self._open[job.folder] = job
            self._observer.started(job)
            self._fill()
        return None

    def wait(self, timeout: float | None = None) -> list[tuple[Job, Outcome]]:
        """What has ended until the first event, or until the time (in seconds) is over."""
        ended = []
        if self._open:  # which may end in another process
            timeout = LOOK_EVERY if timeout is None else min(timeout, LOOK_EVERY)
            if not self._running:
                time.sleep(timeout)
        for event in self._executor.wait(timeout):
            job = self._running[event.id]
            if event.kind == "progress":
                self._observer.progress(job.number, event.content)
            elif event.kind == "retried":
                self._observer.message(f"{job.folder.name}: {event.content}\nIt goes on in another one.")
            elif event.kind == "waiting":
                self._observer.message(event.content)
            else:
                del self._running[event.id]
                ended.append((job, _outcome(job, event)))
                self._remove(job)
        ended += self._ended_elsewhere()
        self._fill()
        return ended

    def pause(self, seconds: float) -> None:
        """Runs go on; `start` finds the outcomes of those that end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if len(self):
                self.wait(left)
            else:
                time.sleep(left)

    def _fill(self) -> None:
        """The workers here, with what no other process has taken."""
        for job in list(self._open.values()):
            if len(self._running) >= self._executor.workers:
                break
            if self._board is None or (self._board.take(job) and read_outcome(job.folder) is None):
                del self._open[job.folder]
                self._running[self._executor.submit("tune", job.to_json())] = job

    def _ended_elsewhere(self) -> list[tuple[Job, Outcome]]:
        """Its process has written the outcome and let the job go."""
        ended = []
        for job in list(self._open.values()) if self._board else ():
            outcome = read_outcome(job.folder)
            if outcome is not None and self._board and self._board.take(job):
                del self._open[job.folder]
                self._remove(job)
                ended.append((job, outcome))
        return ended

    def _remove(self, job: Job) -> None:
        if self._board:
            self._board.remove(job)


def run_posted(board: Board, executor: Executor, observer: Observer, free: Callable[[], bool]) -> None:
    """Runs what is on the board, until `free()` says that nobody asks for trials any more (asked while nothing runs here)."""
    jobs = Jobs(executor, observer)
    while len(jobs) or not free():
        for job in board.posted():
            if len(jobs) < executor.workers and job not in jobs and board.take(job):
                if read_outcome(job.folder) is None:
                    jobs.start(job)
                else:  # whoever asked for it will see
                    board.give_back(job)
        if not len(jobs):
            time.sleep(LOOK_EVERY)
        for job, outcome in jobs.wait(LOOK_EVERY):
            board.give_back(job)
            observer.ended(outcome)


def _outcome(job: Job, event: Event) -> Outcome:
    if event.kind == "result":
        outcome = Outcome(**event.content)
    else:
        memory = event.kind == "out_of_memory"
        outcome = Outcome(job.number, "infeasible" if memory else "failed", job.method, job.hyperparameters, job.seed,
                          constraints={OUT_OF_MEMORY: 1.0} if memory else {}, error=str(event.content),
                          continues=job.continues, foreseen=job.foreseen)
    if outcome.state == "failed" and says_full(outcome.error or ""):
        (job.folder / "outcome.json").unlink(missing_ok=True)
        raise disk_is_full(job.folder)
    if event.kind != "result":
        with full_disk(job.folder):
            write_outcome(job.folder, outcome)
    return outcome


def _check_same(job: Job, outcome: Outcome) -> None:
    if (outcome.method, outcome.hyperparameters, outcome.seed) != (job.method, job.hyperparameters, job.seed):
        raise InputError(f"{job.folder} holds the result of another point than the one that this search asks for. Was "
                         "study.db replaced or removed? Put it back, or choose another --out.")
