"""One worker process: JSON lines to its standard input, JSON lines from its standard output, the rest into a log.

It runs in a session of its own, so that Ctrl-C reaches only the command, which then ends it.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

import psutil

from finemesh.search.executors.base import Worker


class WorkerProcess:
    """`inbox` receives (this worker, message) for each line, and (this worker, None) once it has ended.

    `died_of` says why it was ended from here, where it was.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path,
                 inbox: "Queue[tuple[Worker, dict[str, Any] | None]]") -> None:
        self._inbox, self._log = inbox, log
        self.ready = self.lost = False
        self.died_of = ""
        self._kills_before = out_of_memory_kills()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stderr:
            self._log_start = stderr.tell()
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                             env={**os.environ, **environment}, start_new_session=True)
        self.touch()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, document: dict[str, Any]) -> None:
        """Nothing is raised where the process has just died: the inbox says so."""
        assert self._process.stdin is not None
        self._log_start, self._kills_before = self._log.stat().st_size, out_of_memory_kills()
        self.touch()
        with suppress(OSError):
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()

    def touch(self) -> None:
        self._last_sign, self._last_cpu = time.monotonic(), self._cpu_seconds()

    def silence(self) -> float:
        """Seconds since it last wrote a line or used the processor."""
        if self._cpu_seconds() > self._last_cpu + 0.2:
            self.touch()
        return time.monotonic() - self._last_sign

    def kill(self, reason: str) -> None:
        """The process and all that it started."""
        self.died_of = self.died_of or reason
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, patience: float) -> None:
        """Its input ends, at which it should exit; killed if it has not after `patience` seconds."""
        self._close_input()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill("the command ended")
            self._process.wait()

    def out_of_memory(self) -> bool:
        """Whether the system killed it for lack of memory, as far as can be told. After the end only."""
        return self._exit_status() == -signal.SIGKILL and not self.died_of and \
            out_of_memory_kills() > self._kills_before

    def obituary(self, lines: int = 5) -> str:
        """How it ended, and the last lines that it logged since the latest request. After the end only."""
        status = self._exit_status()
        how = self.died_of or (f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}")
        if self.out_of_memory():
            how += ": the system ran out of memory"
        with open(self._log, "rb") as log:
            log.seek(self._log_start)
            last = log.read().decode(errors="replace").strip().splitlines()[-lines:]
        return f"the worker died ({how})" + (":\n" + "\n".join(last) if last else "")

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def _exit_status(self) -> int:
        self._close_input()
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:  # it closed its output, or wrote what is no JSON, and lives
            self.kill("it stopped speaking the workers' protocol")
            return self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError), self._process.stdout as lines:  # a line is cut off where the process died
            for line in lines:
                self._inbox.put((self, json.loads(line)))
        self._inbox.put((self, None))

    def _cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(sum(times[:4]))  # its own and its ended children's, user and system


def out_of_memory_kills() -> int:
    """A counter of the kernel's: how many processes it has killed for lack of memory; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
