"""The learning rate over the steps: warmup, constant, then a linear decay over the last fifth (warmup-stable-decay).

Before the decay the rate does not depend on where the run ends, so a run that is cut short was on its way, and a run that
is continued further (from a checkpoint before the decay) is the longer run. Hu et al., arXiv 2404.06395.
"""

import math
from dataclasses import dataclass

DECAY_SHARE = 0.2
WARMUP_SHARE = 0.05
MOST_WARMUP = 20  # steps


@dataclass(frozen=True)
class Schedule:
    """`horizon` steps in all; factors multiply the peak learning rate."""

    horizon: int
    warmup: int

    @staticmethod
    def over(horizon: int) -> "Schedule":
        return Schedule(horizon, min(MOST_WARMUP, math.ceil(WARMUP_SHARE * horizon)))

    @property
    def decay_start(self) -> int:
        """The first step that the horizon decides on."""
        return self.horizon - math.floor(DECAY_SHARE * self.horizon)

    def factor(self, step: int) -> float:
        """Of update number `step`, from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        left = self.horizon - self.decay_start
        fall = 1.0 if step < self.decay_start else (self.horizon - step) / (left + 1)
        return rise * max(0.0, fall)
