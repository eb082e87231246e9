"""Where trials run, by name. A new executor is a file beside this one and a line in the table."""

from finemesh.search.executors.base import Event, Executor, WorkerError
from finemesh.search.executors.local import LocalExecutor

__all__ = ["EXECUTORS", "Event", "Executor", "LocalExecutor", "WorkerError"]

EXECUTORS = {"local": LocalExecutor}
