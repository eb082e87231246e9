"""Whether a leader is surely better, told from a part of the validation rows: both have a loss for each of them.

A paired t-test on the differences of the rows' summed losses, after an eighth, a quarter and half of the rows and after all
of them. Rows differ much more than models do: pairs see through that. What is ranked is a mean, and a few rows may outweigh
the others: so the statistic is corrected for skewness (Johnson 1978, doi:10.1080/01621459.1978.10480051), and Wilcoxon's
test, which is one of medians, gave up to a tenth of equally good trials up (docs/decisions/008).
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finemesh.trial import write_json

ERROR = 0.01  # the chance, over all looks, to give up a trial that is as good as the rival
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the rows
FEWEST = 16  # rows

Numbers = NDArray[np.floating] | NDArray[np.integer]


@dataclass(frozen=True)
class Rival:
    """A leader's losses on the validation rows after as many steps, and its loss over all of them.

    `allowance`: a loss that is higher by no more is not worse.
    """

    row_losses: list[float]
    loss: float
    allowance: float = 0.0

    def parts(self) -> list[list[int]]:
        """The rows in a random order, the same for every trial, cut where they are compared."""
        order = np.random.default_rng(0).permutation(len(self.row_losses)).tolist()
        cuts = [0, *(round(share * len(order)) for share in SHARES)]
        return [part for start, end in pairwise(cuts) if (part := order[start:end])]

    def better(self, sums: Numbers, weights: Numbers) -> float | None:
        """An estimate of the loss over all rows where the rival is surely better, else None. Rows not yet seen weigh 0."""
        seen = weights > 0
        if seen.sum() < FEWEST:
            return None
        above = sums[seen] - weights[seen] * np.array(self.row_losses)[seen]
        excess = above - weights[seen] * self.allowance
        if not math.isfinite(excess.sum()) or excess.sum() <= 0:
            return None
        if _chance(excess) >= ERROR / len(SHARES):
            return None
        return float(self.loss + above.sum() / weights[seen].sum())


def _chance(excess: NDArray[np.floating]) -> float:
    """Of a mean so far above 0 where the true one is 0: Johnson's skewness-corrected t."""
    from scipy.special import stdtr

    mean, variance, count = excess.mean(), excess.var(ddof=1), len(excess)
    if variance == 0:
        return 0.0 if mean > 0 else 1.0
    skew = ((excess - mean) ** 3).mean() / variance
    t = (mean + skew / (6 * count) + skew * mean ** 2 / (3 * variance)) / math.sqrt(variance / count)
    return float(stdtr(count - 1, -t))


def write_rows(folder: Path, step: int, loss: float, row_losses: list[float]) -> None:
    (folder / "rows").mkdir(exist_ok=True)
    write_json(folder / "rows" / f"{step}.json", {"loss": loss, "row_losses": [float(f"{x:.6g}") for x in row_losses]})


def read_rival(folder: Path, step: int, most: float) -> Rival | None:
    """The trial of this folder as it was after `step` updates, to be compared with where a loss of `most` is allowed."""
    file = folder / "rows" / f"{step}.json"
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Rival(kept["row_losses"], kept["loss"], most - kept["loss"])
