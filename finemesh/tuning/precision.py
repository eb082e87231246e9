"""Which arithmetic this machine is fast in: measured by a matrix product, not assumed. Chosen once a study and recorded."""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

HOPELESS = 4.0  # so many times slower than the other at its second product, a type is not measured further
WORTH_IT = 1.3  # bfloat16 must be this much faster, or float32 is kept


@dataclass(frozen=True)
class Precision:
    """What a study computes in, and the rates of matrix products in GFLOP/s, on processors of one thread.

    `name` is fp32; bf16: activations and frozen weights (trained weights stay float32); int8: the faster of these two, and
    8 bits for a training step's products with frozen weights (kernels/int8.py), never for validation and test.
    """

    name: str
    fp32_gflops: float
    bf16_gflops: float

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


def measure_precision(rows: int = 512, width: int = 1024, repeats: int = 8) -> Precision:
    """The rates here, of one thread on processors, and the faster of fp32 and bf16.

    The best of `repeats` products in turns with one thread is the same whatever else the machine does: the choice has to be.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs = {dtype: [torch.ones(size, width, dtype=dtype, device=device) for size in (rows, width)]
             for dtype in (torch.float32, torch.bfloat16)}
    fastest = dict.fromkeys(pairs, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(repeats + 1):
            for dtype, (a, b) in pairs.items():
                if turn > 1 and fastest[dtype] > HOPELESS * min(fastest.values()):
                    continue
                fastest[dtype] = min(fastest[dtype], _seconds(a, b))
    finally:
        torch.set_num_threads(threads)
    fp32, bf16 = (round(2 * rows * width * width / seconds / 1e9, 1) for seconds in fastest.values())
    return Precision("fp32", fp32, bf16).chosen("auto")


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
