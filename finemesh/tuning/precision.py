"""Which arithmetic this machine is fast in: measured by a matrix product, not assumed. Chosen once a study and recorded."""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

WORTH_IT = 1.3  # bfloat16 must be this much faster, or float32 is kept


@dataclass(frozen=True)
class Precision:
    """`name` is bf16 (activations and frozen weights; trained weights stay float32) or fp32; rates in GFLOP/s."""

    name: str
    fp32_gflops: float
    bf16_gflops: float

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    @property
    def mixed_precision(self) -> str:
        """As accelerate calls it."""
        return "bf16" if self.name == "bf16" else "no"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_precision(rows: int = 512, width: int = 1024, repeats: int = 5) -> Precision:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fp32, bf16 = (_gflops(dtype, device, rows, width, repeats) for dtype in (torch.float32, torch.bfloat16))
    return Precision("bf16" if bf16 > WORTH_IT * fp32 else "fp32", round(fp32, 1), round(bf16, 1))


def _gflops(dtype: torch.dtype, device: torch.device, rows: int, width: int, repeats: int) -> float:
    a, b = torch.ones(rows, width, dtype=dtype, device=device), torch.ones(width, width, dtype=dtype, device=device)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - start)
    return 2 * rows * width * width / statistics.median(seconds[1:]) / 1e9
