"""Which arithmetic this machine is fast in: measured by a matrix product, not assumed. Chosen once a study and recorded."""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

WORTH_IT = 1.3  # an arithmetic of fewer bits must be this much faster
Int8 = Literal["no", "gradients", "all"]


@dataclass(frozen=True)
class Precision:
    """What a study computes in, and the rates of matrix products in GFLOP/s (GOP/s), 0 where they cannot be done.

    `name` is fp32, or bf16: activations and frozen weights (trained weights stay float32). `int8` says which of a training
    step's products with weights are done in 8 bits (kernels/int8.py): those that give the gradient of a layer's input, or all
    with frozen weights as well. Losses are never measured so.
    """

    name: str
    fp32_gflops: float
    bf16_gflops: float
    int8_gops: float = 0.0
    int8: Int8 = "no"

    def chosen(self, wanted: str, *, kernels: bool = False) -> "Precision":
        """For search.precision. `auto` takes what is measured to be faster: of fp32 and bf16, and beside bf16 8 bits for
        gradients or not; `kernels`: whether the model is one that kernels/ computes, which alone know 8 bits.
        """
        if wanted in ("fp32", "bf16"):
            return replace(self, name=wanted, int8="no")
        half = self.bf16_gflops > WORTH_IT * self.fp32_gflops
        pays = kernels and half and self.int8_gops > WORTH_IT * self.bf16_gflops
        return replace(self, name="bf16" if half else "fp32", int8="all" if wanted == "int8" else "gradients" if pays else "no")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    @property
    def mixed_precision(self) -> str:
        """As accelerate calls it."""
        return "bf16" if self.name == "bf16" else "no"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_precision(rows: int = 512, width: int = 1024, repeats: int = 8) -> Precision:
    """The rates here, of one thread on processors, and the faster of fp32 and bf16.

    The best of `repeats` products in turns with one thread is the same whatever else the machine does: the choice has to be.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = [torch.float32, torch.bfloat16] + [torch.int8] * (device.type == "cpu")
    pairs = {kind: [torch.ones(size, width, dtype=kind, device=device) for size in (rows, width)] for kind in kinds}
    fastest = dict.fromkeys(kinds, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats + 1):
            for kind, (a, b) in pairs.items():
                fastest[kind] = min(fastest[kind], _seconds(a, b))
    finally:
        torch.set_num_threads(threads)
    rates = {kind: round(2 * rows * width * width / seconds / 1e9, 1) for kind, seconds in fastest.items()}
    return Precision("fp32", rates[torch.float32], rates[torch.bfloat16], rates.get(torch.int8, 0.0)).chosen("auto")


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    (torch._int_mm if a.dtype is torch.int8 else torch.mm)(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
