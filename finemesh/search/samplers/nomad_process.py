"""The parent's end of nomad_child: started when first needed, started again when it dies, ended with its last owner."""

import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

ATTEMPTS = 5


class NomadProcess:
    """Owns the child process. A request is answered alike by any child, so a dead one is replaced and asked again."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[str]] = []  # one, where it has been started
        self._finalizer = weakref.finalize(self, _end, self._children)
        self._requests = 0
        self._own()

    def _own(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()

    @property
    def pid(self) -> int | None:
        return self._children[0].pid if self._children else None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's answer, or {"error": text} where NOMAD fails on this request; ImportError without PyNomad."""
        if self._owner != os.getpid():  # a fork's copy: the child answers the process that started it
            self._own()
            self.close()
        with self._lock:
            return self._answer(request)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
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
        if not self._children:
            self._children.append(_start())
            greeting = _read(self._children[0])
            if "refused" in greeting:
                self.close()
                raise ImportError(
                    f"NomadSampler needs PyNomad ({greeting['refused']}): pip install PyNomadBBO==4.6.0")
        return self._children[0]

    def close(self) -> None:
        _end(self._children)


_SHARED: "weakref.WeakValueDictionary[int, NomadProcess]" = weakref.WeakValueDictionary()  # by the process that it is of


def shared() -> NomadProcess:
    """The one of all samplers: an answer is a function of its request, and many studies may be kept."""
    return _SHARED.setdefault(os.getpid(), NomadProcess())


def _end(children: list[subprocess.Popen[str]]) -> None:
    while children:
        child = children.pop()
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
        [sys.executable, "-P", "-m", "finemesh.search.samplers.nomad_child"],  # -P: whatever lies in the current directory
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
