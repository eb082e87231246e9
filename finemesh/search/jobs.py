"""Jobs in flight: given to the executor, adopted where they have ended before, their outcomes handed back."""

import time

from finemesh.errors import InputError
from finemesh.run import disk_is_full, full_disk
from finemesh.search.executors.base import Event, Executor
from finemesh.search.observer import Observer
from finemesh.trial import Job, Outcome, read_outcome, write_outcome

OUT_OF_MEMORY = "out_of_memory"  # the constraint that a trial breaks whose worker the system killed


class Jobs:
    """`start` and `wait` give each job's outcome exactly once; its outcome.json is written by then."""

    def __init__(self, executor: Executor, observer: Observer) -> None:
        self._executor, self._observer = executor, observer
        self._running: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, job: Job) -> Outcome | None:
        """The outcome at once where an earlier run of the command has it."""
        outcome = read_outcome(job.folder)
        if outcome is not None:
            _check_same(job, outcome)
            return outcome
        if any(running.folder == job.folder for running in self._running.values()):
            return None  # it went on while the search waited for its database
        self._observer.started(job)
        self._running[self._executor.submit("tune", job.to_json())] = job
        return None

    def wait(self, timeout: float | None = None) -> list[tuple[Job, Outcome]]:
        ended = []
        for event in self._executor.wait(timeout):
            job = self._running[event.id]
            if event.kind == "progress":
                self._observer.progress(job.number, event.content)
            elif event.kind == "retried":
                self._observer.message(f"{job.folder.name}: {event.content}\nIt goes on in another one.")
            else:
                del self._running[event.id]
                ended.append((job, _outcome(job, event)))
        return ended

    def pause(self, seconds: float) -> None:
        """Runs go on; `start` finds the outcomes of those that end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._running:
                self.wait(left)
            else:
                time.sleep(left)


def _outcome(job: Job, event: Event) -> Outcome:
    if event.kind == "result":
        outcome = Outcome(**event.content)
    else:
        memory = event.kind == "out_of_memory"
        outcome = Outcome(job.number, "infeasible" if memory else "failed", job.method, job.hyperparameters, job.seed,
                          constraints={OUT_OF_MEMORY: 1.0} if memory else {}, error=str(event.content))
    if outcome.state == "failed" and "No space left on device" in (outcome.error or ""):
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
