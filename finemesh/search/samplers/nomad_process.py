"""The parent's end of nomad_child: started when first needed, started again when it dies, ended with its owner."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ATTEMPTS = 5


class NomadProcess:
    """Owns the child process. A request is answered alike by any child, so a dead one is replaced and asked again."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._requests = 0

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's answer, or {"error": text} where NOMAD fails on this request; ImportError without PyNomad."""
        self._requests += 1
        line = json.dumps({"id": self._requests, **request})
        for _ in range(ATTEMPTS):
            try:
                answer = self._exchange(line)
            except (BrokenPipeError, EOFError, ValueError):  # ValueError: a line cut short by its death
                self.close()
                continue
            if answer.get("id") == self._requests:
                return answer
            self.close()
        raise RuntimeError(f"NOMAD's process ended {ATTEMPTS} times in a row without an answer.")

    def _exchange(self, line: str) -> dict[str, Any]:
        child = self._running()
        assert child.stdin is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()
        return _read(child)

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None:
            self._child = _start()
            greeting = _read(self._child)
            if "refused" in greeting:
                self.close()
                raise ImportError(
                    f"NomadSampler needs PyNomad ({greeting['refused']}): pip install PyNomadBBO==4.6.0")
        return self._child

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _start() -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "finemesh.search.samplers.nomad_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        start_new_session=True,  # Ctrl-C in the terminal is the parent's affair
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"})


def _read(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer
