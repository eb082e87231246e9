"""What a run was made with: processor, cores, threads, versions. Written to machine.json and shown in the report."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("finemesh", "torch", "transformers", "peft", "accelerate", "optuna", "PyNomadBBO")


def describe_machine(threads: int) -> dict[str, Any]:
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(terse=True), "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def usable_cores() -> int:
    """Of this process, which may have fewer than the machine; no more than OMP_NUM_THREADS, where the user has set it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) else cores


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
