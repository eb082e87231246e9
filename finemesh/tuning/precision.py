"""Which arithmetic this machine is fast in: measured by a matrix product, not assumed. Chosen once a study and recorded."""

import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

WORTH_IT = 1.3  # bfloat16 must be this much faster, or float32 is kept


@dataclass(frozen=True)
class Precision:
    """What a study computes in, and the rates of matrix products in GFLOP/s (GOP/s), 0 where they cannot be done.

    `name` is fp32; bf16: activations and frozen weights (trained weights stay float32); int8: the faster of these two, and
    beside it 8 bits for a training step's products with frozen weights (kernels/int8.py). Losses are never measured in int8.
    """

    name: str
    fp32_gflops: float
    bf16_gflops: float
    int8_gops: float = 0.0

    def chosen(self, wanted: str) -> "Precision":
        """`wanted` as in the config's search.precision; auto takes the faster of fp32 and bf16."""
        return replace(self, name=self._faster if wanted == "auto" else wanted)

    @property
    def _faster(self) -> str:
        return "bf16" if self.bf16_gflops > WORTH_IT * self.fp32_gflops else "fp32"

    @property
    def stored(self) -> str:
        """fp32 or bf16."""
        return self._faster if self.name == "int8" else self.name

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.stored == "bf16" else torch.float32

    @property
    def mixed_precision(self) -> str:
        """As accelerate calls it."""
        return "bf16" if self.stored == "bf16" else "no"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_precision(rows: int = 512, width: int = 1024, repeats: int = 5) -> Precision:
    """The rates here, and the faster of fp32 and bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = (_gflops(dtype, device, rows, width, repeats) for dtype in (torch.float32, torch.bfloat16, torch.int8))
    return Precision("fp32", *(round(rate, 1) for rate in measured)).chosen("auto")


def _gflops(dtype: torch.dtype, device: torch.device, rows: int, width: int, repeats: int) -> float:
    if dtype is torch.int8 and device.type != "cpu":
        return 0.0
    a, b = torch.ones(rows, width, dtype=dtype, device=device), torch.ones(width, width, dtype=dtype, device=device)
    multiply = torch._int_mm if dtype is torch.int8 else torch.mm
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        multiply(a, b).sum().item()
        seconds.append(time.perf_counter() - start)
    return 2 * rows * width * width / statistics.median(seconds[1:]) / 1e9
