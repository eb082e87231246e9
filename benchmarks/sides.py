"""Processes that take turns: each side of a comparison is one, so that all see the same machine at the same time.

A side says {"ready": ...}, waits for a line on standard input before each step, and says what the step took after it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("FINEMESH_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


class Side:
    """A contender's process."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """`command`: the arguments of the Python that runs it; its standard error is kept in folder/name.log."""
        self.name, self.steps = name, []
        self._log = open(folder / f"{name}.log", "w", encoding="utf-8")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen([sys.executable, *command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log, env={**os.environ, **environment})
        self.hear()

    steps: list[dict[str, float]]

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.flush()
            sys.exit(f"{self.name} ended early:\n{Path(self._log.name).read_text(encoding='utf-8')[-2000:]}")
        return dict(json.loads(line))

    def go(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.hear()

    def step(self) -> None:
        self.steps.append(self.go())

    def rate(self) -> float:
        """Tokens a second: the median over steps, each weighted by its tokens."""
        rates = sorted((step["tokens"] / step["seconds"], step["tokens"]) for step in self.steps)
        half, seen = sum(tokens for _, tokens in rates) / 2, 0.0
        for rate, tokens in rates:
            seen += tokens
            if seen >= half:
                return rate
        raise AssertionError("no step was taken")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


@dataclass
class Turns:
    """The conversation with the process that gives turns."""

    replies: Any
    since: float = 0.0

    def say(self, **fields: Any) -> None:
        print(json.dumps(fields), file=self.replies, flush=True)

    def wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(1)
        self.since = time.perf_counter()

    def done(self, tokens: int) -> None:
        self.say(tokens=tokens, seconds=time.perf_counter() - self.since)


def replies() -> Any:
    """Where a side speaks; whatever libraries print goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream
