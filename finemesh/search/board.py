"""The board of a run: the jobs that wait for a process to run them, for all processes that share the run folder.

A process takes a job by locking a file, which the system unlocks when the process dies: then another one takes it. So no
job runs twice at a time, and none is lost (docs/decisions/007).
"""

import json
from pathlib import Path

from filelock import FileLock, Timeout

from finemesh.disk import write_text
from finemesh.run import RunFolder
from finemesh.trial import Job


class Board:
    def __init__(self, run: RunFolder) -> None:
        self._run, self._folder, self._taken = run.path, run.jobs, run.taken

    def post(self, job: Job) -> None:
        self._folder.mkdir(exist_ok=True)
        folder = str(job.folder.relative_to(self._run))  # the run folder has other names elsewhere
        write_text(self._file(job), json.dumps(job.to_json() | {"folder": folder}))

    def posted(self) -> list[Job]:
        jobs = []
        for file in sorted(self._folder.glob("*.json")):
            try:
                fields = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:  # it ended just now
                continue
            jobs.append(Job.from_json(fields | {"folder": self._run / fields["folder"]}))
        return jobs

    def take(self, job: Job) -> bool:
        """Whether the job is this process's now."""
        if job.folder in self._taken:
            return True
        lock = FileLock(self._lock(job))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._taken[job.folder] = lock
        return True

    def give_back(self, job: Job) -> None:
        if not self._file(job).exists():
            self._lock(job).unlink(missing_ok=True)
        self._taken.pop(job.folder).release()

    def remove(self, job: Job) -> None:
        """It has ended."""
        self._file(job).unlink(missing_ok=True)
        if job.folder in self._taken:
            self.give_back(job)

    def _file(self, job: Job) -> Path:
        return self._folder / f"{job.folder.parent.name}-{job.folder.name}.json"

    def _lock(self, job: Job) -> Path:
        return self._file(job).with_suffix(".lock")
