"""The peak memory that a piece of work adds to what the process already held, on the CPU and on CUDA.

On Linux the kernel's own high-water mark is reset and read; elsewhere the resident size is sampled.
"""

import ctypes
import gc
import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

MB = 1e6
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """A context: `base_mb` is what was held at its start, `peak_mb()` what the work has added at its highest so far,
    or in all once the context is left. One at a time.

    Freed heap is given back to the system first; otherwise a small trial after a big one would seem to need nothing.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self._interval = interval
        self._highest = 0.0
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self._final: float | None = None

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        release_freed_heap()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.base_mb = torch.cuda.memory_allocated() / MB
            return self
        self.base_mb = self._highest = _resident_mb()
        if not _reset_high_water_mark():
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def peak_mb(self) -> float:
        if self._final is not None:
            return self._final
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / MB - self.base_mb
        highest = self._highest if self._sampler else _high_water_mark_mb()
        return max(0.0, highest - self.base_mb)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._final = self.peak_mb()
        self._stop.set()

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            self._highest = max(self._highest, _resident_mb())


def release_freed_heap() -> None:
    """Hand freed memory back to the system, where the allocator can (glibc, tcmalloc)."""
    library = ctypes.CDLL(None)
    for name, arguments in (("MallocExtension_ReleaseFreeMemory", ()), ("malloc_trim", (0,))):
        function = getattr(library, name, None)
        if function is not None:
            function(*arguments)


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / MB


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _high_water_mark_mb() > 0


def _high_water_mark_mb() -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024 / MB
    return 0.0
