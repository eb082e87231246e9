"""How long a search may go on: trials or hours, whichever ends first. Hours add up over the runs of the command."""

import time
from dataclasses import dataclass

from finemesh.run import RunFolder

SAVED_EVERY = 5.0  # seconds: what a kill may take off the clock


@dataclass(frozen=True)
class Budget:
    """`trials` counts those that are run: a copy of an earlier trial costs nothing."""

    trials: int
    hours: float | None = None


class Clock:
    """A context manager that adds the time within it to the run's, under the name of a phase (search, finish)."""

    def __init__(self, run: RunFolder, phase: str) -> None:
        self._run, self._phase = run, phase
        self._earlier = run.clock().get(phase, 0.0)

    @property
    def seconds(self) -> float:
        """Of this phase, with those of earlier runs of the command."""
        return self._earlier + time.monotonic() - self._start

    def tick(self) -> None:
        if time.monotonic() - self._saved >= SAVED_EVERY:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        self._run.write_clock(self._phase, self.seconds)

    def __enter__(self) -> "Clock":
        self._start = self._saved = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.save()
