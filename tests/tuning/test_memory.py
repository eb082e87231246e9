import pytest
import torch

from finemesh.tuning import memory
from finemesh.tuning.memory import PeakMemory


def fill(megabytes: int) -> None:
    torch.ones(int(megabytes * 1e6) // 4)


@pytest.mark.parametrize("kernel_counts", [True, False])
def test_peak_is_the_work_s_own(kernel_counts, monkeypatch):
    """A big piece of work does not colour the small one after it, and what was held before is not counted."""
    if not kernel_counts:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    held = torch.ones(50_000_000 // 4)
    with PeakMemory(interval=0.001) as big:
        for _ in range(5):
            fill(300)
    with PeakMemory(interval=0.001) as small:
        for _ in range(20):
            fill(60)
    assert 280 < big.peak_mb() < 340
    assert 40 < small.peak_mb() < 100
    assert big.base_mb > 50
    del held
